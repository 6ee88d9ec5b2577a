"""What was stored under older rules keeps on living: its status is written, its finalizers go."""

from __future__ import annotations

from typing import Any

from .conftest import Live, pod

Object = dict[str, Any]


def test_defaults_of_today_apply_to_what_was_stored_without_them(live: Live, namespace: str) -> None:
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    rule = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    spec = {"template": pod("x", restartPolicy="Never"), "podFailurePolicy": {"rules": [rule]}}
    live.admin.must("POST", path, {"metadata": {"name": "j"}, "spec": spec})

    def strip(job: Object) -> Object:
        del job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0]["status"]
        return job

    live.store(("batch", "v1", "jobs"), namespace, "j", strip)
    written = live.admin.patch(f"{path}/j/status", {"status": {"failed": 1}})
    assert written["status"]["failed"] == 1
    [pattern] = written["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"]
    assert pattern == {"type": "DisruptionTarget", "status": "True"}
    assert written["metadata"]["generation"] == 1
