"""Which pods the node refuses, with upstream's words, and that two cannot both take the last place."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import NOW, pod

from kubelet_py.pods.admission import LATER, Gate, Totals, foreign, has_turn, refusal, requests, room_of
from kubelet_py.pods.model import Object, Waiting
from kubelet_py.pods.record import PodRecord

DONGLE = "example.com/dongle"
NODE: Object = {
    "metadata": {"name": "n1", "labels": {"disk": "ssd", "size": "4"}},
    "spec": {"taints": [{"key": "gone", "effect": "NoExecute"}, {"key": "soft", "effect": "NoSchedule"}]},
    "status": {"allocatable": {DONGLE: "4", "cpu": "64"}},
}
FREE = {"cpu": "2", "memory": "1Gi", "ephemeral-storage": "1Gi", "pods": "3"}
ANYWHERE = {"tolerations": [{"operator": "Exists"}]}
PORTS = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
AFFINITY = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
REFUSED = Waiting("NodeAffinity", AFFINITY)
ELSEWHERE = [{"key": "other", "operator": "Exists"}]
TAINTS = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"


def asking(**amounts: str) -> Object:
    body = pod(**ANYWHERE)
    body["spec"]["containers"][0]["resources"] = {"requests": amounts}
    return body


def listening(port: int, **more: Any) -> Object:
    body = pod(**ANYWHERE)
    body["spec"]["containers"][0]["ports"] = [{"hostPort": port, "containerPort": 80, **more}]
    return body


def affine(operator: str, key: str = "disk", *values: str) -> Object:
    term = {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return pod(affinity={"nodeAffinity": required}, **ANYWHERE)


def insufficient(name: str, wanted: int, used: int, capacity: int) -> Waiting:
    numbers = f"requested: {wanted}, used: {used}, capacity: {capacity}"
    return Waiting(f"OutOf{name}", f"Node didn't have enough resource: {name}, {numbers}")


CASES: list[tuple[str, Object, list[Object], Waiting | None]] = [
    ("an empty node takes it", pod(**ANYWHERE), [], None),
    ("all of the cpu", asking(cpu="2"), [], None),
    ("cpu and a bit", asking(cpu="2001m"), [], insufficient("cpu", 2001, 0, 2000)),
    ("cpu beside others", asking(cpu="1"), [asking(cpu="1500m")], insufficient("cpu", 1000, 1500, 2000)),
    ("no cpu on a full node", pod(**ANYWHERE), [asking(cpu="2")], None),
    ("memory", asking(memory="2Gi"), [], insufficient("memory", 2 << 30, 0, 1 << 30)),
    ("the disk", asking(**{"ephemeral-storage": "2Gi"}), [],
     insufficient("ephemeral-storage", 2 << 30, 0, 1 << 30)),
    ("a resource that nobody here counts", asking(**{"example.com/gpu": "1"}), [], None),
    ("one that the Node tells of", asking(**{DONGLE: "4"}), [], None),
    ("too much of it", asking(**{DONGLE: "3"}), [asking(**{DONGLE: "2"})], insufficient(DONGLE, 3, 2, 4)),
    ("pods before all else", asking(cpu="9"), [pod()] * 3, insufficient("pods", 1, 3, 3)),
    ("a free port", listening(80), [listening(81)], None),
    ("a taken port", listening(80), [listening(80)], Waiting("NodePorts", PORTS)),
    ("another protocol", listening(80), [listening(80, protocol="UDP")], None),
    ("other addresses", listening(80, hostIP="10.0.0.1"), [listening(80, hostIP="10.0.0.2")], None),
    ("any address", listening(80, hostIP="10.0.0.1"), [listening(80)], Waiting("NodePorts", PORTS)),
    ("its selector", pod(nodeSelector={"disk": "ssd"}, **ANYWHERE), [], None),
    ("not its selector", pod(nodeSelector={"disk": "hdd"}, **ANYWHERE), [], REFUSED),
    ("In", affine("In", "disk", "ssd", "x"), [], None),
    ("not In", affine("In", "disk", "x"), [], REFUSED),
    ("NotIn", affine("NotIn", "disk", "ssd"), [], REFUSED),
    ("Exists", affine("Exists", "nothing"), [], REFUSED),
    ("DoesNotExist", affine("DoesNotExist", "nothing"), [], None),
    ("Gt", affine("Gt", "size", "3"), [], None),
    ("Lt", affine("Lt", "size", "4"), [], REFUSED),
    ("Gt of what is no number", affine("Gt", "disk", "3"), [], REFUSED),
    ("a NoExecute taint", pod(), [], Waiting("TaintToleration", TAINTS)),
    ("tolerated by key", pod(tolerations=[{"key": "gone", "effect": "NoExecute"}]), [], None),
    ("tolerated elsewhere", pod(tolerations=ELSEWHERE), [], Waiting("TaintToleration", TAINTS)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "others", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_refusals(name: str, body: Object, others: list[Object], wanted: Waiting | None) -> None:
    taken = [requests(other) for other in others]
    assert refusal(body, requests(body), taken, NODE, room_of(NODE, FREE)) == wanted


@pytest.mark.parametrize(
    ("spec", "labels", "reason"),
    [
        ({"os": {"name": "linux"}}, {"kubernetes.io/os": "linux"}, None),
        ({}, {}, None),
        ({"os": {"name": "windows"}}, {}, "PodOSNotSupported"),
        ({}, {"kubernetes.io/os": "windows"}, "PodOSSelectorNodeLabelDoesNotMatch"),
    ],
)
def test_a_pod_for_another_system_is_refused(spec: Object, labels: Object, reason: str | None) -> None:
    body = pod(**ANYWHERE, **spec)
    body["metadata"]["labels"] = labels
    found = foreign(body)
    assert (found.reason if found else None) == reason
    own = record("own", body)
    gate = Gate(
        records=lambda: [own], held=set, node=lambda: NODE, allocatable=FREE, totals=lambda totals: None
    )
    assert gate.admit(own) == found


def gate_of(*records: PodRecord, **more: Any) -> Gate:
    return Gate(
        records=lambda: records, held=set, node=lambda: NODE, allocatable=FREE, totals=lambda t: None, **more
    )


def test_a_label_that_the_scheduler_saw_first_is_asked_for() -> None:
    labelled = {**NODE, "metadata": {"name": "n1", "labels": {"disk": "hdd"}}}
    for fresh, wanted in ((labelled, None), (NODE, REFUSED), (None, REFUSED)):
        own = record("p", pod(nodeSelector={"disk": "hdd"}, **ANYWHERE))
        asked: list[str] = []

        def ask(fresh: Object | None = fresh, asked: list[str] = asked) -> Object | None:
            asked.append("node")
            return fresh

        assert gate_of(own, fresh_node=ask).admit(own) == wanted
        assert asked == ["node"] and (own.requests is not None) == (wanted is None)
    own = record("p", pod(nodeSelector={"disk": "ssd"}, **ANYWHERE))
    assert gate_of(own, fresh_node=lambda: pytest.fail("it was asked")).admit(own) is None


def test_the_gate_counts_what_somebody_else_told_the_api_that_the_node_has() -> None:
    first, second = (record(name, asking(**{DONGLE: "3"})) for name in ("first", "second"))
    assert gate_of(first, second).admit(first) is None
    assert gate_of(first, second).admit(second) == insufficient(DONGLE, 3, 3, 4)
    more = {**NODE, "status": {"allocatable": {DONGLE: "6"}}}
    assert gate_of(first, second, fresh_node=lambda: more).admit(second) is None, "the scheduler knew it"


def test_requests_are_the_sum_or_the_largest_init_container_with_the_sidecars() -> None:
    body = pod("a", "b", init=["i", {"name": "s", "restartPolicy": "Always"}, "late"])
    sizes = {"a": "100m", "b": "200m", "i": "1", "s": "50m", "late": "300m"}
    for container in body["spec"]["containers"] + body["spec"]["initContainers"]:
        container["resources"] = {"requests": {"cpu": sizes[container["name"]]}}
    assert requests(body).amounts == {"cpu": 1000}, "the first init container runs before the sidecar"
    body["spec"]["initContainers"][0]["resources"] = {}
    assert requests(body).amounts == {"cpu": 350}, "the main containers or the late one, with the sidecar"
    body["spec"]["overhead"] = {"cpu": "10m"}
    assert requests(body).amounts == {"cpu": 360}


def test_limits_stand_in_for_requests() -> None:
    body = pod()
    body["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}, "requests": {"memory": "1Mi"}}
    assert requests(body).amounts == {"cpu": 1000, "memory": 1 << 20}


def record(name: str, body: Object) -> PodRecord:
    body = {**body, "metadata": {**body["metadata"], "name": name, "uid": name}}
    return PodRecord(body, NOW)


def test_the_gate_counts_those_inside_and_says_what_burstable_pods_ask_for() -> None:
    told: list[Totals] = []
    old, first, second = (record(name, asking(cpu="800m")) for name in ("old", "first", "second"))
    records = [old, first, second]
    gate = Gate(
        records=lambda: records,
        held=lambda: {"old"},
        node=lambda: NODE,
        allocatable=FREE,
        totals=told.append,
    )
    assert gate.admit(first) is None, "beside what the runtime already holds"
    refused = gate.admit(second)
    assert refused is not None and refused.message.endswith("requested: 800, used: 1600, capacity: 2000")
    assert gate.admit(old) is None, "it runs already: it stays, whatever the numbers say"
    first.finished = True
    gate.released(first)
    assert gate.admit(second) is None, "the place is free again"
    assert [totals.burstable_cpu for totals in told] == [1600, 800, 1600]


def static(uid: str, name: str = "apiserver", source: str = "file", **told: Any) -> PodRecord:
    """A pod of a manifest; `told`: what its record says."""
    body = pod(**ANYWHERE)
    body["metadata"] |= {"name": name, "uid": uid, "annotations": {"kubernetes.io/config.source": source}}
    made = PodRecord(body, NOW)
    for key, value in told.items():
        setattr(made, key, value)
    return made


IN = requests(pod())
TURNS = [
    ("nobody else has its name", [static("old", "etcd", requests=IN)], set(), True),
    ("its manifest was edited: the former one runs", [static("old", requests=IN)], set(), False),
    ("the former one still ends", [static("old", requests=IN, gone=True, released=True)], set(), False),
    ("the former one runs since an earlier agent", [static("old")], {"old"}, False),
    ("another manifest has the same name and came first", [static("old")], set(), False),
    ("that one is gone before its turn", [static("old", gone=True)], set(), True),
    ("that one was refused", [static("old", finished=True)], set(), True),
    ("that one ran to its end", [static("old", requests=IN, finished=True, released=True)], set(), True),
    ("it ends, and still holds something", [static("old", requests=IN, finished=True)], set(), False),
    ("a pod of the API has the same name", [static("old", source="api", requests=IN)], set(), True),
]


@pytest.mark.parametrize(("before", "held", "turn"), [row[1:] for row in TURNS], ids=[r[0] for r in TURNS])
def test_of_static_pods_of_one_name_one_runs_at_a_time(
    before: list[PodRecord], held: set[str], turn: bool
) -> None:
    new = static("new")
    assert has_turn(new, [*before, new], held) == turn


def test_who_came_later_waits_but_not_who_came_first() -> None:
    first, second = static("first"), static("second")
    assert has_turn(first, [first, second], set()) and not has_turn(second, [first, second], set())
    second.requests = IN
    assert not has_turn(first, [first, second], set()), "the later one runs already"


def test_the_gate_has_an_edited_manifests_pod_wait_for_the_former_one() -> None:
    old, new = static("old"), static("new")
    records = [old]
    gate = Gate(
        records=lambda: records, held=set, node=lambda: NODE, allocatable=FREE, totals=lambda totals: None
    )
    assert gate.admit(old) is None
    old.gone = True
    records.append(new)
    assert gate.admit(new) is LATER and new.requests is None
    records.remove(old)
    assert gate.admit(new) is None and new.requests is not None
