"""Near to whom, far from whom: what a pod sees of those that are there."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.scheduler.filters import Requests
from controlplane.scheduler.pod_affinity import NO_RULES, Neighbours, Placed, rules_of

Object = dict[str, Any]
HOST, ZONE = "kubernetes.io/hostname", "zone"
NODES = {
    "a1": {HOST: "a1", ZONE: "a"},
    "a2": {HOST: "a2", ZONE: "a"},
    "b1": {HOST: "b1", ZONE: "b"},
    "bare": {HOST: "bare"},
}
NAMESPACES = {"n": {"team": "x"}, "m": {"team": "y"}}
FAR = "node(s) didn't match pod anti-affinity rules"
KEPT = "node(s) didn't satisfy existing pods anti-affinity rules"
NEAR = "node(s) didn't match pod affinity rules"


def term(key: str = ZONE, app: str | None = "web", **more: Any) -> Object:
    selector = {"labelSelector": {"matchLabels": {"app": app}}} if app else {}
    return {"topologyKey": key, **selector, **more}


def pod(near: list[Object] = [], far: list[Object] = [], *, labels: Any = None, soft: bool = False) -> Object:  # noqa: B006
    def side(terms: list[Object]) -> Object:
        if soft:
            listed = [{"weight": t.pop("weight", 10), "podAffinityTerm": t} for t in map(dict, terms)]
            return {"preferredDuringSchedulingIgnoredDuringExecution": listed}
        return {"requiredDuringSchedulingIgnoredDuringExecution": terms}

    affinity = {"podAffinity": side(near), "podAntiAffinity": side(far)}
    metadata = {"name": "p", "namespace": "n", "labels": labels or {}}
    return {"metadata": metadata, "spec": {"affinity": affinity}}


def there(node: str, app: str = "web", namespace: str = "n", rules: Any = NO_RULES, **labels: str) -> Placed:
    return Placed(node, Requests({}, frozenset()), "", namespace, {"app": app, **labels}, rules)


def allowed(body: Object, *placed: Placed) -> list[str]:
    neighbours = Neighbours(body, placed, NODES, NAMESPACES)
    return [node for node in NODES if not neighbours.why_not(node)]


def test_a_pod_without_rules_goes_anywhere() -> None:
    bare = {"metadata": {"name": "p", "namespace": "n"}, "spec": {}}
    assert rules_of(bare) is NO_RULES
    assert allowed(bare, there("a1")) == [*NODES]


def test_near_is_the_same_domain() -> None:
    assert allowed(pod([term()]), there("a1")) == ["a1", "a2"]
    assert allowed(pod([term(HOST)]), there("a1")) == ["a1"]
    assert Neighbours(pod([term()]), [there("a1")], NODES, NAMESPACES).why_not("b1") == [NEAR]


def test_far_is_every_other_domain_and_nodes_without_the_key() -> None:
    assert allowed(pod(far=[term()]), there("a1")) == ["b1", "bare"]
    assert Neighbours(pod(far=[term()]), [there("a1")], NODES, NAMESPACES).why_not("a2") == [FAR]


def test_who_is_there_keeps_others_away() -> None:
    repels = rules_of(pod(far=[term(app="loud")]))
    loud = pod(labels={"app": "loud"})
    assert allowed(loud, there("a1", rules=repels)) == ["b1", "bare"]
    assert Neighbours(loud, [there("a1", rules=repels)], NODES, NAMESPACES).why_not("a1") == [KEPT]
    assert allowed(pod(labels={"app": "quiet"}), there("a1", rules=repels)) == [*NODES]


def test_the_first_of_a_group_meets_its_own_rule_where_the_key_is() -> None:
    group = pod([term()], labels={"app": "web"})
    assert allowed(group) == ["a1", "a2", "b1"]
    assert allowed(group, there("b1")) == ["b1"]
    assert allowed(pod([term()], labels={"app": "other"})) == []


def test_all_terms_must_be_met_by_the_same_pods() -> None:
    both = pod([term(), term(HOST, labelSelector={"matchLabels": {"tier": "1"}})])
    assert allowed(both, there("a1", tier="1")) == ["a1"]
    assert allowed(both, there("a1"), there("a2", app="x", tier="1")) == []


@pytest.mark.parametrize(
    ("more", "nodes"),
    [
        ({}, []),
        ({"namespaces": ["m"]}, ["b1"]),
        ({"namespaceSelector": {"matchLabels": {"team": "y"}}}, ["b1"]),
        ({"namespaceSelector": {}}, ["b1"]),
        ({"namespaceSelector": {"matchLabels": {"team": "z"}}}, []),
    ],
)
def test_namespaces(more: Object, nodes: list[str]) -> None:
    assert allowed(pod([term(**more)]), there("b1", namespace="m")) == nodes


def test_label_keys_narrow_the_selector_to_the_pods_own_values() -> None:
    own = pod(far=[term(matchLabelKeys=["version"])], labels={"app": "web", "version": "2"})
    assert allowed(own, there("a1", version="1"), there("b1", version="2")) == ["a1", "a2", "bare"]
    other = pod(far=[term(mismatchLabelKeys=["version"])], labels={"app": "web", "version": "2"})
    assert allowed(other, there("a1", version="1"), there("b1", version="2")) == ["b1", "bare"]


def test_without_a_selector_nobody_is_meant() -> None:
    assert allowed(pod(far=[term(app=None)]), there("a1")) == [*NODES]


def test_preferences_work_both_ways() -> None:
    def points(body: Object, *placed: Placed) -> list[float]:
        return Neighbours(body, placed, NODES, NAMESPACES).points(["a1", "a2", "b1", "bare"])

    assert points(pod([term(weight=7)], soft=True), there("a1")) == [7, 7, 0, 0]
    assert points(pod(far=[term(HOST, weight=3)], soft=True), there("a1"), there("a1")) == [-6, 0, 0, 0]
    likes = rules_of(pod([term(app="me", weight=5)], soft=True))
    needs = rules_of(pod([term(HOST, app="me")]))
    mine = pod(labels={"app": "me"})
    assert points(mine, there("b1", rules=likes), there("b1", rules=needs)) == [0, 0, 6, 0]
