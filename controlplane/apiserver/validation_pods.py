"""Pod specs: what a Pod, or the template of a workload, may not contain.

Upstream's ValidatePodSpec (pkg/apis/core/v1/validation), in its order, for the fields a node of ours acts
on. Runs after defaulting, so empty means that the client gave nothing and no default exists.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_addresses import IP_DETAIL, is_ip
from controlplane.apiserver.validation_containers import check_containers
from controlplane.apiserver.validation_fields import (
    Causes,
    check_labels,
    dns_label,
    dns_subdomain,
    label_value,
    qualified_name,
)
from controlplane.apiserver.validation_placement import check_pod_affinity, check_spread
from controlplane.apiserver.validation_security import check_pod_security
from controlplane.apiserver.validation_volumes import check_volumes

Object = dict[str, Any]

RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NODE_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")
_SYSTEMS = ("linux", "windows")
_MAX_INT32 = 2**31 - 1


def check_pod_spec(causes: Causes, path: str, spec: Object, *, template: bool = False) -> None:
    """Everything about one pod spec at `path`."""
    volumes = check_volumes(causes, f"{path}.volumes", spec.get("volumes") or [])
    check_containers(causes, path, spec, volumes, template=template)
    causes.one_of(f"{path}.restartPolicy", spec.get("restartPolicy"), RESTART_POLICIES)
    _check_dns(causes, path, spec)
    _check_numbers(causes, path, spec)
    _check_names(causes, path, spec)
    check_pod_security(causes, path, spec)
    check_labels(causes, f"{path}.nodeSelector", spec.get("nodeSelector") or {})
    check_tolerations(causes, f"{path}.tolerations", spec.get("tolerations") or [])
    _check_node_affinity(
        causes, f"{path}.affinity.nodeAffinity", (spec.get("affinity") or {}).get("nodeAffinity")
    )
    check_pod_affinity(causes, f"{path}.affinity", spec.get("affinity") or {})
    check_spread(causes, f"{path}.topologySpreadConstraints", spec.get("topologySpreadConstraints") or [])
    for index, alias in enumerate(spec.get("hostAliases") or ()):
        where = f"{path}.hostAliases[{index}]"
        if not is_ip(alias.get("ip") or ""):
            causes.invalid(f"{where}.ip", alias.get("ip") or "", IP_DETAIL)
        for position, hostname in enumerate(alias.get("hostnames") or ()):
            causes.each(f"{where}.hostnames[{position}]", hostname, dns_subdomain(hostname))


def _check_dns(causes: Causes, path: str, spec: Object) -> None:
    policy = spec.get("dnsPolicy")
    causes.one_of(f"{path}.dnsPolicy", policy, _DNS_POLICIES)
    config = spec.get("dnsConfig")
    if policy == "None" and config is None:
        causes.required(f"{path}.dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None")
    elif policy == "None" and not (config or {}).get("nameservers"):
        causes.required(
            f"{path}.dnsConfig.nameservers",
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        )
    for index, server in enumerate((config or {}).get("nameservers") or ()):
        if not is_ip(server):
            causes.invalid(f"{path}.dnsConfig.nameservers[{index}]", server, IP_DETAIL)


def _check_numbers(causes: Causes, path: str, spec: Object) -> None:
    # A negative terminationGracePeriodSeconds is taken, and means 1: pod_warnings.py.
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= _MAX_INT32:
        causes.invalid(
            f"{path}.activeDeadlineSeconds", deadline, f"must be between 1 and {_MAX_INT32}, inclusive"
        )


def _check_names(causes: Causes, path: str, spec: Object) -> None:
    for name, rule in (
        ("nodeName", dns_subdomain),
        ("serviceAccountName", dns_subdomain),
        ("hostname", dns_label),
        ("subdomain", dns_label),
        ("priorityClassName", dns_subdomain),
        ("runtimeClassName", dns_subdomain),
    ):
        value = spec.get(name)
        if value:
            causes.each(f"{path}.{name}", value, rule(value))
    for index, gate in enumerate(spec.get("schedulingGates") or ()):
        wanted = gate.get("name") or ""
        causes.each(f"{path}.schedulingGates[{index}]", wanted, qualified_name(wanted))
    for index, gate in enumerate(spec.get("readinessGates") or ()):
        wanted = gate.get("conditionType") or ""
        causes.each(f"{path}.readinessGates[{index}].conditionType", wanted, qualified_name(wanted))
    system = spec.get("os")
    if system is not None and not system.get("name"):
        causes.required(f"{path}.os.name", "cannot be empty")
    elif system is not None:
        causes.one_of(f"{path}.os", system["name"], _SYSTEMS)
    for index, reference in enumerate(spec.get("imagePullSecrets") or ()):
        if not reference.get("name"):
            causes.required(f"{path}.imagePullSecrets[{index}].name")


def check_tolerations(causes: Causes, path: str, tolerations: list[Object]) -> None:
    for index, toleration in enumerate(tolerations):
        where = f"{path}[{index}]"
        key, operator = toleration.get("key") or "", toleration.get("operator") or ""
        if key:
            causes.each(f"{where}.key", key, qualified_name(key))
        elif operator != "Exists":
            detail = (
                'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            )
            causes.invalid(f"{where}.operator", operator, detail)
        if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
            detail = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            causes.invalid(f"{where}.effect", toleration.get("effect") or "", detail)
        if operator in ("", "Equal"):
            causes.each(
                f"{where}.operator", toleration.get("value") or "", label_value(toleration.get("value") or "")
            )
        elif operator == "Exists":
            if toleration.get("value"):
                causes.invalid(
                    f"{where}.operator", toleration, "value must be empty when `operator` is 'Exists'"
                )
        else:
            causes.not_supported(f"{where}.operator", operator, ("Equal", "Exists"))
        causes.one_of(f"{where}.effect", toleration.get("effect"), _EFFECTS, empty_ok=True)


def _check_node_affinity(causes: Causes, path: str, affinity: Object | None) -> None:
    required = (affinity or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return
    where = f"{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    terms = required.get("nodeSelectorTerms") or []
    if not terms:
        causes.required(where, "must have at least one node selector term")
    for index, term in enumerate(terms):
        for position, expression in enumerate(term.get("matchExpressions") or ()):
            _check_node_expression(causes, f"{where}[{index}].matchExpressions[{position}]", expression)


def _check_node_expression(causes: Causes, path: str, expression: Object) -> None:
    operator, values = expression.get("operator") or "", expression.get("values") or []
    if operator not in _NODE_OPERATORS:
        causes.invalid(f"{path}.operator", operator, "not a valid selector operator")
    elif operator in ("In", "NotIn") and not values:
        causes.required(f"{path}.values", "must be specified when `operator` is 'In' or 'NotIn'")
    elif operator in ("Exists", "DoesNotExist") and values:
        causes.forbidden(
            f"{path}.values", "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
        )
    elif operator in ("Gt", "Lt") and len(values) != 1:
        causes.required(f"{path}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'")
    causes.each(f"{path}.key", expression.get("key") or "", qualified_name(expression.get("key") or ""))
