"""The roles that people bind their accounts to: cluster-admin, admin, edit and view.

A tenant can grant no more than these give them, so whatever upstream's roles have is here as well, also for
what this server does not have: charts name old groups and rare subresources in their Roles, and would be
refused for one of them (upstream: plugin/pkg/auth/authorizer/rbac/bootstrappolicy). As there, the three are
put together from labelled parts, to which anybody may add one; no part lets a tenant write endpoints, which
would lead a Service's clients to addresses that no NetworkPolicy lets the tenant reach (CVE-2021-25740).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from controlplane.apiserver.bootstrap_system_roles import READS, WRITES, cluster_role, rule, system_roles
from controlplane.apiserver.escalation import uncovered
from controlplane.role_aggregation import aggregated, aggregates

Object = dict[str, Any]

_UPDATED = "rbac.authorization.kubernetes.io/autoupdate"
_ENTERING = "pods/attach pods/exec pods/portforward pods/proxy"
_OLD_WORKLOADS = "daemonsets deployments ingresses networkpolicies replicasets"
_OLD_SCALES = "deployments/scale replicasets/scale replicationcontrollers/scale"
_SCALES = "deployments/scale replicasets/scale statefulsets/scale"
_WORKLOADS = "daemonsets deployments replicasets statefulsets"


def cluster_roles() -> list[Object]:
    """The four, their parts and those of the cluster's programs, as they are created."""
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    roles = [cluster_role("cluster-admin", everything), *_parts(), *system_roles()]
    for name, found_by in (("view", "edit"), ("edit", "admin"), ("admin", "")):
        role = cluster_role(name, [], **({_label(found_by): "true"} if found_by else {}))
        role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {_label(name): "true"}}]}
        roles.append({**role, "rules": aggregated(role, roles)})
    return roles


def completed(present: Object, wanted: Object) -> Object | None:
    """`present` with what it lacks of `wanted`; None where it lacks nothing.

    Rules that somebody added stay; one that somebody took away comes back unless the role's annotation
    `rbac.authorization.kubernetes.io/autoupdate` is "false". The rules of a role that aggregates already are
    the controller's business.
    """
    annotations = present["metadata"].get("annotations") or {}
    if annotations.get(_UPDATED) == "false":
        return None
    out = copy.deepcopy(present)
    if not aggregates(present):
        out["rules"] = [*(out.get("rules") or []), *uncovered(out.get("rules") or [], wanted["rules"])]
        if aggregates(wanted):
            out["aggregationRule"] = wanted["aggregationRule"]
    for part in ("labels", "annotations"):
        out["metadata"][part] = {**wanted["metadata"][part], **(out["metadata"].get(part) or {})}
    return out if out != present else None


def kept_part(present: Mapping[str, Object], part: Object) -> Object:
    """`part`, before it is created: with the rules that its role had of its own while it was one list.

    `present`: the roles that there are, by name. As upstream does, so that an update takes nothing away, also
    where another of the roles is kept from being updated and gets no label.
    """
    name = part["metadata"]["name"].removeprefix("system:aggregate-to-")
    former = present.get(name)
    if former is None or aggregates(former) or part["metadata"]["name"] in present:
        return part
    return {**part, "rules": [*part["rules"], *uncovered(part["rules"], former.get("rules") or [])]}


def _label(role: str) -> str:
    return f"rbac.authorization.k8s.io/aggregate-to-{role}"


def _parts() -> Iterator[Object]:
    """What is told apart by upstream's names; each role's label finds the part and the role below it."""
    for name, rules in (("admin", _admin()), ("edit", _edit()), ("view", _view())):
        yield cluster_role(f"system:aggregate-to-{name}", rules, **{_label(name): "true"})
    # metrics-server brings this one along.
    usage = [rule(READS, "metrics.k8s.io", "nodes pods")]
    yield cluster_role(
        "system:aggregated-metrics-reader",
        usage,
        **{_label(name): "true" for name in ("admin", "edit", "view")},
    )


def _admin() -> Iterable[Object]:
    yield rule(("create",), "authorization.k8s.io", "localsubjectaccessreviews")
    yield rule((*READS, *WRITES), "rbac.authorization.k8s.io", "rolebindings roles")


def _edit() -> Iterable[Object]:
    yield rule(READS, "", f"{_ENTERING} secrets services/proxy")
    yield rule(("impersonate",), "", "serviceaccounts")
    yield rule(WRITES, "", f"pods {_ENTERING}")
    yield rule(("create",), "", "pods/eviction")
    yield rule(("get", "patch", "update"), "", "pods/resize")
    yield rule(
        WRITES,
        "",
        "configmaps events persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets"
        " serviceaccounts services services/proxy",
    )
    yield rule(("create",), "", "serviceaccounts/token")
    yield rule(WRITES, "apps", f"{_WORKLOADS} deployments/rollback {_SCALES}")
    yield rule(WRITES, "autoscaling", "horizontalpodautoscalers")
    yield rule(WRITES, "batch", "cronjobs jobs")
    yield rule(WRITES, "extensions", f"{_OLD_WORKLOADS} deployments/rollback {_OLD_SCALES}")
    yield rule(WRITES, "policy", "poddisruptionbudgets")
    yield rule(WRITES, "networking.k8s.io", "ingresses networkpolicies")
    yield rule((*READS, *WRITES), "coordination.k8s.io", "leases")


def _view() -> Iterable[Object]:
    yield rule(
        READS,
        "",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods"
        " replicationcontrollers replicationcontrollers/scale serviceaccounts services services/status",
    )
    yield rule(
        READS,
        "",
        "bindings events limitranges namespaces/status pods/log pods/status replicationcontrollers/status"
        " resourcequotas resourcequotas/status",
    )
    yield rule(READS, "", "namespaces")
    yield rule(READS, "events.k8s.io", "events")  # upstream's is only about the core group's
    yield rule(READS, "discovery.k8s.io", "endpointslices")
    yield rule(READS, "apps", f"controllerrevisions {_WORKLOADS} {_statuses(_WORKLOADS)} {_SCALES}")
    yield rule(READS, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status")
    yield rule(READS, "batch", "cronjobs cronjobs/status jobs jobs/status")
    old = _statuses("daemonsets deployments ingresses replicasets")
    yield rule(READS, "extensions", f"{_OLD_WORKLOADS} {old} {_OLD_SCALES}")
    yield rule(READS, "policy", "poddisruptionbudgets poddisruptionbudgets/status")
    yield rule(READS, "networking.k8s.io", "ingresses ingresses/status networkpolicies")


def _statuses(names: str) -> str:
    return " ".join(f"{name}/status" for name in names.split())
