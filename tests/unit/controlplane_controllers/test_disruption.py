from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.disruption import budget_status, remarks
from controlplane.controllers.stamps import seconds

NOW = seconds("2026-01-01T01:00:00Z")


def pod(name: str, *, ready: bool = True, ending: bool = False) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "d"} | ({"deletionTimestamp": "x"} if ending else {})
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running", "conditions": [condition]}}


def budget(disrupted: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "spec": spec, "status": {"disruptedPods": disrupted or {}}}


def allowed(found: dict[str, Any], pods: list[Any], replicas: int | None = None) -> tuple[int, ...]:
    scale = None if replicas is None else ("uid", replicas)
    status = budget_status(found, pods, lambda _: scale, NOW)
    assert status["observedGeneration"] == 2
    return status["expectedPods"], status["desiredHealthy"], status["disruptionsAllowed"]


@pytest.mark.parametrize(
    ("spec", "pods", "replicas", "expected"),
    [
        ({"minAvailable": 2}, 3, None, (3, 2, 1)),
        ({"minAvailable": 3}, 3, None, (3, 3, 0)),
        ({"minAvailable": 0}, 0, None, (0, 0, 0)),
        ({"minAvailable": "50%"}, 3, 3, (3, 2, 1)),  # rounded up: two of three stay
        ({"maxUnavailable": 1}, 3, 3, (3, 2, 1)),
        ({"maxUnavailable": 1}, 2, 3, (3, 2, 0)),  # one is missing already
        ({"maxUnavailable": "30%"}, 3, 3, (3, 2, 1)),
        ({"maxUnavailable": 9}, 3, 3, (3, 0, 3)),
        ({"maxUnavailable": 1}, 2, None, (0, 0, 0)),  # nobody says how many there should be
    ],
)
def test_how_many_pods_may_go(spec, pods, replicas, expected) -> None:
    assert allowed(budget(**spec), [pod(f"p{i}") for i in range(pods)], replicas) == expected


def owned(name: str) -> dict[str, Any]:
    found = pod(name)
    found["metadata"]["ownerReferences"] = [
        {"kind": "ReplicaSet", "name": "r", "uid": "r", "controller": True}
    ]
    return found


@pytest.mark.parametrize(
    ("spec", "pods", "reasons"),
    [
        ({"minAvailable": 1}, [], ["NoPods"]),
        ({"minAvailable": 1}, [pod("a")], []),
        ({"maxUnavailable": 1}, [owned("a"), pod("b")], ["UnmanagedPods"]),
        ({"minAvailable": "50%"}, [pod("a")], ["UnmanagedPods"]),
        ({"maxUnavailable": "50%"}, [owned("a")], []),
    ],
)
def test_what_is_said_of_a_budget_that_cannot_be_counted(spec, pods, reasons) -> None:
    found = remarks(budget(selector={"matchLabels": {"app": "x"}}, **spec), pods)
    assert [reason for _, reason, _ in found] == reasons
    for kind, reason, message in found:
        assert kind == ("Warning" if reason == "UnmanagedPods" else "Normal")
        assert reason != "UnmanagedPods" or '(selector: {"matchLabels": {"app": "x"}})' in message


def test_only_ready_pods_that_stay_are_healthy() -> None:
    pods = [pod("a"), pod("b", ready=False), pod("c", ending=True)]
    assert allowed(budget(minAvailable=1), pods) == (3, 1, 0)


@pytest.mark.parametrize(
    ("granted", "left"),
    [
        ("2026-01-01T00:59:50Z", 0),  # on its way
        ("2026-01-01T00:57:00Z", 1),  # nobody deleted it: it counts as healthy again
    ],
)
def test_a_granted_eviction_counts_until_it_is_seen_or_two_minutes_old(granted, left) -> None:
    found = budget({"b": granted}, minAvailable=1)
    status = budget_status(found, [pod("a"), pod("b")], lambda _: None, NOW)
    assert status["disruptionsAllowed"] == left
    assert ("disruptedPods" in status) is (left == 0)
    seen = budget_status(found, [pod("a"), pod("b", ending=True), pod("c")], lambda _: None, NOW)
    assert "disruptedPods" not in seen
    assert seen["disruptionsAllowed"] == 1
