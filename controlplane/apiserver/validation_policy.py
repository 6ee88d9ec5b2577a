"""Rules about others: RBAC, disruption budgets, autoscalers, priority and runtime classes.

Upstream: pkg/apis/rbac/validation, pkg/apis/policy/validation, pkg/apis/autoscaling/validation,
pkg/apis/scheduling/validation, pkg/apis/node/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_containers import check_resources
from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    GoLiteral,
    check_labels,
    check_selector,
    dns_label,
    path_segment,
)
from controlplane.apiserver.validation_pods import check_tolerations
from controlplane.apiserver.validation_workloads import (
    check_int_or_percent,
    go_int_or_string,
    over_100_percent,
)

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"


def role(causes: Causes, obj: Object) -> None:
    _check_rules(causes, obj.get("rules") or [], namespaced=True)


def cluster_role(causes: Causes, obj: Object) -> None:
    _check_rules(causes, obj.get("rules") or [], namespaced=False)
    aggregation = obj.get("aggregationRule")
    if aggregation is None:
        return
    where = "aggregationRule.clusterRoleSelectors"
    selectors = aggregation.get("clusterRoleSelectors") or []
    if not selectors:
        causes.required(where, "at least one clusterRoleSelector required if aggregationRule is non-nil")
    for index, selector in enumerate(selectors):
        check_selector(causes, f"{where}[{index}]", selector)


def _check_rules(causes: Causes, rules: list[Object], *, namespaced: bool) -> None:
    for index, rule in enumerate(rules):
        where = f"rules[{index}]"
        if not rule.get("verbs"):
            causes.required(f"{where}.verbs", "verbs must contain at least one value")
        if rule.get("nonResourceURLs"):
            if namespaced:
                detail = "namespaced rules cannot apply to non-resource URLs"
                causes.invalid(f"{where}.nonResourceURLs", rule["nonResourceURLs"], detail)
            elif rule.get("apiGroups") or rule.get("resources") or rule.get("resourceNames"):
                detail = "rules cannot apply to both regular resources and non-resource URLs"
                causes.invalid(f"{where}.nonResourceURLs", rule["nonResourceURLs"], detail)
            continue
        if not rule.get("apiGroups"):
            causes.required(f"{where}.apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            causes.required(f"{where}.resources", "resource rules must supply at least one resource")


def role_binding(causes: Causes, obj: Object) -> None:
    reference = obj.get("roleRef") or {}
    namespaced = bool((obj.get("metadata") or {}).get("namespace"))
    if reference.get("apiGroup") != _RBAC:
        causes.not_supported("roleRef.apiGroup", reference.get("apiGroup") or "", (_RBAC,))
    kinds = ("Role", "ClusterRole") if namespaced else ("ClusterRole",)
    if reference.get("kind") not in kinds:
        causes.not_supported("roleRef.kind", reference.get("kind") or "", kinds)
    if not reference.get("name"):
        causes.required("roleRef.name")
    else:
        causes.each("roleRef.name", reference["name"], path_segment(reference["name"]))
    for index, subject in enumerate(obj.get("subjects") or ()):
        where = f"subjects[{index}]"
        if not subject.get("name"):
            causes.required(f"{where}.name")
        kind = subject.get("kind") or ""
        if kind not in ("ServiceAccount", "User", "Group"):
            causes.not_supported(f"{where}.kind", kind, ("ServiceAccount", "User", "Group"))
        elif kind == "ServiceAccount" and not subject.get("namespace"):
            causes.required(f"{where}.namespace")


def role_binding_update(causes: Causes, new: Object, old: Object) -> None:
    after, before = new.get("roleRef") or {}, old.get("roleRef") or {}
    if after != before:
        shown = ", ".join(f'{key}:"{after.get(name) or ""}"' for key, name in _ROLE_REF)
        causes.invalid("roleRef", GoLiteral(f"rbac.RoleRef{{{shown}}}"), "cannot change roleRef")


_ROLE_REF = (("APIGroup", "apiGroup"), ("Kind", "kind"), ("Name", "name"))


def disruption_budget(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        causes.invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    for name in ("minAvailable", "maxUnavailable"):
        value = spec.get(name)
        check_int_or_percent(causes, f"spec.{name}", value)
        if isinstance(value, str) and over_100_percent(value.rstrip("%")):
            causes.invalid(f"spec.{name}", go_int_or_string(value), "must not be greater than 100%")
    policy = spec.get("unhealthyPodEvictionPolicy")
    if policy is not None:
        causes.one_of("spec.unhealthyPodEvictionPolicy", policy, ("AlwaysAllow", "IfHealthyBudget"))
    check_selector(causes, "spec.selector", spec.get("selector") or {})


def autoscaler(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    low, high = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    if low is not None and low < 1:
        causes.invalid("spec.minReplicas", low, "must be greater than or equal to 1")
    if high < 1:
        causes.invalid("spec.maxReplicas", high, "must be greater than 0")
    elif low is not None and high < low:
        causes.invalid("spec.maxReplicas", high, "must be greater than or equal to `minReplicas`")
    target = spec.get("scaleTargetRef") or {}
    for name in ("kind", "name"):
        if not target.get(name):
            causes.required(f"spec.scaleTargetRef.{name}")


def priority_class_update(causes: Causes, new: Object, old: Object) -> None:
    if new.get("value") != old.get("value"):
        causes.forbidden("value", "may not be changed in an update.")
    if new.get("preemptionPolicy") != old.get("preemptionPolicy"):
        causes.invalid("preemptionPolicy", new.get("preemptionPolicy"), IMMUTABLE)


def runtime_class(causes: Causes, obj: Object) -> None:
    handler = obj.get("handler") or ""
    causes.each("handler", handler, dns_label(handler))
    fixed = (obj.get("overhead") or {}).get("podFixed") or {}
    check_resources(causes, "overhead.podFixed", {"limits": fixed})
    scheduling = obj.get("scheduling") or {}
    check_labels(causes, "scheduling.nodeSelector", scheduling.get("nodeSelector") or {})
    check_tolerations(causes, "scheduling.tolerations", scheduling.get("tolerations") or [])


def runtime_class_update(causes: Causes, new: Object, old: Object) -> None:
    if new.get("handler") != old.get("handler"):
        causes.invalid("handler", new.get("handler"), IMMUTABLE)
