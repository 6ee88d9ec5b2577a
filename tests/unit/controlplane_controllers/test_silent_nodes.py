"""What follows from a node's silence: whose silence counts, who is sent away, which pods nobody else ends."""

from __future__ import annotations

import math
from typing import Any

import pytest

from controlplane.controllers.node_lifecycle import NodeLifecycle, heartbeat, unknown_conditions
from controlplane.controllers.node_taints import OUT_OF_SERVICE, change_taints
from controlplane.controllers.node_zones import ZONE, Evictions, by_zone, state
from controlplane.controllers.pod_gc import reason_to_go, too_many
from controlplane.main import parse_options
from controlplane.node_deadlines import Deadlines, Rates
from kubeclient.errors import ServerUnavailable
from kubeclient.resources import LEASES, NODES, PODS, Resource

Object = dict[str, Any]


def node(name: str = "n1", ready: str = "True", beat: str = "1", **labels: str) -> Object:
    conditions = [{"type": "Ready", "status": ready, "lastHeartbeatTime": beat}]
    return {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": {"conditions": conditions}}


def lease(renewed: str) -> Object:
    return {"spec": {"renewTime": renewed}}


def test_the_lease_and_the_status_are_signs_of_life() -> None:
    assert heartbeat(lease("1")) != heartbeat(lease("2"))
    assert heartbeat(node(beat="1")) != heartbeat(node(beat="2"))
    assert heartbeat(node(ready="Unknown")) == heartbeat(node()), "what we wrote ourselves is none"
    assert heartbeat({"metadata": {}}) == heartbeat(None) == ""


def test_what_is_said_of_a_silent_node() -> None:
    present = [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "False"}]
    told = {c["type"]: (c["status"], c["reason"]) for c in unknown_conditions(present, "now")}
    never = ("Unknown", "NodeStatusNeverUpdated")
    pressures = dict.fromkeys(("MemoryPressure", "DiskPressure", "PIDPressure"), never)
    assert told == {"Ready": ("Unknown", "NodeStatusUnknown"), **pressures}
    assert unknown_conditions(unknown_conditions([], "now"), "later") == []


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        ([True], "normal"),
        ([True, False, False], "normal"),  # two are never a disruption
        ([True, False, False, False], "partial"),
        ([True, True, True, False, False, False], "normal"),  # half of them: less than 0.55
        ([False], "full"),
        ([False, False, False], "full"),
    ],
)
def test_a_zones_state(ready: list[bool], expected: str) -> None:
    assert state(ready, 0.55) == expected


def test_zones_are_told_by_their_labels() -> None:
    nodes = [(node(), True), (node(**{ZONE: "a"}), False), (node(**{ZONE: "a"}), True)]
    assert by_zone(nodes) == {"/": [True], "/a": [False, True]}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_silent_nodes_are_tainted_one_after_another() -> None:
    clock = Clock()
    evictions = Evictions(Rates(), 40.0, clock)
    ready = [True, True, False, False]
    assert evictions.wait("a", ready) == 0.0
    evictions.took("a")
    assert evictions.wait("a", ready) == 10.0
    assert evictions.wait("b", ready) == 0.0, "each zone has its own turn"
    clock.now += 10.0
    assert evictions.wait("a", ready) == 0.0
    assert evictions.wait("a", [True] + [False] * 3) == math.inf, "a small zone that is mostly silent"
    assert evictions.wait("a", [True] * 20 + [False] * 40) == 90.0, "a large one"


def test_nobody_is_sent_away_while_no_node_is_ready_and_a_while_after() -> None:
    clock = Clock()
    evictions = Evictions(Rates(), 40.0, clock)
    assert evictions.look({"a": [True, False], "b": [False]})
    assert evictions.wait("a", [True, False]) == 0.0
    assert not evictions.look({"a": [False, False], "b": [False]})
    assert evictions.look({"a": [True, False], "b": [False]})
    assert evictions.wait("a", [True, False]) == 40.0
    clock.now += 40.0
    assert evictions.wait("a", [True, False]) == 0.0


class Cluster:
    """Informers, API and events in one: objects by kind, and what was patched."""

    def __init__(self) -> None:
        self.objects: dict[Resource, dict[str, Object]] = {NODES: {}, LEASES: {}, PODS: {}}
        self.handlers: dict[Resource, Any] = {}
        self.patched: list[tuple[str, Object]] = []
        self.failing = 0

    def of(self, resource: Resource, handler: Any = None) -> Store:
        self.handlers[resource] = handler
        return Store(self.objects[resource])

    def show(self, resource: Resource, obj: Object) -> None:
        old = self.objects[resource].get(obj["metadata"]["name"])
        self.objects[resource][obj["metadata"]["name"]] = obj
        if self.handlers[resource]:
            self.handlers[resource]("MODIFIED" if old else "ADDED", obj, old)

    def patch(self, resource: Resource, name: str, body: Object, *place: str, **how: str) -> Object:
        if resource == PODS and self.failing:
            self.failing -= 1
            raise ServerUnavailable.unreachable("down")
        self.patched.append((name, body))
        found = self.objects[resource][name]
        return {**found, "status": body.get("status") or found.get("status"), "spec": found["spec"]}

    def event(self, *_: Any) -> None:
        return


class Store:
    def __init__(self, objects: dict[str, Object]) -> None:
        self._objects = objects

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self._objects.get(name)

    def list(self) -> list[Object]:
        return [*self._objects.values()]


