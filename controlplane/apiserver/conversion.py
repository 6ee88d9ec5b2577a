"""Two names for one object: Events of two groups, HorizontalPodAutoscalers of two versions.

Upstream stores each object once and converts on the way in and out; so do we, for the two kinds where another
version is still in use. core/v1 is the stored form of Events and autoscaling/v2 that of autoscalers
(pkg/apis/events/v1/conversion.go, pkg/apis/autoscaling/v1/conversion.go).
"""

from __future__ import annotations

from typing import Any

import orjson

from controlplane.apiserver.resources import ResourceInfo

Object = dict[str, Any]

_EVENT_NAMES = {
    "note": "message",
    "regarding": "involvedObject",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_EVENT_NAMES_BACK = {stored: seen for seen, stored in _EVENT_NAMES.items()}
_METRICS_ANNOTATION = "autoscaling.alpha.kubernetes.io/metrics"
_BEHAVIOR_ANNOTATION = "autoscaling.alpha.kubernetes.io/behavior"


def to_storage(info: ResourceInfo, obj: Object) -> Object:
    """`obj`, as a client of `info` wrote it, in the stored form. The same object when `info` is the stored
    form.
    """
    if not info.is_view:
        return obj
    group, version = info.storage_version
    out = {**obj, "apiVersion": f"{group}/{version}" if group else version}
    if info.kind == "Event":
        return {_EVENT_NAMES.get(key, key): value for key, value in out.items()}
    return _autoscaler_to_v2(out)


def from_storage(info: ResourceInfo, obj: Object) -> Object:
    """A stored object in the form of `info`; the inverse of to_storage."""
    if not info.is_view:
        return obj
    out = {**obj, "apiVersion": info.api_version}
    if info.kind == "Event":
        return {_EVENT_NAMES_BACK.get(key, key): value for key, value in out.items()}
    return _autoscaler_to_v1(out)


def _is_cpu_utilization(metric: Object) -> bool:
    resource = metric.get("resource") or {}
    target = resource.get("target") or {}
    return resource.get("name") == "cpu" and target.get("averageUtilization") is not None


def _autoscaler_to_v2(obj: Object) -> Object:
    """v1 has one CPU percentage; what else v2 knows travels in annotations."""
    spec = dict(obj.get("spec") or {})
    metadata = dict(obj.get("metadata") or {})
    annotations = dict(metadata.get("annotations") or {})
    metrics = orjson.loads(annotations.pop(_METRICS_ANNOTATION, "[]"))
    behavior = annotations.pop(_BEHAVIOR_ANNOTATION, "")
    percent = spec.pop("targetCPUUtilizationPercentage", None)
    if percent is not None:
        target = {"type": "Utilization", "averageUtilization": percent}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": target}})
    if metrics:
        spec["metrics"] = metrics
    if behavior:
        spec["behavior"] = orjson.loads(behavior)
    status = dict(obj.get("status") or {})
    current = status.pop("currentCPUUtilizationPercentage", None)
    if current is not None:
        value = {"averageUtilization": current}
        status["currentMetrics"] = [{"type": "Resource", "resource": {"name": "cpu", "current": value}}]
    if "annotations" in metadata:
        metadata["annotations"] = annotations
    return {**obj, "metadata": metadata, "spec": spec, "status": status}


def _autoscaler_to_v1(obj: Object) -> Object:
    spec = dict(obj.get("spec") or {})
    metadata = dict(obj.get("metadata") or {})
    annotations = dict(metadata.get("annotations") or {})
    others = []
    for metric in spec.pop("metrics", None) or ():
        if "targetCPUUtilizationPercentage" not in spec and _is_cpu_utilization(metric):
            spec["targetCPUUtilizationPercentage"] = metric["resource"]["target"]["averageUtilization"]
        else:
            others.append(metric)
    if others:
        annotations[_METRICS_ANNOTATION] = orjson.dumps(others).decode()
    behavior = spec.pop("behavior", None)
    if behavior:
        annotations[_BEHAVIOR_ANNOTATION] = orjson.dumps(behavior).decode()
    status = dict(obj.get("status") or {})
    status.pop("conditions", None)
    for metric in status.pop("currentMetrics", None) or ():
        value = ((metric.get("resource") or {}).get("current") or {}).get("averageUtilization")
        if value is not None:
            status["currentCPUUtilizationPercentage"] = value
    status.setdefault("currentReplicas", 0)
    status.setdefault("desiredReplicas", 0)
    if annotations:
        metadata["annotations"] = annotations
    return {**obj, "metadata": metadata, "spec": spec, "status": status}
