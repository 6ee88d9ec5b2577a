"""What pods/resize may change: cpu and memory of containers that go on running, and nothing else.

The decision whether a node can give it is the node's (status.conditions tells); here is only refused what no
node could do: another QoS class would mean another cgroup. Source: upstream 1.33's ValidatePodResize.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from controlplane.apiserver.defaults_pod import qos_class
from controlplane.apiserver.validation_containers import check_resources
from controlplane.apiserver.validation_fields import Causes
from controlplane.apiserver.validation_pod_update import differences
from kubeclient import quantity

Object = dict[str, Any]

RESIZABLE = ("cpu", "memory")
_MIRROR = "kubernetes.io/config.mirror"
_SHOWN_CHANGES = 10


def only_resources(new: Object, old: Object) -> Object:
    """The old pod with the resources of the new one's containers: the rest of a resize is dropped."""
    kept = copy.deepcopy(old)
    kept["metadata"]["resourceVersion"] = new["metadata"].get("resourceVersion", "")
    for group in ("containers", "initContainers"):
        given = {c.get("name"): c for c in (new.get("spec") or {}).get(group) or ()}
        for container in kept["spec"].get(group) or ():
            wanted = given.get(container["name"])
            if wanted is None:
                continue
            for key in ("resources", "resizePolicy"):
                if key in wanted:
                    container[key] = wanted[key]
                else:
                    container.pop(key, None)
    return kept


def pod_resize(causes: Causes, new: Object, old: Object) -> None:
    """Adds every problem of the resize to `causes`."""
    if _MIRROR in (old["metadata"].get("annotations") or {}):
        causes.forbidden("", "static pods cannot be resized")
        return
    if ((old["spec"].get("os") or {}).get("name")) == "windows":
        causes.forbidden("", "windows pods cannot be resized")
        return
    after, before = new["spec"], old["spec"]
    wanted = qos_class(after)
    if wanted != qos_class(before):
        causes.invalid("spec", wanted, "Pod QOS Class may not change as a result of resizing")
    comparable = copy.deepcopy(after)
    for group in ("containers", "initContainers"):
        for index, container in enumerate(comparable.get(group) or ()):
            original = before[group][index]
            if group == "initContainers" and container.get("restartPolicy") != "Always":
                continue
            path = f"spec.{group}[{index}].resources"
            check_resources(causes, path, container.get("resources") or {})
            _check(causes, path, container, original)
            _set_back(container, original)
    changed = list(differences(before, comparable, "spec"))
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:_SHOWN_CHANGES])
        causes.forbidden("spec", f"only cpu and memory resources are mutable\n{shown}\n")


def _check(causes: Causes, path: str, new: Object, old: Object) -> None:
    after, before = new.get("resources") or {}, old.get("resources") or {}
    for kind in ("limits", "requests"):
        removed = set(before.get(kind) or {}) - set(after.get(kind) or {})
        if removed:
            causes.forbidden(f"{path}.{kind}", f"resource {kind} cannot be removed")
    limit, was = (after.get("limits") or {}).get("memory"), (before.get("limits") or {}).get("memory")
    if limit is None or was is None or policy(old, "memory") == "RestartContainer":
        return
    if quantity.parse(str(limit)) < quantity.parse(str(was)):
        detail = "memory limits cannot be decreased unless resizePolicy is RestartContainer"
        causes.forbidden(f"{path}.limits[memory]", detail)


def policy(container: Mapping[str, Any], resource: str) -> str:
    """What a change of this resource does to the running container."""
    for entry in container.get("resizePolicy") or ():
        if entry.get("resourceName") == resource:
            return str(entry.get("restartPolicy") or "NotRequired")
    return "NotRequired"


def _set_back(container: Object, original: Object) -> None:
    """Give the copy its old cpu and memory, so that only what else was changed differs."""
    before = original.get("resources") or {}
    resources = container.get("resources") or {}
    for kind in ("limits", "requests"):
        table = {k: v for k, v in (resources.get(kind) or {}).items() if k not in RESIZABLE}
        table |= {k: v for k, v in (before.get(kind) or {}).items() if k in RESIZABLE}
        if table or kind in before:
            resources[kind] = table
        else:
            resources.pop(kind, None)
    if resources or "resources" in original:
        container["resources"] = resources
