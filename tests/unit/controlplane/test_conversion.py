"""One object under two names survives the way there and back."""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.conversion import from_storage, to_storage
from controlplane.apiserver.resources import ResourceInfo, lookup


def info(group: str, version: str, plural: str) -> ResourceInfo:
    found = lookup(group, version, plural)
    assert found is not None
    return found


def test_events() -> None:
    view = info("events.k8s.io", "v1", "events")
    seen: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "regarding": {"kind": "Pod"},
        "note": "n",
        "deprecatedCount": 2,
        "reportingController": "c",
    }
    stored = to_storage(view, seen)
    assert stored == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod"},
        "message": "n",
        "count": 2,
        "reportingComponent": "c",
    }
    assert from_storage(view, stored) == seen


def test_autoscalers() -> None:
    view = info("autoscaling", "v1", "horizontalpodautoscalers")
    seen: dict[str, Any] = {
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "h"},
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70},
    }
    stored = to_storage(view, seen)
    assert stored["apiVersion"] == "autoscaling/v2"
    target = {"type": "Utilization", "averageUtilization": 70}
    assert stored["spec"] == {
        "maxReplicas": 3,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
    }
    assert from_storage(view, stored)["spec"] == seen["spec"]


def test_what_v1_cannot_say_travels_in_an_annotation() -> None:
    view = info("autoscaling", "v1", "horizontalpodautoscalers")
    memory = {"type": "Resource", "resource": {"name": "memory", "target": {"averageUtilization": 5}}}
    stored = {"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"metrics": [memory]}}
    seen = from_storage(view, stored)
    assert "metrics" not in seen["spec"]
    assert to_storage(view, seen)["spec"] == stored["spec"]


def test_the_stored_form_is_left_alone() -> None:
    obj = {"apiVersion": "v1"}
    assert to_storage(info("", "v1", "events"), obj) is obj
    assert from_storage(info("", "v1", "events"), obj) is obj
