"""What was stored under older rules keeps on living: its status is written, its finalizers go."""

from __future__ import annotations

from typing import Any

from .conftest import MERGE, Client, Live, pod

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


def test_what_would_be_refused_today_keeps_its_status_and_loses_its_finalizers(
    api: Client, live: Live, namespace: str
) -> None:
    path = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    spec = {"minAvailable": "50%", "selector": {"matchLabels": {"a": "b"}}}
    api.must("POST", path, {"metadata": {"name": "b", "finalizers": ["a.example/f"]}, "spec": spec})

    def spoil(budget: Object) -> Object:
        budget["spec"]["minAvailable"] = "150%"
        return budget

    live.store(("policy", "v1", "poddisruptionbudgets"), namespace, "b", spoil)
    assert api.patch(f"{path}/b/status", {"status": {"currentHealthy": 3}})["status"]["currentHealthy"] == 3
    change = {"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}}
    code, refused = api("PATCH", f"{path}/b", change, Content_Type=MERGE)
    assert (code, refused["details"]["causes"][0]["field"]) == (422, "spec.minAvailable")
    assert "finalizers" not in api.patch(f"{path}/b", {"metadata": {"finalizers": None}})["metadata"]
    api.must("DELETE", f"{path}/b")
