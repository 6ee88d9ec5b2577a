"""Stopping containers without waiting for them: preStop, the stop signal, SIGKILL when the grace is over.

A worker only says what is to stop and by when, and is woken by the container's end. Saying it again is free;
saying it with an earlier end hastens what is under way. So a deletion, or a shortened grace, is never held up
by an earlier stop, be it inside a preStop hook.

All preStop hooks of a pod run at once, those of its sidecars too; then each container waits for its turn, and
when the grace is over nobody waits any more (upstream: killContainer, terminationOrdering).
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
from runtime.errors import NotFoundError, RuntimeFailure
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
    turn: threading.Event = field(default_factory=threading.Event)
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
        self,
        pod: Object,
        spec: Object,
        container: ContainerView,
        ip: str,
        grace: float,
        message: str,
        *,
        turn: bool = True,
    ) -> None:
        """Begin to stop it, or hasten that; `message` is the Killing event's text. Without `turn` only its
        preStop hook runs, until it is said with it or the grace is over. Never waits."""
        due = self._clock() + grace
        with self._lock:
            known = self._stops.get(container.id)
            if known is not None:
                if turn:
                    known.turn.set()
                if due >= known.due - TOLERANCE:
                    return
                known.due = due
                self._begin(self._hasten, container.id, grace, known)
            elif self._runs(container.id):
                # Noted once the thread runs: one that could not be started is tried again.
                stop = _Stop(due)
                if turn:
                    stop.turn.set()
                self._begin(self._run, pod, spec, container, ip, grace, stop)
                self._stops[container.id] = stop
                self._event(pod, container.name, "Normal", "Killing", message)
                return
            else:
                return  # it has ended since the caller looked
        log.info("Hastened stop container=%s id=%s seconds=%g", container.name, container.id[:12], grace)

    def ended(self, container_id: str) -> None:
        """It has ended by itself: nothing waits for its turn any more."""
        with self._lock:
            known = self._stops.get(container_id)
        if known is not None:
            known.turn.set()

    def _runs(self, container_id: str) -> bool:
        try:
            return self._runtime.container(container_id).state == "RUNNING"
        except NotFoundError:
            return False

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
            self._stop(container.id, self._at_its_turn(stop, grace))
        finally:
            with self._lock:
                del self._stops[container.id]

    def _hasten(self, container_id: str, grace: float, stop: _Stop) -> None:
        self._stop(container_id, self._at_its_turn(stop, grace))

    def _at_its_turn(self, stop: _Stop, grace: float) -> float:
        """Wait for it, and say what is left of the grace."""
        if stop.turn.is_set():
            return grace
        while not stop.turn.is_set() and (left := stop.due - self._clock()) > 0:
            stop.turn.wait(left)
        return max(min(LEAST_GRACE, grace), stop.due - self._clock())

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
