"""What bounds others: LimitRanges, ResourceQuotas and PriorityClasses.

A bound that says nothing that can be kept (a least amount above the greatest, a quota of "-1") is worse than
none: admission would refuse every pod, or count what does not exist. Upstream: ValidateLimitRange and
ValidateResourceQuotaSpec (pkg/apis/core/validation), pkg/apis/scheduling/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_fields import NOT_NEGATIVE, Causes, GoLiteral, go_value, qualified_name
from kubeclient import quantity

Object = dict[str, Any]

_MAX_PRIORITY = 1_000_000_000
_SYSTEM = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}

_LIMITED = ("Container", "PersistentVolumeClaim", "Pod")
_COUNTS = {
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
}
_MEASURED = ("cpu", "memory", "ephemeral-storage")
_AMOUNTS = {f"{prefix}{name}" for prefix in ("", "limits.", "requests.") for name in _MEASURED}
_PAGES = ("hugepages-", "requests.hugepages-")
_SCOPES = (
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
)
_OPPOSITES = ({"BestEffort", "NotBestEffort"}, {"Terminating", "NotTerminating"})


def priority_class(causes: Causes, obj: Object) -> None:
    name, value = obj["metadata"].get("name") or "", obj.get("value") or 0
    if name.startswith("system-"):
        if _SYSTEM.get(name) != value:
            text = "priority class names with 'system-' prefix are reserved for system use only."
            causes.forbidden("metadata.name", f"{text} error: {name} is not a known system priority class")
    elif value > _MAX_PRIORITY:
        causes.forbidden("value", f"maximum allowed value of a user defined priority is {_MAX_PRIORITY}")
    policies = ("Never", "PreemptLowerPriority")
    causes.one_of("preemptionPolicy", obj.get("preemptionPolicy"), policies, empty_ok=True)


def resource_quota(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    hard = spec.get("hard") or {}
    for name, amount in hard.items():
        where = f"spec.hard[{name}]"
        causes.each(where, name, qualified_name(name))
        plain = "/" not in name
        if plain and name not in _COUNTS | _AMOUNTS | {"requests.storage"} and not name.startswith(_PAGES):
            causes.invalid(where, name, "must be a standard resource for quota")
        number = quantity.parse(str(amount))
        if number < 0:
            causes.invalid(where, str(amount), NOT_NEGATIVE)
        elif (name in _COUNTS or name.startswith("count/")) and number % 1:
            causes.invalid(where, str(amount), "must be an integer")
    _check_scopes(causes, spec.get("scopes") or [], hard)


def _check_scopes(causes: Causes, scopes: list[str], hard: Object) -> None:
    shown = GoLiteral(f"[]core.ResourceQuotaScope{{{', '.join(map(go_value, scopes))}}}")
    for scope in scopes:
        if scope not in _SCOPES:
            causes.invalid("spec.scopes", shown, "unsupported scope")
            continue
        covered = {"pods"} if scope == "BestEffort" else {"pods", *_AMOUNTS}
        if any(name in _COUNTS | _AMOUNTS and name not in covered for name in hard):
            causes.invalid("spec.scopes", shown, "unsupported scope applied to resource")
    if any(pair <= set(scopes) for pair in _OPPOSITES):
        causes.invalid("spec.scopes", shown, "conflicting scopes")


def limit_range(causes: Causes, obj: Object) -> None:
    seen: set[str] = set()
    for index, limit in enumerate((obj.get("spec") or {}).get("limits") or ()):
        where, kind = f"spec.limits[{index}]", limit.get("type") or ""
        if "/" not in kind and kind not in _LIMITED:
            causes.invalid(f"{where}.type", kind, "must be a standard limit type or fully qualified")
        if kind in seen:
            causes.duplicate(f"{where}.type", kind)
        seen.add(kind)
        if kind == "Pod":
            for name in ("default", "defaultRequest"):
                if limit.get(name):
                    causes.forbidden(f"{where}.{name}", "may not be specified when `type` is 'Pod'")
        stored = any("storage" in (limit.get(name) or {}) for name in ("min", "max"))
        if kind == "PersistentVolumeClaim" and not stored:
            text = "either minimum or maximum storage value is required, but neither was provided"
            causes.required(f"{where}.limits", text)
        _check_order(causes, where, limit)


# Of each pair the first may not be more than the second; where it is, which field is wrong, and how.
_ORDER = (
    ("min", "max", "min", "min value {} is greater than max value {}"),
    ("min", "defaultRequest", "defaultRequest", "min value {} is greater than default request value {}"),
    ("defaultRequest", "max", "defaultRequest", "default request value {} is greater than max value {}"),
    (
        "defaultRequest",
        "default",
        "defaultRequest",
        "default request value {} is greater than default limit value {}",
    ),
    ("min", "default", "default", "min value {} is greater than default value {}"),
    ("default", "max", "default", "default value {} is greater than max value {}"),
)


def _check_order(causes: Causes, path: str, limit: Object) -> None:
    parts = {name: limit.get(name) or {} for name in ("min", "max", "default", "defaultRequest")}
    for name in sorted({name for part in parts.values() for name in part}):
        for low, high, wrong, text in _ORDER:
            less, more = parts[low].get(name), parts[high].get(name)
            if less is None or more is None or quantity.parse(str(less)) <= quantity.parse(str(more)):
                continue
            causes.invalid(f"{path}.{wrong}[{name}]", str(parts[wrong][name]), text.format(less, more))
    for name, ratio in sorted((limit.get("maxLimitRequestRatio") or {}).items()):
        if quantity.parse(str(ratio)) < 1:
            where = f"{path}.maxLimitRequestRatio[{name}]"
            causes.invalid(where, str(ratio), f"ratio {ratio} is less than 1")
