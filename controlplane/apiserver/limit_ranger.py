"""LimitRange: what containers get that state no requests or limits, and what a pod may ask for at all.

Source: upstream's plugin/pkg/admission/limitranger, for items of type Container and Pod; the messages and the
annotation that names what was set are its own. Items of other types (PersistentVolumeClaim) are only kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.scheduler.filters import amount, pod_limits, pod_requests
from kubeclient import quantity

Object = dict[str, Any]

ANNOTATION = "kubernetes.io/limit-ranger"


def give_defaults(pod: Object, ranges: list[Object]) -> bool:
    """Fill in `default` and `defaultRequest` of all ranges; whether anything was changed."""
    said: list[str] = []
    for item in _items(ranges, "Container"):
        for group, kind in (("containers", "container"), ("initContainers", "init container")):
            for container in pod["spec"].get(group) or []:
                for side, source in (("requests", "defaultRequest"), ("limits", "default")):
                    given = _fill(container, side, item.get(source) or {})
                    if given:
                        word = side.removesuffix("s")
                        said.append(f"{', '.join(given)} {word} for {kind} {container['name']}")
    if said:
        annotations = pod["metadata"].setdefault("annotations", {})
        annotations[ANNOTATION] = "LimitRanger plugin set: " + "; ".join(said)
    return bool(said)


def _fill(container: Object, side: str, defaults: Mapping[str, str]) -> list[str]:
    present = container.setdefault("resources", {}).get(side) or {}
    missing = {name: value for name, value in sorted(defaults.items()) if name not in present}
    if missing:
        container["resources"][side] = present | missing
    return list(missing)


def complaints(pod: Object, ranges: list[Object]) -> list[str]:
    """Everything about the pod that the ranges do not allow, in upstream's words."""
    found: list[str] = []
    spec = pod["spec"]
    for item in _items(ranges, "Container"):
        for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
            resources = container.get("resources") or {}
            sides = (_amounts(resources.get("requests")), _amounts(resources.get("limits")))
            found += _outside(item, *sides, "Container")
    for item in _items(ranges, "Pod"):
        found += _outside(item, dict(pod_requests(pod).amounts), pod_limits(pod), "Pod")
    return found


def _items(ranges: list[Object], kind: str) -> Iterator[Object]:
    for found in ranges:
        yield from (item for item in found["spec"].get("limits") or [] if item.get("type") == kind)


def _amounts(texts: Mapping[str, str] | None) -> dict[str, int]:
    return {name: amount(name, value) for name, value in (texts or {}).items()}


def _outside(item: Object, requests: dict[str, int], limits: dict[str, int], kind: str) -> Iterator[str]:
    for name, least in sorted((item.get("min") or {}).items()):
        start, bound = f"minimum {name} usage per {kind} is {least}", amount(name, least)
        if name not in requests:
            yield f"{start}.  No request is specified"
        elif requests[name] < bound:
            yield f"{start}, but request is {_text(name, requests[name], least)}"
        if name in limits and limits[name] < bound:
            yield f"{start}, but limit is {_text(name, limits[name], least)}"
    for name, most in sorted((item.get("max") or {}).items()):
        start, bound = f"maximum {name} usage per {kind} is {most}", amount(name, most)
        if name not in limits:
            yield f"{start}.  No limit is specified"
        elif limits[name] > bound:
            yield f"{start}, but limit is {_text(name, limits[name], most)}"
        if requests.get(name, 0) > bound:
            yield f"{start}, but request is {_text(name, requests[name], most)}"
    for name, most in sorted((item.get("maxLimitRequestRatio") or {}).items()):
        start = f"{name} max limit to request ratio per {kind} is {most}"
        if not requests.get(name) or not limits.get(name):
            yield f"{start}, but no request is specified or request is 0"
        elif limits[name] / requests[name] > quantity.parse(most):
            yield f"{start}, but provided ratio is {limits[name] / requests[name]:.6f}"


def _text(name: str, number: int, like: str) -> str:
    return quantity.written(quantity.parse(number) / (1000 if name == "cpu" else 1), like=like)
