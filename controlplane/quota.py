"""What a ResourceQuota counts. Pure.

The API server asks before an object is stored (it must not exceed the quota), the controller afterwards (the
status says how much is used); both count with these functions. Source: upstream's pkg/quota/v1/evaluator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from controlplane.scheduler.filters import pod_limits, pod_requests
from kubeclient import quantity
from kubeclient.resources import (
    CONFIG_MAPS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    INGRESSES,
    JOBS,
    LEASES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    RESOURCE_QUOTAS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)

Object = dict[str, Any]
Amounts = dict[str, Fraction]

# Kinds that `count/…` may name; the first seven also go by their plural alone.
COUNTED: tuple[Resource, ...] = (
    PODS, CONFIG_MAPS, SECRETS, SERVICES, PERSISTENT_VOLUME_CLAIMS, REPLICATION_CONTROLLERS, RESOURCE_QUOTAS,
    SERVICE_ACCOUNTS, DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS, JOBS, CRON_JOBS, INGRESSES,
    LEASES,
)  # fmt: skip
_BY_PLURAL_ALONE = {resource.plural for resource in COUNTED[:7]}
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
SCOPES = ("BestEffort", "NotBestEffort")


def names_of(resource: Resource) -> set[str]:
    """The names under which a kind's objects are counted, such as "pods" and "count/pods"."""
    counted = {f"count/{resource.plural}" + (f".{resource.group}" if resource.group else "")}
    return counted | ({resource.plural} if resource.plural in _BY_PLURAL_ALONE else set())


def kind_of(name: str) -> Resource | None:
    """The kind that a name in `hard` counts; None for names that are kept but not counted."""
    if name in _COMPUTE or name.startswith("limits."):
        return PODS
    if name.startswith("requests.") and name != "requests.storage":
        return PODS
    return next((resource for resource in COUNTED if name in names_of(resource)), None)


def usage(resource: Resource, obj: Object) -> Amounts:
    """All that one object could count as, whatever the quota asks for."""
    counts = dict.fromkeys(names_of(resource), Fraction(1))
    if resource != PODS:
        return counts
    if (obj.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        del counts["pods"]  # a finished pod is still an object, but takes nothing of the node
        return counts
    for name, amount in pod_requests(obj).amounts.items():
        exact = Fraction(amount, 1000 if name == "cpu" else 1)
        counts[f"requests.{name}"] = exact
        if name in _COMPUTE:
            counts[name] = exact
    for name, amount in pod_limits(obj).items():
        counts[f"limits.{name}"] = Fraction(amount, 1000 if name == "cpu" else 1)
    return counts


def covers(quota: Object, resource: Resource, obj: Object) -> bool:
    """Whether the quota's scopes include the object; scopes are about pods only."""
    scopes = quota["spec"].get("scopes") or []
    if not scopes or resource != PODS:
        return not scopes
    best_effort = (obj.get("status") or {}).get("qosClass") == "BestEffort"
    return all(best_effort if scope == "BestEffort" else not best_effort for scope in scopes)


def used(quota: Object, resource: Resource, objects: Iterable[Object]) -> Amounts:
    """The sum over objects of one kind, for the names in the quota's `hard` that this kind counts for."""
    total = {name: Fraction(0) for name in quota["spec"].get("hard") or {} if kind_of(name) == resource}
    for obj in objects:
        if covers(quota, resource, obj):
            for name, amount in usage(resource, obj).items():
                if name in total:
                    total[name] += amount
    return total


def unspecified(quota: Object, pod: Object) -> dict[str, list[str]]:
    """Limited amounts that containers do not state, for which upstream refuses the pod: name → containers."""
    found: dict[str, list[str]] = {}
    for name in sorted(quota["spec"].get("hard") or {}):
        side, _, what = name.rpartition(".")
        if kind_of(name) != PODS or what not in ("cpu", "memory") or side not in ("", "requests", "limits"):
            continue
        for container in pod["spec"].get("containers") or []:
            if what not in ((container.get("resources") or {}).get(side or "requests") or {}):
                found.setdefault(name, []).append(container["name"])
    return found


def not_counted(quota: Object) -> list[str]:
    """What of the quota is only kept, as sentences for Warning headers."""
    spec = quota.get("spec") or {}
    names = [name for name in sorted(spec.get("hard") or {}) if kind_of(name) is None]
    found = [f'spec.hard[{name}]: "{name}" is stored but not enforced' for name in names]
    found += [
        f'spec.scopes: "{scope}" is stored, but this quota will not be enforced'
        for scope in spec.get("scopes") or []
        if scope not in SCOPES
    ]
    if spec.get("scopeSelector"):
        found.append("spec.scopeSelector: is stored, but this quota will not be enforced")
    return found


def enforceable(quota: Object) -> bool:
    """False for quotas with scopes that we do not know: to count everything would refuse too much."""
    spec = quota.get("spec") or {}
    return not spec.get("scopeSelector") and all(scope in SCOPES for scope in spec.get("scopes") or [])


def text(amounts: Mapping[str, Fraction], hard: Mapping[str, str], names: Iterable[str]) -> str:
    """ "cpu=500m,pods=1" """
    return ",".join(f"{name}={quantity.written(amounts[name], like=str(hard[name]))}" for name in names)
