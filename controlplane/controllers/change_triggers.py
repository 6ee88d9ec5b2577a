"""PURE. When the change that a slice shows began: what proxies measure their network programming by.

A pod's change begins when its Ready condition changes, a Service's when it is made. The earliest of those
that are new since the last pass is written as an annotation on each slice that the pass writes, and a slice
that is written for another reason has none. Source: upstream's endpointslice/trigger_time_tracker.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.controllers.base import Object

ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"

Times = Mapping[str, str]
"""By uid, as the API writes them: whole seconds in UTC, so that text sorts as time."""


def times(service: Object, pods: Iterable[Object]) -> Times:
    """Of the Service and of each pod that has been ready, or has ceased to be."""
    found = {}
    for pod in pods:
        for condition in (pod.get("status") or {}).get("conditions") or ():
            if condition["type"] == "Ready" and condition.get("lastTransitionTime"):
                found[pod["metadata"]["uid"]] = condition["lastTransitionTime"]
    found[service["metadata"]["uid"]] = service["metadata"]["creationTimestamp"]
    return found


def first_new(before: Times, now: Times) -> str:
    """The earliest of those that are later than they were; "" where none is."""
    return min((stamp for uid, stamp in now.items() if stamp > before.get(uid, "")), default="")


def stamped(body: Object, stamp: str) -> Object:
    """The slice with that annotation, or without any like it."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "annotations"}
    annotations = {**(body["metadata"].get("annotations") or {}), ANNOTATION: stamp}
    if not stamp:
        del annotations[ANNOTATION]
    if annotations:
        metadata["annotations"] = annotations
    return body | {"metadata": metadata}