def test_a_node_is_unknown_forty_seconds_after_its_lease_was_renewed() -> None:
    """Counted from the renewal, not from the look that noticed it; and its pods are marked, be it later."""
    clock, cluster = Clock(), Cluster()
    lifecycle = NodeLifecycle(cluster, cluster, cluster, clock=clock)  # type: ignore[arg-type]
    metadata = {"name": "n1", "namespace": "kube-node-lease"}
    running = pod(phase="Running") | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    running["metadata"] |= {"namespace": "default", "uid": "u"}
    found = node()
    found["metadata"]["resourceVersion"] = "1"
    cluster.show(NODES, found)
    cluster.show(NODES, node("n2"))
    cluster.show(PODS, running)
    cluster.show(LEASES, {"metadata": metadata, **lease("1")})
    clock.now += 9.0
    cluster.show(LEASES, {"metadata": metadata, **lease("2")})
    cluster.show(LEASES, {"metadata": {**metadata, "namespace": "elsewhere"}, **lease("3")})
    clock.now += 4.0
    lifecycle.sync("/n1")
    clock.now += 35.9
    lifecycle.sync("/n1")
    assert cluster.patched == []
    clock.now += 0.2
    cluster.failing = 1
    with pytest.raises(ServerUnavailable):
        lifecycle.sync("/n1")
    cluster.show(NODES, node(ready="Unknown") | {"metadata": found["metadata"]})
    lifecycle.sync("/n1")
    names = [name for name, _ in cluster.patched]
    assert names == ["n1", "p", "n1"], "conditions, then the pod at the second try, then taints"
    assert [t["effect"] for t in cluster.patched[2][1]["spec"]["taints"]] == ["NoSchedule", "NoExecute"]


def test_without_leave_to_evict_new_pods_are_kept_away_all_the_same() -> None:
    both = change_taints([], {"Ready": "Unknown"}, "now")
    assert both is not None and [t["effect"] for t in both] == ["NoSchedule", "NoExecute"]
    assert change_taints(both, {"Ready": "Unknown"}, "later", evict=False) == both[:1]


def pod(name: str = "p", bound: str = "n1", *, grace: int | None = None, **status: str) -> Object:
    metadata: Object = {"name": name, "creationTimestamp": status.pop("created", "1")}
    if grace is not None:
        metadata |= {"deletionTimestamp": "now", "deletionGracePeriodSeconds": grace}
    return {"metadata": metadata, "spec": {"nodeName": bound} if bound else {}, "status": status}


def tainted(ready: str) -> Object:
    found = node(ready=ready)
    found["spec"]["taints"] = [{"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}]
    return found


@pytest.mark.parametrize(
    ("found", "where", "goes"),
    [
        (pod(), node(), False),
        (pod(grace=30), node(ready="Unknown"), False),  # only its node can say that it ended
        (pod(), None, True),
        (pod(grace=30), None, True),
        (pod(grace=0), None, False),  # done already: a finalizer holds the object
        (pod(bound=""), None, False),
        (pod(bound="", grace=30), None, True),
        (pod(grace=30), tainted("Unknown"), True),
        (pod(grace=30), tainted("True"), False),  # the node contradicts
        (pod(), tainted("Unknown"), False),  # it is evicted first
    ],
)
def test_which_pods_nobody_else_will_delete(found: Object, where: Object | None, goes: bool) -> None:
    assert bool(reason_to_go(found, where)) is goes


def test_of_too_many_finished_pods_the_evicted_and_the_oldest_go_first() -> None:
    pods = [
        pod("old", phase="Failed", created="1"),
        pod("new", phase="Succeeded", created="3"),
        pod("evicted", phase="Failed", created="2", reason="Evicted"),
        pod("runs", phase="Running", created="0"),
    ]
    assert [p["metadata"]["name"] for p in too_many(pods, 1)] == ["evicted", "old"]
    assert too_many(pods, 3) == too_many(pods, 0) == []


def test_the_flags_are_upstreams() -> None:
    base = ["--config-dir=/c", "--data-dir=/d"]
    assert parse_options(base).nodes == Deadlines()
    given = [
        "--node-monitor-grace-period=1m30s",
        "--node-monitor-period=1s",
        "--node-startup-grace-period=2m",
        "--node-eviction-rate=2",
        "--secondary-node-eviction-rate=0.5",
        "--unhealthy-zone-threshold=0.3",
        "--large-cluster-size-threshold=10",
        "--default-not-ready-toleration-seconds=7",
        "--default-unreachable-toleration-seconds=8",
        "--terminated-pod-gc-threshold=9",
    ]
    found = parse_options(base + given)
    assert found.nodes == Deadlines(90.0, 120.0, 1.0, Rates(2.0, 0.5, 0.3, 10))
    assert (found.server.not_ready_seconds, found.server.unreachable_seconds) == (7, 8)
    assert found.kept_finished_pods == 9


@pytest.mark.parametrize(
    "flag", ["--node-monitor-period=5", "--node-eviction-rate=-1", "--default-not-ready-toleration-seconds=x"]
)
def test_flags_that_make_no_sense_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(["--config-dir=/c", "--data-dir=/d", flag])
    assert ended.value.code == 2
    assert flag.partition("=")[0] in capsys.readouterr().err
