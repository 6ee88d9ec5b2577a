"""Where a pod may be: affinity between pods, and even spreading. Upstream: pkg/apis/core/validation."""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_fields import Causes, check_selector, qualified_name

Object = dict[str, Any]

REQUIRED, PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
_UNSATISFIABLE = ("DoNotSchedule", "ScheduleAnyway")
_POLICIES = ("Honor", "Ignore")


def check_pod_affinity(causes: Causes, path: str, affinity: Object) -> None:
    """podAffinity and podAntiAffinity of an affinity at `path`."""
    for side in ("podAffinity", "podAntiAffinity"):
        terms = affinity.get(side) or {}
        for index, term in enumerate(terms.get(REQUIRED) or ()):
            _check_term(causes, f"{path}.{side}.{REQUIRED}[{index}]", term)
        for index, weighted in enumerate(terms.get(PREFERRED) or ()):
            where = f"{path}.{side}.{PREFERRED}[{index}]"
            weight = weighted.get("weight") or 0
            if not 1 <= weight <= 100:
                causes.invalid(f"{where}.weight", weight, "must be in the range 1-100")
            _check_term(causes, f"{where}.podAffinityTerm", weighted.get("podAffinityTerm") or {})


def _check_term(causes: Causes, path: str, term: Object) -> None:
    for name in ("labelSelector", "namespaceSelector"):
        if term.get(name) is not None:
            check_selector(causes, f"{path}.{name}", term[name])
    _check_key(causes, f"{path}.topologyKey", term.get("topologyKey") or "")


def _check_key(causes: Causes, path: str, key: str) -> None:
    if not key:
        causes.required(path, "can not be empty")
    else:
        causes.each(path, key, qualified_name(key))


def check_spread(causes: Causes, path: str, constraints: list[Object]) -> None:
    """topologySpreadConstraints at `path`."""
    seen = set()
    for index, item in enumerate(constraints):
        where = f"{path}[{index}]"
        skew, unsatisfiable = item.get("maxSkew") or 0, item.get("whenUnsatisfiable") or ""
        if skew <= 0:
            causes.invalid(f"{where}.maxSkew", skew, "must be greater than zero")
        _check_key(causes, f"{where}.topologyKey", item.get("topologyKey") or "")
        if unsatisfiable not in _UNSATISFIABLE:
            causes.not_supported(f"{where}.whenUnsatisfiable", unsatisfiable, _UNSATISFIABLE)
        pair = item.get("topologyKey"), unsatisfiable
        if pair in seen:
            causes.duplicate(f"{where}.{{topologyKey, whenUnsatisfiable}}", f"{{{pair[0]}, {pair[1]}}}")
        seen.add(pair)
        if (least := item.get("minDomains")) is not None:
            if least <= 0:
                causes.invalid(f"{where}.minDomains", least, "must be greater than zero")
            if unsatisfiable != "DoNotSchedule":
                detail = f"can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {unsatisfiable}"
                causes.invalid(f"{where}.minDomains", least, detail)
        for name in ("nodeAffinityPolicy", "nodeTaintsPolicy"):
            if item.get(name) is not None and item[name] not in _POLICIES:
                causes.not_supported(f"{where}.{name}", item[name], _POLICIES)
        if item.get("labelSelector") is not None:
            check_selector(causes, f"{where}.labelSelector", item["labelSelector"])
