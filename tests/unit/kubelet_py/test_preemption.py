"""Whom a critical pod pushes out: as few and as cheap pods as possible, and never its betters."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import pod

from kubelet_py.pods import preemption
from kubelet_py.pods.admission import LATER, Gate, requests
from kubelet_py.pods.model import ANNOTATION_CONFIG_SOURCE, Object, Waiting
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.resources import SYSTEM_CRITICAL

MI = 1 << 20


def asking(
    uid: str, cpu: str = "", memory: str = "", *, guaranteed: bool = False, priority: int = 0
) -> Object:
    body = pod(priority=priority)
    table = {key: value for key, value in (("cpu", cpu), ("memory", memory)) if value}
    tables = {"requests": table, "limits": table} if guaranteed else {"requests": table}
    body["spec"]["containers"][0]["resources"] = tables
    body["metadata"]["uid"] = uid
    return body


CRITICAL = asking("critical", priority=SYSTEM_CRITICAL)
CASES: list[tuple[str, list[Object], dict[str, int], set[str]]] = [
    ("nothing is missing", [asking("a", "1")], {}, set()),
    ("BestEffort gives no cpu, Burstable does", [asking("be"), asking("bu", "1")], {"cpu": 500}, {"bu"}),
    ("BestEffort first where pods are missing", [asking("bu", "1"), asking("be")], {"pods": 1}, {"be"}),
    ("Burstable before Guaranteed", [asking("g", "1", "1Mi", guaranteed=True), asking("bu", "1")],
     {"cpu": 1000}, {"bu"}),
    ("Guaranteed when the others are not enough",
     [asking("g", "2", "1Mi", guaranteed=True), asking("bu", "1")], {"cpu": 2500}, {"g", "bu"}),
    ("Guaranteed alone when that is enough",
     [asking("g", "2", "1Mi", guaranteed=True), asking("bu", "500m")], {"cpu": 1500}, {"g"}),
    ("the smallest that is enough",
     [asking("big", "4", "4Mi"), asking("fit", "1", "1Mi"), asking("no", "10m")], {"cpu": 1000}, {"fit"}),
    ("two when one is not enough", [asking("a", "1"), asking("b", "1"), asking("c", "100m")],
     {"cpu": 2000}, {"a", "b"}),
    ("memory and cpu at once",
     [asking("a", "1", "100Mi"), asking("b", "1", "1Mi"), asking("c", "10m", "100Mi")],
     {"cpu": 1000, "memory": 100 * MI}, {"a"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "bodies", "missing", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_victims(name: str, bodies: list[Object], missing: dict[str, int], wanted: set[str]) -> None:
    pods = [(body["metadata"]["uid"], body, requests(body)) for body in bodies]
    assert preemption.victims(CRITICAL, pods, missing) == wanted


def test_when_all_of_them_are_not_enough_nobody_goes() -> None:
    body = asking("a", "1")
    with pytest.raises(preemption.NoVictims, match=r"reclaim resources: \[\(res: cpu, q: 500\), \]"):
        preemption.victims(CRITICAL, [("a", body, requests(body))], {"cpu": 1500})


@pytest.mark.parametrize(
    ("mine", "theirs", "may"),
    [
        (0, -10, False),
        (SYSTEM_CRITICAL, 0, True),
        (SYSTEM_CRITICAL, SYSTEM_CRITICAL, False),
        (SYSTEM_CRITICAL + 1000, SYSTEM_CRITICAL, True),
    ],
)
def test_who_may_push_whom(mine: int, theirs: int, may: bool) -> None:
    assert preemption.preemptable(pod(priority=mine), pod(priority=theirs)) is may


def static(**spec: Any) -> Object:
    body = pod(**spec)
    body["metadata"]["annotations"] = {ANNOTATION_CONFIG_SOURCE: "file"}
    return body


def test_a_static_pod_pushes_others_out_but_is_not_pushed() -> None:
    assert preemption.preemptable(static(), pod())
    assert not preemption.preemptable(static(), static())


class Door:
    """A gate for a node of two cores, with its records."""

    def __init__(self, *bodies: Object, **options: Any) -> None:
        self.records = [PodRecord(body, 0.0) for body in bodies]
        node: Object = {"metadata": {"name": "n"}, "spec": {}}
        self.gate = Gate(
            records=lambda: self.records,
            held=set,
            node=lambda: node,
            allocatable={"cpu": "2", "memory": "1Gi", "pods": "3"},
            totals=lambda totals: None,
            preempt=lambda record: setattr(record, "ending", preemption.PREEMPTED),
            **options,
        )
        self.answers = [self.gate.admit(record) for record in self.records]

    def admit(self, body: Object) -> tuple[PodRecord, Waiting | None]:
        record = PodRecord(body, 0.0)
        self.records.append(record)
        return record, self.gate.admit(record)


def test_a_critical_pod_waits_for_its_victims_and_then_runs() -> None:
    door = Door(asking("a", "1500m"), asking("b", "100m"))
    assert door.answers == [None, None]
    record, answer = door.admit(asking("c", "1", priority=SYSTEM_CRITICAL))
    assert answer is LATER
    assert [r.ending for r in door.records] == [preemption.PREEMPTED, None, None]
    assert door.gate.admit(record) is LATER, "its victim still runs"
    assert [r.ending for r in door.records] == [preemption.PREEMPTED, None, None], "and nobody else goes"
    door.records[0].finished = True
    door.gate.released(door.records[0])
    assert door.gate.admit(record) is None


def test_an_ordinary_pod_is_refused() -> None:
    door = Door(asking("a", "1500m"))
    _, answer = door.admit(asking("c", "1"))
    assert answer is not None and answer.reason == "OutOfcpu"
    assert door.records[0].ending is None


def test_what_is_missing_besides_amounts_cannot_be_preempted() -> None:
    door = Door(asking("a", "2"))
    critical = asking("c", "1", priority=SYSTEM_CRITICAL)
    critical["spec"]["nodeSelector"] = {"disk": "ssd"}
    _, answer = door.admit(critical)
    assert answer is not None and answer.reason == "OutOfcpu"
    assert door.records[0].ending is None


def test_where_nobody_can_go_the_admission_fails_and_says_so() -> None:
    door = Door(asking("a", "2", priority=SYSTEM_CRITICAL))
    _, answer = door.admit(asking("c", "1", priority=SYSTEM_CRITICAL))
    assert answer is not None and answer.reason == "UnexpectedAdmissionError"
    assert answer.message.startswith(
        "Unexpected error while attempting to recover from admission failure: preem"
    )


PRESSED: list[tuple[str, Object, set[str], bool]] = [
    ("BestEffort under memory pressure", pod(), {"MemoryPressure"}, False),
    ("Burstable under memory pressure", asking("a", "1m"), {"MemoryPressure"}, True),
    ("tolerated", pod(tolerations=[{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]),
     {"MemoryPressure"}, True),
    ("Burstable under disk pressure", asking("a", "1m"), {"DiskPressure"}, False),
    ("under both", asking("a", "1m"), {"DiskPressure", "MemoryPressure"}, False),
    ("critical under all", asking("a", priority=SYSTEM_CRITICAL), {"DiskPressure", "MemoryPressure"}, True),
    ("no pressure", pod(), set(), True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "pressures", "runs"), PRESSED, ids=[case[0] for case in PRESSED])
def test_admission_under_pressure(name: str, body: Object, pressures: set[str], runs: bool) -> None:
    _, answer = Door(pressures=lambda: pressures).admit(body)
    if runs:
        assert answer is None
    else:
        shown = " ".join(sorted(pressures))
        assert answer == Waiting("Evicted", f"The node had condition: [{shown}]. ")


def test_a_node_that_shuts_down_refuses() -> None:
    _, answer = Door(shutting_down=lambda: True).admit(pod())
    assert answer == Waiting("NodeShutdown", "Pod was rejected as the node is shutting down.")


def test_a_pod_that_is_over_takes_its_place_until_it_has_gone() -> None:
    door = Door(asking("a", "2"))
    door.records[0].finished = True
    assert door.admit(asking("b", "1"))[1] is not None, "it still stops"
    door.gate.released(door.records[0])
    assert door.admit(asking("c", "1"))[1] is None
