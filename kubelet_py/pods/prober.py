"""When to probe which container, and what the results come to: thresholds, periods, the first look at once.

One thread keeps the calendar; each probe has a thread of its own (probe_threads.py), so that one that
hangs delays no other. A container's Health changes only when a threshold is passed; then its pod is synced.
Source: upstream's prober (worker.go): readiness and liveness wait for the startup probe to succeed.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from kubelet_py.pods import probes
from kubelet_py.pods.durations import DEFAULT_BOUNDS, Distribution, Durations
from kubelet_py.pods.model import (
    ContainerView,
    Health,
    Object,
    PodView,
    containers,
    host_network,
    init_containers,
)
from kubelet_py.pods.probe_threads import ProbeThreads
from kubelet_py.pods.probes import Outcome
from runtime.service import RuntimeService

log = logging.getLogger(__name__)

KINDS = ("startup", "liveness", "readiness")
SOON, SOON_LOOKS, SOON_COMMANDS = 0.1, 20, 10


@dataclass(slots=True)
class ProbeState:
    """One probe of one running container. Pure but for being updated in place."""

    kind: str
    spec: Object
    passed: bool
    successes: int = 0
    failures: int = 0
    failed: bool = False

    def record(self, success: bool) -> bool:
        """Count a result; True when what the probe says has changed."""
        before = (self.passed, self.failed)
        if success:
            self.successes, self.failures = self.successes + 1, 0
            if self.successes >= int(self.spec.get("successThreshold") or 1):
                self.passed = True
        else:
            self.successes, self.failures = 0, self.failures + 1
            if self.failures >= int(self.spec.get("failureThreshold") or 3):
                self.passed = False
                self.failed = self.kind != "readiness"
        return before != (self.passed, self.failed)

    def wait(self) -> float:
        """Seconds until the next probe: the period. One for readiness that fails is asked again sooner for a
        while, so that a server that needs a moment to listen does not cost a whole period; commands, which
        are dear, ever less often. The other kinds keep to their period, in which failureThreshold counts."""
        period = _period(self.spec)
        if self.kind != "readiness" or self.passed or not self.failures:
            return period
        if "exec" in self.spec:
            return min(period, SOON * self.failures) if self.failures <= SOON_COMMANDS else period
        return min(period, SOON) if self.failures <= SOON_LOOKS else period


@dataclass(frozen=True, slots=True)
class ProbeCount:
    """What came of one probe of a container, all its attempts together. `labels` are those of upstream's
    prober_probe_total but for the result; only successes are timed, as upstream does."""

    labels: Mapping[str, str]
    results: dict[str, int] = field(default_factory=dict)
    durations: Durations = field(default_factory=lambda: Durations(DEFAULT_BOUNDS))

    def record(self, outcome: Outcome, seconds: float) -> None:
        result = "unknown" if outcome.errored else "successful" if outcome.success else "failed"
        self.results[result] = self.results.get(result, 0) + 1
        if outcome.success:
            self.durations.observe(seconds)


@dataclass(slots=True)
class _Watched:
    """A running container with probes."""

    pod: Object
    container: Object
    view: ContainerView
    ip: str
    states: dict[str, ProbeState] = field(default_factory=dict)
    counts: dict[str, ProbeCount] = field(default_factory=dict)
    ending: bool = False

    def health(self) -> Health:
        startup, readiness = self.states.get("startup"), self.states.get("readiness")
        started = startup is None or startup.passed
        ready = started and (readiness is None or readiness.passed)
        failed = next((s.kind for s in self.states.values() if s.failed), "")
        return Health(started, ready, failed)


class Prober:
    """`changed(uid)` is called when a container's health changed; `tell` makes the Unhealthy events.
    `host_ip` is where pods on the host's network are asked: at the address that is their podIP."""

    def __init__(
        self,
        service: RuntimeService,
        *,
        changed: Callable[[str], None],
        tell: Callable[[Object, Object, str, str, str], None],
        host_ip: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._host_ip = host_ip
        self._changed = changed
        self._tell = tell
        self._clock = clock
        self._condition = threading.Condition()
        self._watched: dict[str, _Watched] = {}
        self._counts: dict[tuple[str, str, str], ProbeCount] = {}
        self._calendar: list[tuple[float, int, str, str]] = []
        self._sequence = 0
        self._stopping = False
        self._threads = ProbeThreads()

    def start(self) -> None:
        threading.Thread(target=self._run, name="prober", daemon=True).start()

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._threads.stop()

    def update(self, pod: Object, view: PodView) -> None:
        """Watch the pod's running containers, forget those that ended. Called at every sync."""
        running = {c.name: c for c in view.containers if c.state == "RUNNING"}
        ip = self._host_ip if host_network(pod) or not view.ips else view.ips[0]
        with self._condition:
            for container in [*containers(pod), *init_containers(pod)]:
                current = running.get(container["name"])
                if current is not None and current.id not in self._watched:
                    self._watch(pod, container, current, ip)
            alive = {c.id for c in running.values()}
            uid = pod["metadata"]["uid"]
            for key in [
                k for k, w in self._watched.items() if w.pod["metadata"]["uid"] == uid and k not in alive
            ]:
                del self._watched[key]

    def terminate(self, pod: Object, view: PodView) -> None:
        """The pod ends: only its readiness is still of interest (upstream: StopLivenessAndStartup)."""
        with self._condition:
            if all(w.pod["metadata"]["uid"] != pod["metadata"]["uid"] for w in self._watched.values()):
                return
        self.update(pod, view)
        with self._condition:
            for watched in self._watched.values():
                if watched.pod["metadata"]["uid"] == pod["metadata"]["uid"]:
                    watched.ending = True

    def forget(self, uid: str) -> None:
        with self._condition:
            for key in [k for k, w in self._watched.items() if w.pod["metadata"]["uid"] == uid]:
                del self._watched[key]
            for name in [name for name in self._counts if name[0] == uid]:
                del self._counts[name]

    def health(self, view: PodView) -> dict[str, Health]:
        """Container name → Health, for those that have probes."""
        with self._condition:
            return {
                c.name: self._watched[c.id].health()
                for c in view.containers
                if c.state == "RUNNING" and c.id in self._watched
            }

    def results(self) -> list[tuple[Mapping[str, str], Mapping[str, int], Distribution]]:
        """Of each probe of the pods that are here: its labels, how often it came to which result, and how
        long its successes took."""
        with self._condition:
            return [(c.labels, dict(c.results), c.durations.read()) for c in self._counts.values()]

    def _count_of(self, pod: Object, container: Object, kind: str) -> ProbeCount:
        metadata = pod["metadata"]
        labels = {
            "container": container["name"],
            "namespace": metadata["namespace"],
            "pod": metadata["name"],
            "pod_uid": metadata["uid"],
            "probe_type": kind.capitalize(),
        }
        return self._counts.setdefault((metadata["uid"], container["name"], kind), ProbeCount(labels))

    def _watch(self, pod: Object, container: Object, view: ContainerView, ip: str) -> None:
        specs = {kind: container[f"{kind}Probe"] for kind in KINDS if container.get(f"{kind}Probe")}
        if not specs:
            return
        watched = _Watched(pod, container, view, ip)
        told = _told(pod, view.id)
        passed = {"startup": told.get("started"), "liveness": True, "readiness": told.get("ready")}
        for kind, spec in specs.items():
            state = watched.states[kind] = ProbeState(kind, spec, passed=bool(passed[kind]))
            watched.counts[kind] = self._count_of(pod, container, kind)
            if kind == "startup" and state.passed:
                continue
            delay = float(spec.get("initialDelaySeconds") or 0)
            elapsed = max(0.0, time.time() - (view.started_at or time.time()))
            wait = max(0.0, delay - elapsed)
            if told.get("started") and state.passed:
                wait += _period(spec) * zlib.crc32(f"{view.id} {kind}".encode()) / 0xFFFFFFFF
            self._schedule(wait, view.id, kind)
        self._watched[view.id] = watched

    def _schedule(self, seconds: float, container_id: str, kind: str) -> None:
        self._sequence += 1
        entry = (self._clock() + seconds, self._sequence, container_id, kind)
        heapq.heappush(self._calendar, entry)
        if self._calendar[0] is entry:  # else the calendar's thread waits for something sooner
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._stopping and (not self._calendar or self._calendar[0][0] > self._clock()):
                    wait = self._calendar[0][0] - self._clock() if self._calendar else None
                    self._condition.wait(wait)
                if self._stopping:
                    return
                _, _, container_id, kind = heapq.heappop(self._calendar)
                watched = self._watched.get(container_id)
                if watched is None or (watched.ending and kind != "readiness"):
                    continue
                startup = watched.states.get("startup")
                held = kind != "startup" and startup is not None and not startup.passed
                if held:
                    self._schedule(0.1, container_id, kind)
                    continue
            self._threads.run(partial(self._probe, watched, kind))

    def _probe(self, watched: _Watched, kind: str) -> None:
        state, began = watched.states[kind], time.monotonic()
        try:
            outcome = probes.run(self._service, state.spec, watched.container, watched.view.id, watched.ip)
        except Exception as error:
            # A defect in a probe must not leave the container unprobed for ever.
            log.exception("Failed to probe container=%s", watched.view.id[:12])
            outcome = Outcome(False, str(error), errored=True)
        seconds = time.monotonic() - began
        with self._condition:
            if self._watched.get(watched.view.id) is not watched or (watched.ending and kind != "readiness"):
                return
            watched.counts[kind].record(outcome, seconds)
            changed = not outcome.errored and state.record(outcome.success)
            over = kind == "startup" and state.passed
            if not over and not state.failed:
                self._schedule(state.wait(), watched.view.id, kind)
        if not outcome.success:
            came_to = "errored and resulted in unknown state" if outcome.errored else "failed"
            text = f"{kind.capitalize()} probe {came_to}: {outcome.text}"
            self._tell(watched.pod, watched.container, "Warning", "Unhealthy", text)
        elif outcome.warning:
            text = f"{kind.capitalize()} probe warning: {outcome.text}"
            self._tell(watched.pod, watched.container, "Warning", "ProbeWarning", text)
        if changed:
            self._changed(watched.pod["metadata"]["uid"])


def _period(spec: Object) -> float:
    return float(spec.get("periodSeconds") or 10)


def _told(pod: Object, container_id: str) -> Object:
    """What an earlier agent said of this container. It stands until its probes say otherwise, and they begin
    at some moment of their period: a new agent makes no pod unready, and asks not all at once."""
    status = pod.get("status") or {}
    entries = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return next((e for e in entries if str(e.get("containerID", "")).endswith(f"://{container_id}")), {})
