"""Which of the nodes that fit is best."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.scheduler.filters import NodeView, node_view, pod_requests
from controlplane.scheduler.scores import balanced_allocation, best, least_allocated


def pod(cpu: str = "100m", memory: str = "128Mi", **spec: Any) -> dict[str, Any]:
    resources = {"requests": {"cpu": cpu, "memory": memory}}
    return {"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}], **spec}}


def node(
    name: str, *taken: dict[str, Any], labels: dict[str, str] | None = None, taints: Any = (), cpu: str = "4"
) -> NodeView:
    body = {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": list(taints)},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}},
    }
    return node_view(body, [pod_requests(found) for found in taken])


def chosen(body: dict[str, Any], *views: NodeView, siblings: dict[str, int] | None = None) -> str:
    crowding = [float((siblings or {}).get(view.name, 0)) for view in views]
    return best(body, pod_requests(body), views, crowding, [0.0] * len(views)).name


BIG = pod("2", "4Gi")


def test_the_emptier_node_wins() -> None:
    assert chosen(pod(), node("a", BIG), node("b")) == "b"


def test_points_are_shares_of_a_hundred() -> None:
    assert least_allocated(pod_requests(pod("2", "4Gi")), node("a")) == 50.0
    assert least_allocated(pod_requests(pod("2", "4Gi")), node("a", BIG)) == 0.0
    assert balanced_allocation(pod_requests(pod("2", "4Gi")), node("a")) == 100.0
    assert balanced_allocation(pod_requests(pod("4", "0")), node("a")) < 60.0


def test_a_pod_without_requests_still_prefers_the_emptier_node() -> None:
    bare = {"metadata": {}, "spec": {"containers": [{"name": "c"}]}}
    assert chosen(bare, node("a", BIG), node("b")) == "b"


def test_pods_without_requests_make_a_node_fuller_for_the_next() -> None:
    bare = {"metadata": {}, "spec": {"containers": [{"name": "c"}]}}
    assert chosen(bare, node("a"), node("b")) == "a", "a tie goes by name"
    assert chosen(bare, node("a", bare), node("b")) == "b"
    assert chosen(pod(), node("a", bare, bare), node("b", pod())) == "b"


def test_a_node_that_balances_cpu_and_memory_wins_over_one_that_is_lopsided() -> None:
    # Both would be half full on average; on "b" all of the load is cpu.
    assert chosen(pod("1", "2Gi"), node("b", pod("2", "0")), node("a", pod("1", "2Gi"))) == "a"


SOFT = {"key": "k", "effect": "PreferNoSchedule"}


@pytest.mark.parametrize(
    ("tolerations", "expected"), [([], "busy"), ([{"key": "k", "operator": "Exists"}], "tainted")]
)
def test_a_soft_taint_outweighs_load_unless_tolerated(tolerations: Any, expected: str) -> None:
    views = (node("busy", BIG), node("tainted", taints=[SOFT]))
    assert chosen(pod(tolerations=tolerations), *views) == expected


def test_preferred_affinity_counts_by_weight() -> None:
    def term(weight: int, value: str) -> dict[str, Any]:
        expression = {"key": "zone", "operator": "In", "values": [value]}
        return {"weight": weight, "preference": {"matchExpressions": [expression]}}

    preferred = {"preferredDuringSchedulingIgnoredDuringExecution": [term(10, "x"), term(90, "y")]}
    body = pod(affinity={"nodeAffinity": preferred})
    views = (node("a", labels={"zone": "x"}), node("b", BIG, labels={"zone": "y"}), node("c"))
    assert chosen(body, *views) == "b"


def test_pods_of_one_owner_are_spread() -> None:
    assert chosen(pod(), node("a"), node("b", BIG), siblings={"a": 1}) == "b"


def test_ties_go_by_name_so_that_decisions_repeat() -> None:
    assert chosen(pod(), node("b"), node("a")) == "a"
