"""Which rules a ClusterRole with an aggregationRule gets."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.role_aggregation import aggregated, aggregates

Object = dict[str, Any]


def rule(resource: str) -> Object:
    return {"apiGroups": ["a.example"], "resources": [resource], "verbs": ["get"]}


def role(name: str, labels: dict[str, str], *resources: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "rules": [rule(each) for each in resources]}


def collector(*selectors: Object, name: str = "all", **labels: str) -> Object:
    found = role(name, labels, "stale")
    return {**found, "aggregationRule": {"clusterRoleSelectors": list(selectors)}}


def test_rules_come_by_selector_and_name_and_each_once() -> None:
    roles = [
        role("b", {"to": "x"}, "two", "one"),
        role("a", {"to": "x"}, "one"),
        role("c", {"to": "y"}, "three"),
    ]
    by_label, other = (
        {"matchLabels": {"to": "x"}},
        {"matchExpressions": [{"key": "to", "operator": "Exists"}]},
    )
    found = collector({"matchLabels": {"to": "y"}}, by_label, other)
    assert aggregated(found, [*roles, found]) == [rule("three"), rule("one"), rule("two")]


def test_a_role_is_no_source_of_its_own() -> None:
    found = collector({"matchLabels": {"to": "x"}}, to="x")
    assert aggregated(found, [found, {"metadata": {"name": "bare"}}]) == []


def test_a_selector_that_cannot_be_read_is_told() -> None:
    with pytest.raises(ValueError, match="not a valid label selector operator"):
        aggregated(collector({"matchExpressions": [{"key": "a", "operator": "Near"}]}), [])


def test_which_roles_aggregate() -> None:
    assert aggregates(collector())
    assert not aggregates(role("a", {}))
