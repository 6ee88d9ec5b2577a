"""What a namespace that stays says about why."""

from __future__ import annotations

from controlplane.controllers.namespace_conditions import Left, conditions

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
LEFT = [Left("pods."), Left("pods.", ("a.example/b",)), Left("jobs.batch", ("a.example/b", "orphan"))]


def messages(found: list[dict[str, str]], status: str) -> dict[str, str]:
    return {one["type"]: one["message"] for one in found if one["status"] == status}


def test_kinds_and_finalizers_that_remain() -> None:
    found = conditions([], LEFT, NOW)
    assert messages(found, "True") == {
        "NamespaceContentRemaining": "Some resources are remaining: jobs.batch has 1 resource instances,"
        " pods. has 2 resource instances",
        "NamespaceFinalizersRemaining": "Some content in the namespace has finalizers remaining:"
        " a.example/b in 2 resource instances, orphan in 1 resource instances",
    }
    assert len(messages(found, "False")) == 3


def test_without_finalizers_and_times_that_stay() -> None:
    before = conditions([{"type": "Other", "status": "True"}], LEFT, NOW)
    after = conditions(before, [Left("pods.")], LATER)
    assert after[0] == {"type": "Other", "status": "True"}
    times = {one["type"]: one["lastTransitionTime"] for one in after[1:]}
    assert times.pop("NamespaceFinalizersRemaining") == LATER and set(times.values()) == {NOW}
    assert conditions(after, [Left("pods.")], "2026-01-03T00:00:00Z") == after
