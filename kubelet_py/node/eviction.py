"""Eviction: when the node runs out of something, it takes back its own things, then ends pods.

One look in the order of upstream's eviction_manager.go (synchronize): observe, judge, local storage limits of
single pods, the most urgent threshold, node-level reclaim (dead containers and unused images for the disk),
then the first pod of the ranking that may go. While that pod ends, nobody else is evicted. Static and
system-critical pods are never evicted.

Looking costs some file reads, so it is done every second (upstream: 10 s and kernel notifications).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from kubelet_py.instruments import Histogram, Instrument, Number
from kubelet_py.node import pressure, ranking
from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import Candidate, Usage
from kubelet_py.node.thresholds import Threshold
from kubelet_py.pods import resources
from kubelet_py.pods.model import Ending, Object, full_name

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
LOCAL_STORAGE_SECONDS = 10.0
# After a pass that could evict nobody, and the longest wait for a pod that was evicted.
REST_SECONDS, CLEANUP_SECONDS = 10.0, 30.0
IMMEDIATE_GRACE = 1.0


class Evictable(Protocol):
    """A pod's record, as far as eviction needs it."""

    pod: Object
    finished: bool
    ending: Ending | None

    @property
    def uid(self) -> str: ...

    @property
    def emptied(self) -> bool:
        """Whether what it held, its volumes too, is the node's again."""
        ...

    @property
    def ends(self) -> bool: ...


class Node(Protocol):
    """What eviction asks of the node, and has it do."""

    def observe(self) -> Mapping[str, Observation]: ...
    def pods(self) -> Sequence[Evictable]: ...
    def usage(self, record: Evictable, resource: str, signal: str = "") -> Usage:
        """Of a disk, what lies on that of the `signal`; everywhere where there is none."""
        ...

    def volumes(self, record: Evictable) -> Mapping[str, int]: ...
    def reclaim(self, threshold: Threshold) -> None: ...
    def evict(self, record: Evictable, ending: Ending) -> None: ...
    def tell(self, kind: str, reason: str, message: str) -> None: ...
    def conditions_changed(self) -> None: ...


class EvictionManager:
    """`pressures` are the types of the node's conditions that are True now."""

    def __init__(
        self,
        node: Node,
        thresholds: Sequence[Threshold],
        *,
        transition: float,
        max_pod_grace: int = 0,
        local_storage: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._thresholds = tuple(thresholds)
        self._transition = transition
        self._max_pod_grace = max_pod_grace
        self._local_storage = local_storage
        self._clock = clock
        self._memory = pressure.Memory()
        self._victim: tuple[Evictable, float] | None = None
        self._rests_until = self._measured_at = float("-inf")
        self._sentence = ""
        self._evictions = Number(
            "kubelet_evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal"
        )
        self._age = Histogram(
            "kubelet_eviction_stats_age_seconds",
            "Time between when stats are collected, and when pod is evicted based on those stats by "
            "eviction signal",
            "eviction_signal",
        )
        self.instruments: tuple[Instrument, ...] = (self._evictions, self._age)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eviction", daemon=True)
        self.pressures: frozenset[str] = frozenset()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                sentence = self.look()
            except Exception:
                # The last one who can: a defect must not leave the node without eviction.
                log.exception("Failed to look for pressure")
                continue
            if sentence != self._sentence:
                log.info("Looked for pressure state=%s", sentence)
                self._sentence = sentence

    def look(self) -> str:
        """One pass; what it came to, in one sentence."""
        now, seen = self._clock(), self._node.observe()
        judged = pressure.judge(self._memory, self._thresholds, seen, now, self._transition)
        self._memory = judged.memory
        if judged.conditions != self.pressures:
            self.pressures = judged.conditions
            self._node.conditions_changed()
        if self._waits(now):
            return f"waiting for the end of {self._name()}"
        if self._local_storage and now - self._measured_at >= LOCAL_STORAGE_SECONDS:
            self._measured_at = now
            over = self._end_overusers()
            if over:
                return f"evicted {', '.join(over)} for local storage"
        if not judged.due:
            return f"under {', '.join(sorted(self.pressures))}" if self.pressures else "no pressure"
        if now < self._rests_until:
            return f"short of {judged.due[0].resource}, nothing to evict"
        return self._act(judged.due[0], seen, now)

    def _waits(self, now: float) -> bool:
        if self._victim is None:
            return False
        record, since = self._victim
        if not record.emptied and now - since < CLEANUP_SECONDS:
            return True
        self._victim = None
        return False

    def _name(self) -> str:
        return full_name(self._victim[0].pod) if self._victim is not None else ""

    def _active(self) -> list[Evictable]:
        return [r for r in self._node.pods() if not r.finished and not r.ends and r.ending is None]

    def _act(self, threshold: Threshold, seen: Mapping[str, Observation], now: float) -> str:
        resource = threshold.resource
        self._node.tell("Warning", "EvictionThresholdMet", f"Attempting to reclaim {resource}")
        if threshold.condition == "DiskPressure":
            self._node.reclaim(threshold)
            if not pressure.met([threshold], self._node.observe(), reclaimed=True):
                return f"reclaimed {resource} of the node's own"
        records = {record.uid: record for record in self._active()}
        candidates = [
            Candidate(uid, r.pod, self._node.usage(r, resource, threshold.signal))
            for uid, r in records.items()
        ]
        for candidate in ranking.rank(resource, candidates):
            if resources.is_critical(candidate.pod):
                log.info("Kept critical pod pod=%s", full_name(candidate.pod))
                continue
            text = ranking.message(threshold, seen, candidate.pod, candidate.usage)
            record = records[candidate.uid]
            self._node.evict(record, Ending(ranking.REASON, text, self._grace(threshold, record.pod), text))
            self._evictions.add(threshold.signal)
            self._age.observe(self._clock() - now, threshold.signal)
            self._victim = (record, now)
            return f"evicted {full_name(record.pod)} for {resource}"
        self._rests_until = now + REST_SECONDS
        return f"short of {resource}, nothing to evict"

    def _grace(self, threshold: Threshold, pod: Object) -> float:
        if threshold.hard:
            return IMMEDIATE_GRACE
        own = pod["spec"].get("terminationGracePeriodSeconds")
        return float(self._max_pod_grace if own is None else min(self._max_pod_grace, int(own)))

    def _end_overusers(self) -> list[str]:
        """Every pod that exceeds a limit of its own on local storage; their names."""
        ended = []
        for record in self._active():
            if not ranking.bounded(record.pod) or resources.is_critical(record.pod):
                continue
            usage = self._node.usage(record, "ephemeral-storage")
            over = ranking.overused(record.pod, usage, self._node.volumes(record))
            if over is not None:
                self._node.evict(record, Ending(ranking.REASON, over.message, IMMEDIATE_GRACE))
                self._evictions.add(over.signal)
                ended.append(full_name(record.pod))
        return ended
