"""Who has to go so that a pod of higher priority fits, and who is spared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from controlplane.scheduler.filters import NodeView, Requests, node_view, pod_requests
from controlplane.scheduler.pod_affinity import NO_RULES, Placed
from controlplane.scheduler.preemption import Sacrifice, choose, waits_for_ends
from controlplane.scheduler.preemptor import Preemptor
from controlplane.scheduler.snapshot import Snapshot, decide, obstacles
from controlplane.scheduler.volumes import Storage

Object = dict[str, Any]
LOW, EQUAL = 0, 100


def node(name: str, cpu: str = "4", taint: str | None = None) -> Object:
    taints = [{"key": taint, "effect": "NoSchedule"}] if taint else []
    allocatable = {"cpu": cpu, "memory": "8Gi", "pods": "110"}
    return {"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"allocatable": allocatable}}


def there(
    name: str, place: str, priority: int, cpu: int = 1000, *, started: float = 0.0, **labels: str
) -> Placed:
    requests = Requests({"cpu": cpu}, frozenset())
    return Placed(place, requests, "", "n", labels, NO_RULES, False, priority, started, name, name)


def wants(cpu: str, priority: int = 100, **spec: Any) -> Object:
    containers = [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]
    body = {"containers": containers, "priority": priority, **spec}
    return {"metadata": {"name": "p", "namespace": "n", "uid": "p"}, "spec": body}


def budget(allowed: int, **labels: str) -> Object:
    metadata = {"name": "b", "namespace": "n", "uid": "b"}
    return {
        "metadata": metadata,
        "spec": {"selector": {"matchLabels": labels}},
        "status": {"disruptionsAllowed": allowed},
    }


def sacrifice(
    pod: Object, nodes: Sequence[Object], placed: Sequence[Placed], budgets: Sequence[Object] = ()
) -> Sacrifice | None:
    snapshot = Snapshot({each["metadata"]["name"]: each for each in nodes}, placed, {}, Storage())
    requests = pod_requests(pod)
    verdict = decide(pod, requests, "", snapshot)
    assert verdict.chosen is None
    priority = int(pod["spec"]["priority"])
    return choose(
        priority, verdict.refused, placed, budgets, lambda n, p: obstacles(pod, requests, snapshot, n, p)
    )


def names(found: Sacrifice | None) -> tuple[str, list[str]] | None:
    return None if found is None else (found.node, sorted(victim.name for victim in found.victims))


def test_as_many_as_possible_are_spared_those_of_higher_priority_first() -> None:
    placed = [there("a", "n1", 10), there("b", "n1", 20), there("c", "n1", 30), there("d", "n1", 5)]
    assert names(sacrifice(wants("1"), [node("n1")], placed)) == ("n1", ["d"])
    assert names(sacrifice(wants("2"), [node("n1")], placed)) == ("n1", ["a", "d"])


def test_equals_and_betters_stay() -> None:
    placed = [there("a", "n1", 100, 2000), there("b", "n1", 200, 2000)]
    assert sacrifice(wants("1"), [node("n1")], placed) is None


def test_a_node_where_nobody_s_end_helps_is_not_touched() -> None:
    placed = [there("a", "n1", 0, 4000), there("b", "n2", 0, 4000)]
    nodes = [node("n1", taint="mine"), node("n2")]
    assert names(sacrifice(wants("1"), nodes, placed)) == ("n2", ["b"])
    assert sacrifice(wants("8"), [node("n1")], placed) is None


def test_the_node_where_least_is_lost() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    placed = [there("a", "n1", 50, 4000), there("b", "n2", 10, 4000), there("c", "n3", 40, 4000)]
    assert names(sacrifice(wants("1"), nodes, placed)) == ("n2", ["b"])
    two = [there("a", "n1", 10, 2000), there("b", "n1", 10, 2000), there("c", "n2", 10, 4000)]
    assert names(sacrifice(wants("4"), nodes[:2], two)) == ("n2", ["c"])
    young = [there("a", "n1", 10, 4000, started=1.0), there("b", "n2", 10, 4000, started=2.0)]
    assert names(sacrifice(wants("1"), nodes[:2], young)) == ("n2", ["b"]), "the younger goes"


def test_budgets_are_broken_last() -> None:
    placed = [there("a", "n1", 10, 4000, app="web"), there("b", "n2", 50, 4000)]
    nodes = [node("n1"), node("n2")]
    assert names(sacrifice(wants("1"), nodes, placed, [budget(0, app="web")])) == ("n2", ["b"])
    assert names(sacrifice(wants("1"), nodes, placed, [budget(1, app="web")])) == ("n1", ["a"])
    only = sacrifice(wants("1"), nodes[:1], placed[:1], [budget(0, app="web")])
    assert only is not None
    assert only.broken == 1, "a budget does not protect from higher priority"


def test_one_budget_lets_only_so_many_go() -> None:
    placed = [there(name, "n1", 10, 2000, app="web") for name in ("a", "b")]
    found = sacrifice(wants("4"), [node("n1")], placed, [budget(1, app="web")])
    assert found is not None
    assert (len(found.victims), found.broken) == (2, 1)


def test_a_node_is_looked_at_without_looking_at_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node(f"n{number}") for number in range(20)]
    placed = [there(f"n{number}-{i}", f"n{number}", 0, 1000) for number in range(20) for i in "abcd"]
    looks: list[str] = []

    def counted(one: Object, pods: Sequence[Requests]) -> NodeView:
        looks.append(one["metadata"]["name"])
        return node_view(one, pods)

    monkeypatch.setattr("controlplane.scheduler.snapshot.node_view", counted)
    assert names(sacrifice(wants("1"), nodes, placed)) == ("n0", ["n0-d"])
    assert len(looks) == 20 + 20 * (1 + 4), "to decide, without those of lower priority, with each of them"


@pytest.mark.parametrize("elsewhere", [0, EQUAL])
def test_others_elsewhere_still_count(elsewhere: int) -> None:
    """Who may not be near a pod of another node of the zone gains nothing on this one."""
    term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "loud"}}}
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    nodes = [node("n1"), node("n2", cpu="1")]
    for each in nodes:
        each["metadata"]["labels"] = {"zone": "z"}
    quiet = [there("a", "n1", 0, 4000)]
    assert names(sacrifice(wants("2", affinity=affinity), nodes, quiet)) == ("n1", ["a"])
    loud = [*quiet, there("b", "n2", elsewhere, 1000, app="loud")]
    assert sacrifice(wants("2", affinity=affinity), nodes, loud) is None


def test_who_waits_for_others_ends() -> None:
    waiting = wants("1") | {"status": {"nominatedNodeName": "n1"}}
    there_still = there("a", "n1", 10)
    ending = dataclasses.replace(there_still, ending=True)
    assert not waits_for_ends(waiting, [there_still], {})
    assert waits_for_ends(waiting, [ending], {"n1": ["Insufficient cpu"]})
    cordoned = {"n1": ["node(s) were unschedulable"]}
    assert not waits_for_ends(waiting, [ending], cordoned), "not for it any more"
    assert not waits_for_ends(wants("1"), [ending], {})


def test_three_of_negative_priority_are_more_than_one() -> None:
    placed = [there(name, "n1", -10, 1300) for name in ("a", "b", "c")] + [there("d", "n2", -10, 4000)]
    assert names(sacrifice(wants("4"), [node("n1"), node("n2")], placed)) == ("n2", ["d"])


class NoServer:
    """A client that is asked for budgets only."""

    def list(self, _resource: Any) -> Object:
        return {"items": []}


NO_VICTIMS = "0/1 nodes are available: 1 No preemption victims found for incoming pod."
NO_HELP = "0/1 nodes are available: 1 Preemption is not helpful for scheduling."


@pytest.mark.parametrize(
    ("pod", "placed", "text"),
    [
        (wants("2"), [there("a", "n1", EQUAL, 4000)], NO_VICTIMS),
        (wants("5"), [there("a", "n1", LOW, 4000)], NO_HELP),
        (
            wants("3"),
            [there("a", "n1", LOW, 1000), there("b", "n1", EQUAL, 3000)],
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            wants("1", nodeSelector={"disk": "fast"}),
            [there("a", "n1", LOW, 4000)],
            NO_HELP,
        ),
        (
            wants("2", preemptionPolicy="Never"),
            [there("a", "n1", LOW, 4000)],
            "not eligible due to preemptionPolicy=Never.",
        ),
        (
            wants("2") | {"status": {"nominatedNodeName": "n1"}},
            [dataclasses.replace(there("a", "n1", LOW, 4000), ending=True)],
            "not eligible due to a terminating pod on the nominated node.",
        ),
    ],
)
def test_a_pod_that_gets_no_room_is_told_why(pod: Object, placed: list[Placed], text: str) -> None:
    snapshot, requests = Snapshot({"n1": node("n1")}, placed, {}, Storage()), pod_requests(pod)
    verdict = decide(pod, requests, "", snapshot)
    assert verdict.chosen is None
    preemptor = Preemptor(NoServer(), None)  # type: ignore[arg-type]
    assert preemptor.make_room(pod, requests, snapshot, verdict).why_none == text


def test_of_a_cluster_without_nodes_no_more_is_said() -> None:
    pod, empty = wants("1"), Snapshot({}, [], {}, Storage())
    verdict = decide(pod, pod_requests(pod), "", empty)
    preemptor = Preemptor(NoServer(), None)  # type: ignore[arg-type]
    assert verdict.message == "no nodes available to schedule pods"
    assert preemptor.make_room(pod, pod_requests(pod), empty, verdict) == ("", "")
