"""What proxies measure by: when the change that a slice shows began."""

from __future__ import annotations

from typing import Any

from controlplane.controllers.change_triggers import ANNOTATION, first_new, stamped, times

SERVICE = {"metadata": {"uid": "s", "creationTimestamp": "2026-11-27T10:00:00Z"}}


def pod(uid: str, ready: str = "", kind: str = "Ready") -> dict[str, Any]:
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": ready}] if ready else []
    return {"metadata": {"uid": uid}, "status": {"conditions": conditions}}


def test_the_first_of_what_is_new_counts() -> None:
    one = times(SERVICE, [pod("a", "2026-11-27T10:00:05Z"), pod("b")])
    assert first_new({}, one) == "2026-11-27T10:00:00Z"
    assert first_new(one, one) == ""
    pods = [
        pod("a", "2026-11-27T10:00:05Z"),
        pod("b", "2026-11-27T10:00:09Z"),
        pod("c", "2026-11-27T10:00:07Z"),
    ]
    assert first_new(one, times(SERVICE, pods)) == "2026-11-27T10:00:07Z"
    assert first_new(one, times(SERVICE, [])) == ""  # a pod that is gone tells no time
    other = pod("b", "2026-11-27T11:00:00Z", "ContainersReady")
    assert first_new(one, times(SERVICE, [other])) == ""


def test_a_slice_written_for_another_reason_has_no_stamp() -> None:
    body = {"metadata": {"name": "x", "annotations": {"other": "kept"}}}
    told = stamped(body, "2026-11-27T10:00:07Z")
    assert told["metadata"]["annotations"] == {"other": "kept", ANNOTATION: "2026-11-27T10:00:07Z"}
    assert stamped(told, "")["metadata"]["annotations"] == {"other": "kept"}
    assert body["metadata"]["annotations"] == {"other": "kept"}
    assert stamped(stamped({"metadata": {"name": "x"}}, "2026"), "") == {"metadata": {"name": "x"}}
