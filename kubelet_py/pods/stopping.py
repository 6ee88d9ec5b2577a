"""Stopping containers without waiting for them: preStop, the stop signal, SIGKILL when the grace is over.

A worker only says what is to stop and by when, and is woken by the container's end. Saying it again is free;
saying it with an earlier end hastens what is under way. So a deletion, or a shortened grace, is never held up
by an earlier stop, be it inside a preStop hook.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from kubelet_py.pods import hooks
from kubelet_py.pods.containers import Event
from kubelet_py.pods.model import ContainerView, Object, init_containers, is_restartable
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

log = logging.getLogger(__name__)

# What a container gets in any case after its preStop hook (upstream: minimumGracePeriodInSeconds).
LEAST_GRACE = 2.0
TOLERANCE = 0.05


def next_to_stop(pod: Object, running: Sequence[ContainerView]) -> list[ContainerView]:
    """PURE: which of the running containers to stop now. Sidecars go last, in reverse order, one by one."""
    order = [c["name"] for c in init_containers(pod) if is_restartable(c)]
    others = [c for c in running if c.name not in order]
    if others or not running:
        return others
    return [max(running, key=lambda c: order.index(c.name))]


@dataclass(slots=True)
class _Stop:
    due: float
    ended: threading.Event = field(default_factory=threading.Event)


class Stopper:
    def __init__(
        self, runtime: RuntimeService, event: Event, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._runtime = runtime
        self._event = event
        self._clock = clock
        self._lock = threading.Lock()
        self._stops: dict[str, _Stop] = {}

    def stop(
        self, pod: Object, spec: Object, container: ContainerView, ip: str, grace: float, message: str
    ) -> None:
        """Begin to stop it, or hasten that; `message` is the Killing event's text. Never waits."""
        due = self._clock() + grace
        with self._lock:
            known = self._stops.get(container.id)
            if known is not None:
                if due >= known.due - TOLERANCE:
                    return
                self._begin(self._stop, container.id, grace)
                known.due = due
            else:
                # Noted once the thread runs: one that could not be started is tried again.
                stop = _Stop(due)
                self._begin(self._run, pod, spec, container, ip, grace, stop)
                self._stops[container.id] = stop
                self._event(pod, container.name, "Normal", "Killing", message)
                return
        log.info("Hastened stop container=%s id=%s seconds=%g", container.name, container.id[:12], grace)

    @staticmethod
    def _begin(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, name="stop", daemon=True).start()

    def _run(
        self, pod: Object, spec: Object, container: ContainerView, ip: str, grace: float, stop: _Stop
    ) -> None:
        try:
            pre_stop = (spec.get("lifecycle") or {}).get("preStop")
            if pre_stop and grace > 0:
                self._pre_stop(pod, spec, container, ip, grace, stop)
                grace = max(LEAST_GRACE, stop.due - self._clock())
            self._stop(container.id, grace)
        finally:
            with self._lock:
                del self._stops[container.id]

    def _pre_stop(
        self, pod: Object, spec: Object, container: ContainerView, ip: str, grace: float, stop: _Stop
    ) -> None:
        hook = spec["lifecycle"]["preStop"]

        def sleep(seconds: float) -> None:
            stop.ended.wait(seconds)

        try:
            warn = partial(self._event, pod, container.name, "Warning")
            hooks.run(self._runtime, hook, spec, container.id, ip, timeout=grace, sleep=sleep, warn=warn)
        except hooks.HookFailed as error:
            if not stop.ended.is_set():
                # Not in the event, where what the hook said could be read by too many, as upstream.
                log.info("Failed preStop hook container=%s error=%s", container.name, error)
                self._event(pod, container.name, "Warning", "FailedPreStopHook", "PreStopHook failed")

    def _stop(self, container_id: str, grace: float) -> None:
        try:
            self._runtime.stop_container(container_id, grace)
        except RuntimeFailure as error:
            # The pod's next look finds it running and tries again.
            log.warning("Failed to stop container id=%s error=%s", container_id[:12], error)
            return
        with self._lock:
            known = self._stops.get(container_id)
        if known is not None:
            known.ended.set()
