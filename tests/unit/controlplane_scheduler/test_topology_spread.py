"""Where one more pod leaves the domains even enough."""

from __future__ import annotations

from typing import Any

from controlplane.scheduler.filters import Requests, node_view
from controlplane.scheduler.pod_affinity import NO_RULES, Placed
from controlplane.scheduler.topology_spread import MISMATCH, Spread

Object = dict[str, Any]


def view(name: str, zone: str | None, *, taints: Any = ()) -> Any:
    labels = {"zone": zone} if zone else {}
    body = {"metadata": {"name": name, "labels": labels}, "spec": {"taints": list(taints)}, "status": {}}
    return node_view(body, ())


VIEWS = [view("a1", "a"), view("a2", "a"), view("b1", "b"), view("c1", "c"), view("bare", None)]


def pod(*, skew: int = 1, soft: bool = False, app: str = "web", **more: Any) -> Object:
    item = {"topologyKey": "zone", "maxSkew": skew, "labelSelector": {"matchLabels": {"app": "web"}}, **more}
    item["whenUnsatisfiable"] = "ScheduleAnyway" if soft else "DoNotSchedule"
    metadata = {"name": "p", "namespace": "n", "labels": {"app": app, "version": "2"}}
    return {"metadata": metadata, "spec": {"topologySpreadConstraints": [item]}}


def there(node: str, namespace: str = "n", *, ending: bool = False, **labels: str) -> Placed:
    nothing = Requests({}, frozenset())
    return Placed(node, nothing, "", namespace, {"app": "web", **labels}, NO_RULES, ending)


def allowed(body: Object, *placed: Placed, views: Any = VIEWS) -> list[str]:
    spread = Spread(body, placed, views)
    return [each.name for each in views if not spread.why_not(each.name)]


def test_a_domain_may_have_so_many_more_than_the_emptiest() -> None:
    assert allowed(pod(), there("a1")) == ["b1", "c1"]
    assert allowed(pod(skew=2), there("a1")) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod(), there("a1"), there("b1"), there("c1")) == ["a1", "a2", "b1", "c1"]


def test_why() -> None:
    spread = Spread(pod(), [there("a1")], VIEWS)
    assert spread.why_not("a2") == [MISMATCH]
    assert spread.why_not("bare") == [f"{MISMATCH} (missing required label)"]


def test_whom_it_counts() -> None:
    assert allowed(pod(), there("a1", namespace="m")) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod(), there("a1", ending=True)) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod(), there("a1", app="other")) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod(matchLabelKeys=["version"]), there("a1", version="1")) == ["a1", "a2", "b1", "c1"]
    assert allowed(pod(matchLabelKeys=["version"]), there("a1", version="2")) == ["b1", "c1"]


def test_a_pod_that_is_not_counted_itself_adds_nothing() -> None:
    assert allowed(pod(app="other"), there("a1")) == ["a1", "a2", "b1", "c1"]


def test_too_few_domains_leave_the_least_at_zero() -> None:
    full = [there("a1"), there("b1"), there("c1")]
    assert allowed(pod(minDomains=4), *full) == []
    assert allowed(pod(minDomains=3), *full) == ["a1", "a2", "b1", "c1"]


def test_nodes_that_the_pod_cannot_use_do_not_count() -> None:
    chosen = pod()
    chosen["spec"]["nodeSelector"] = {"zone": "a"}
    assert allowed(chosen, there("a1")) == ["a1", "a2", "b1", "c1"], "b1 and c1 are refused by another filter"
    ignoring = pod(nodeAffinityPolicy="Ignore")
    ignoring["spec"]["nodeSelector"] = {"zone": "a"}
    assert allowed(ignoring, there("a1")) == ["b1", "c1"]
    tainted = [view("a1", "a"), view("b1", "b", taints=[{"key": "k", "effect": "NoSchedule"}])]
    assert allowed(pod(), there("a1"), views=tainted) == ["b1"]
    assert allowed(pod(nodeTaintsPolicy="Honor"), there("a1"), views=tainted) == ["a1", "b1"]


def test_soft_constraints_refuse_nobody_and_prefer_the_emptier_domain() -> None:
    spread = Spread(pod(soft=True), [there("a1"), there("a2"), there("b1")], VIEWS)
    assert all(not spread.why_not(each.name) for each in VIEWS)
    assert spread.crowding(["a1", "b1", "c1"]) == [2, 1, 0]
