"""What a RuntimeClass does to the pods that name it: overhead, node selector and tolerations come with it.

Source: upstream's plugin/pkg/admission/runtimeclass, whose messages these are, and its
pkg/util/tolerations. The class itself is only looked at when a pod is created; the node that runs it looks
up the handler.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.errors import forbidden
from controlplane.apiserver.resources import ResourceInfo
from controlplane.storage.cache import Cache
from kubeclient import quantity

Object = dict[str, Any]


def apply_runtime_class(cache: Cache, info: ResourceInfo, pod: Object) -> None:
    """Changes `pod`. Raises StatusError (403)."""
    spec, name = pod["spec"], pod["metadata"].get("name", "")
    wanted = spec.get("runtimeClassName")
    found: Object = {}
    if wanted:
        entry = cache.latest("node.k8s.io/runtimeclasses", "", wanted)
        if entry is None:
            raise forbidden(info, name, f'pod rejected: RuntimeClass "{wanted}" not found')
        found = entry.parse()
    problem = _set_overhead(spec, found) or _set_scheduling(spec, found.get("scheduling") or {})
    if problem is not None:
        raise forbidden(info, name, problem)


def _set_overhead(spec: Object, found: Object) -> str | None:
    given, fixed = spec.get("overhead") or {}, (found.get("overhead") or {}).get("podFixed") or {}
    if not found.get("overhead"):
        return (
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
            if given
            else None
        )
    if given and _amounts(given) != _amounts(fixed):
        return "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"
    spec["overhead"] = dict(fixed)
    return None


def _amounts(table: Object) -> dict[str, Any]:
    return {name: quantity.parse(str(amount)) for name, amount in table.items()}


def _set_scheduling(spec: Object, scheduling: Object) -> str | None:
    selector = dict(spec.get("nodeSelector") or {})
    for key, value in (scheduling.get("nodeSelector") or {}).items():
        own = selector.setdefault(key, value)
        if own != value:
            where = f"nodeSelector[{key}]"
            return f"conflict: runtimeClass.scheduling.{where} = {value}; pod.spec.{where} = {own}"
    if selector:
        spec["nodeSelector"] = selector
    if scheduling.get("tolerations"):
        spec["tolerations"] = merged(spec.get("tolerations") or [], scheduling["tolerations"])
    return None


def merged(first: list[Object], second: list[Object]) -> list[Object]:
    """Both lists, without what another entry tolerates as well."""
    everything = [*first, *second]
    kept: list[Object] = []
    for index, one in enumerate(everything):
        later = (other for other in everything[index + 1 :] if other != one)
        if not any(_covers(other, one) for other in (*kept, *later)):
            kept.append(one)
    return kept


def _covers(wide: Object, narrow: Object) -> bool:
    """Whether `wide` tolerates all that `narrow` does."""
    if wide == narrow:
        return True
    exists = wide.get("operator") == "Exists"
    if (narrow.get("key") or "") != (wide.get("key") or "") and not (exists and not wide.get("key")):
        return False
    if wide.get("effect") and narrow.get("effect") != wide["effect"]:
        return False
    seconds, asked = wide.get("tolerationSeconds"), narrow.get("tolerationSeconds")
    if wide.get("effect") == "NoExecute" and seconds is not None and (asked is None or asked > seconds):
        return False
    equal = (narrow.get("operator") or "Equal") == "Equal"
    return exists or (equal and (narrow.get("value") or "") == (wide.get("value") or ""))
