"""From the runtime's lists and events to a PodView, and to a waked worker.

PLEG is upstream's name (pod lifecycle event generator). Events from the shims say at once that something
changed; a slow relist finds what an event could have missed. What a pod looks like is always read afresh
from the runtime's own memory, never rebuilt from events.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kubelet_py.instruments import Histogram, Instrument, Number
from kubelet_py.pods import last_words
from kubelet_py.pods.model import (
    ANNOTATION_HASH,
    ANNOTATION_USER,
    ContainerView,
    PodView,
    SandboxView,
    user_from,
)
from runtime.service import Container, Event, RuntimeService, Sandbox

log = logging.getLogger(__name__)

RELIST_SECONDS = 30.0
SPREAD_SECONDS = 20.0
MOST_MESSAGES = 10_000


class Pleg:
    """`wake(uid)` is called for every change, `wake_after(uid, seconds)` for every pod of a relist, so that
    hundreds of them do not stand in the way of one that has news; `ips(sandbox id)` knows a sandbox's
    addresses."""

    def __init__(
        self,
        runtime: RuntimeService,
        ips: Callable[[str], tuple[str, ...]],
        wake: Callable[[str], None],
        wake_after: Callable[[str, float], None],
    ) -> None:
        self._runtime = runtime
        self._ips = ips
        self._wake, self._wake_after = wake, wake_after
        self._messages: dict[str, str] = {}
        self._duration = Histogram(
            "kubelet_pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG."
        )
        self._interval = Histogram(
            "kubelet_pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG."
        )
        self._seen = Number(
            "kubelet_pleg_last_seen_seconds",
            "Timestamp in seconds when PLEG was last seen active.",
            kind="gauge",
        )
        self.instruments: tuple[Instrument, ...] = (self._duration, self._interval, self._seen)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._relist, name="pleg-relist", daemon=True)

    def start(self) -> None:
        self._runtime.subscribe(self._on_event)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def uids(self) -> set[str]:
        """Every pod that the runtime holds something of."""
        return {sandbox.config.uid for sandbox in self._runtime.list_sandboxes()}

    def view(self, uid: str) -> PodView:
        """The pod as the runtime has it now, newest first."""
        sandboxes = [s for s in self._runtime.list_sandboxes() if s.config.uid == uid]
        if not sandboxes:
            return PodView(uid)
        ids = {s.id for s in sandboxes}
        containers = [c for c in self._runtime.list_containers() if c.sandbox_id in ids]
        # By attempt first: a clock that was set back must not make a new attempt look like an old one.
        containers.sort(key=lambda c: (c.config.attempt, c.created_at), reverse=True)
        sandboxes.sort(key=lambda s: (s.config.attempt, s.created_at), reverse=True)
        return PodView(
            uid,
            tuple(self._sandbox(s) for s in sandboxes),
            tuple(self._container(c) for c in containers),
        )

    def _sandbox(self, sandbox: Sandbox) -> SandboxView:
        return SandboxView(
            id=sandbox.id,
            attempt=sandbox.config.attempt,
            ready=sandbox.state == "READY",
            created_at=sandbox.created_at,
            netns=sandbox.netns,
            cgroup=sandbox.config.cgroup_parent,
            host_network=sandbox.config.host_network,
            ips=self._ips(sandbox.id) if sandbox.state == "READY" else (),
        )

    def _container(self, container: Container) -> ContainerView:
        config = container.config
        message = self._last_words(container) if container.state == "EXITED" else container.message
        return ContainerView(
            id=container.id,
            name=config.name,
            sandbox_id=container.sandbox_id,
            attempt=config.attempt,
            state=container.state,
            image=config.image,
            image_id=config.image_id,
            spec_hash=config.annotations.get(ANNOTATION_HASH, ""),
            created_at=container.created_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            exit_code=container.exit_code,
            reason=container.reason,
            message=message,
            user=user_from(config.annotations.get(ANNOTATION_USER, "")),
        )

    def _last_words(self, container: Container) -> str:
        """Read once: nobody writes to them any more."""
        known = self._messages.get(container.id)
        if known is None:
            if len(self._messages) > MOST_MESSAGES:
                self._messages.clear()
            known = self._messages[container.id] = last_words.of(container)
        return known

    def _on_event(self, event: Event) -> None:
        for sandbox in self._runtime.list_sandboxes():
            if sandbox.id == event.sandbox_id:
                self._wake(sandbox.config.uid)
                return

    def _relist(self) -> None:
        last: float | None = None
        while not self._stop.wait(RELIST_SECONDS):
            now = time.monotonic()
            if last is not None:
                self._interval.observe(now - last)
            last = now
            self.relist()

    def relist(self) -> None:
        """Have every pod looked at that the runtime holds something of."""
        with self._duration.timed():
            uids = self.uids()
            for number, uid in enumerate(uids):
                self._wake_after(uid, SPREAD_SECONDS * number / len(uids))
        self._seen.set(time.time())
