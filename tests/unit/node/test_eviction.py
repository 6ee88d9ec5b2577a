"""One look after the other: what the node reclaims, whom it ends, and whom it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubelet_py.node.eviction import EvictionManager
from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import Usage
from kubelet_py.node.thresholds import IMAGE_FS, MEMORY, NODE_FS, Amount, Threshold
from kubelet_py.pods.model import ANNOTATION_CONFIG_SOURCE, Ending, Object

HARD = Threshold(MEMORY, Amount(100))
SOFT = Threshold(MEMORY, Amount(100), 10.0)
DISK = Threshold(NODE_FS, Amount(100))


@dataclass
class Record:
    pod: Object
    usage: Usage = field(default_factory=Usage)
    volumes: Mapping[str, int] = field(default_factory=dict)
    by_signal: Mapping[str, Usage] = field(default_factory=dict)
    finished: bool = False
    emptied: bool = False
    ends: bool = False
    ending: Ending | None = None

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


def record(name: str, memory: int, *, static: bool = False, **spec: Any) -> Record:
    annotations = {ANNOTATION_CONFIG_SOURCE: "file"} if static else {}
    metadata = {"name": name, "namespace": "d", "uid": name, "annotations": annotations}
    pod = {"metadata": metadata, "spec": {"containers": [{"name": "c"}], **spec}}
    return Record(pod, Usage(memory=memory, disk=memory))


class Fake:
    """A node whose signals are numbers in a table; implements eviction.Node."""

    def __init__(self, *records: Record) -> None:
        self.records = list(records)
        self.available = {MEMORY: 1000, NODE_FS: 1000}
        self.frees = 0  # what one reclaim gives
        self.reclaims = self.changes = 0
        self.told: list[str] = []
        self.now = 0.0

    def observe(self) -> Mapping[str, Observation]:
        return {signal: Observation(left, 1000) for signal, left in self.available.items()}

    def pods(self) -> Sequence[Record]:
        return self.records

    def usage(self, record: Record, resource: str, signal: str = "") -> Usage:
        return record.by_signal.get(signal, record.usage)

    def volumes(self, record: Record) -> Mapping[str, int]:
        return record.volumes

    def reclaim(self, threshold: Threshold) -> None:
        self.reclaims += 1
        self.available[threshold.signal] += self.frees

    def evict(self, record: Record, ending: Ending) -> None:
        record.ending = ending

    def tell(self, kind: str, reason: str, message: str) -> None:
        self.told.append(f"{kind} {reason} {message}")

    def conditions_changed(self) -> None:
        self.changes += 1

    def manager(self, *thresholds: Threshold, **options: Any) -> EvictionManager:
        return EvictionManager(
            self, thresholds, clock=lambda: self.now, **{"transition": 0.0, "max_pod_grace": 7} | options
        )

    def evicted(self) -> list[str]:
        return [r.uid for r in self.records if r.ending is not None]


def test_one_pod_at_a_time_the_greediest_first_and_the_next_when_it_has_gone() -> None:
    node = Fake(record("small", 10), record("big", 90), record("other", 50))
    manager = node.manager(HARD)
    assert manager.look() == "no pressure"
    node.available[MEMORY] = 50
    assert manager.look() == "evicted big_d(big) for memory"
    assert node.told == ["Warning EvictionThresholdMet Attempting to reclaim memory"]
    assert (manager.pressures, node.changes) == ({"MemoryPressure"}, 1)
    ending = node.records[1].ending
    assert ending is not None and (ending.reason, ending.grace) == ("Evicted", 1.0)
    assert ending.message == ending.disruption
    assert ending.message.startswith("The node was low on resource: memory. Threshold quantity: 100, ")
    assert manager.look() == "waiting for the end of big_d(big)"
    node.records[1].emptied = node.records[1].finished = True
    assert manager.look() == "evicted other_d(other) for memory"
    node.records[2].emptied = True
    node.available[MEMORY], node.now = 500, 1.0
    assert manager.look() == "no pressure"
    assert node.evicted() == ["big", "other"]
    assert node.changes == 2
    evictions, age = (each.rows() for each in manager.instruments)
    assert evictions == [({"eviction_signal": "memory.available"}, 2)]
    assert [(labels, found.count) for labels, found in age] == [({"eviction_signal": "memory.available"}, 2)]


def test_a_pod_that_does_not_end_is_waited_for_thirty_seconds() -> None:
    node = Fake(record("deaf", 90), record("next", 10))
    manager = node.manager(HARD)
    node.available[MEMORY] = 50
    manager.look()
    node.now = 29.0
    assert manager.look().startswith("waiting for the end of deaf")
    node.now = 30.0
    assert manager.look() == "evicted next_d(next) for memory"


def test_static_and_critical_pods_stay() -> None:
    node = Fake(record("static", 900, static=True), record("critical", 800, priority=2_000_000_000))
    manager = node.manager(HARD)
    node.available[MEMORY] = 1
    assert manager.look() == "short of memory, nothing to evict"
    assert manager.look() == "short of memory, nothing to evict"
    assert len(node.told) == 1, "and it rests a while before it tries again"
    node.records.append(record("small", 1))
    node.now = 10.0
    assert manager.look() == "evicted small_d(small) for memory"


def test_pods_that_end_or_are_over_are_no_candidates() -> None:
    node = Fake(record("over", 90), record("deleted", 80), record("small", 1))
    node.records[0].finished = node.records[1].ends = True
    manager = node.manager(HARD)
    node.available[MEMORY] = 1
    assert manager.look() == "evicted small_d(small) for memory"


def test_a_soft_threshold_gives_the_lesser_grace_after_its_period() -> None:
    node = Fake(record("a", 90, terminationGracePeriodSeconds=5), record("b", 10))
    manager = node.manager(SOFT)
    node.available[MEMORY] = 50
    assert manager.look() == "under MemoryPressure"
    node.now = 10.0
    manager.look()
    node.records[0].emptied = True
    manager.look()
    graces = [r.ending.grace for r in node.records if r.ending is not None]
    assert graces == [5.0, 7.0], "the pod's own, or evictionMaxPodGracePeriod"


def test_the_node_gives_its_own_before_it_takes_a_pods_disk() -> None:
    node = Fake(record("a", 90))
    node.available[NODE_FS], node.frees = 50, 100
    manager = node.manager(DISK)
    assert manager.look() == "reclaimed ephemeral-storage of the node's own"
    assert (node.reclaims, node.evicted()) == (1, [])
    node.available[NODE_FS], node.frees = 50, 10
    assert manager.look() == "evicted a_d(a) for ephemeral-storage"
    assert node.reclaims == 2


def test_the_pod_goes_that_has_most_on_the_disk_that_is_short() -> None:
    logger, writer = record("logger", 0), record("writer", 0)
    logger.by_signal = {NODE_FS: Usage(disk=50), IMAGE_FS: Usage(disk=0)}
    writer.by_signal = {NODE_FS: Usage(disk=10), IMAGE_FS: Usage(disk=90)}
    node = Fake(logger, writer)
    node.available[NODE_FS] = 50
    manager = node.manager(DISK)
    assert manager.look() == "evicted logger_d(logger) for ephemeral-storage"
    node = Fake(record("other", 0), writer)
    node.available[IMAGE_FS] = 50
    manager = node.manager(Threshold(IMAGE_FS, Amount(100)))
    assert manager.look() == "evicted writer_d(writer) for ephemeral-storage"


def test_memory_is_not_reclaimed_from_the_disk() -> None:
    node = Fake(record("a", 90))
    node.available[MEMORY] = 50
    node.manager(HARD).look()
    assert node.reclaims == 0


def test_a_pod_over_its_own_limit_goes_without_any_pressure() -> None:
    volume = {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "10"}}]}
    node = Fake(record("full", 1, **volume), record("fine", 1, **volume))
    node.records[0].volumes, node.records[1].volumes = {"v": 11}, {"v": 10}
    manager = node.manager()
    assert manager.look() == "evicted full_d(full) for local storage"
    ending = node.records[0].ending
    assert ending == Ending("Evicted", 'Usage of EmptyDir volume "v" exceeds the limit "10". ', 1.0)
    node.records[1].volumes = {"v": 11}
    assert manager.look() == "no pressure", "measured every ten seconds"
    node.now = 10.0
    assert manager.look() == "evicted fine_d(fine) for local storage"


def test_local_storage_is_not_measured_where_it_is_switched_off() -> None:
    volume = {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "10"}}]}
    node = Fake(record("full", 1, **volume))
    node.records[0].volumes = {"v": 11}
    assert node.manager(local_storage=False).look() == "no pressure"
