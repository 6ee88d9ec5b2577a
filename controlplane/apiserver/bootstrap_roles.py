"""The roles that people bind their accounts to: cluster-admin, admin, edit and view.

A tenant can grant no more than these give them, so whatever upstream's roles have is here as well, also for
what this server does not have: charts name old groups and rare subresources in their Roles, and would be
refused for one of them (upstream: plugin/pkg/auth/authorizer/rbac/bootstrappolicy). Upstream puts the roles
together from labelled parts; here each is one list.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from controlplane.apiserver.escalation import uncovered
from controlplane.apiserver.resources import RESOURCES, ResourceInfo

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_WRITES = ["create", "delete", "deletecollection", "patch", "update"]
_READS = ["get", "list", "watch"]
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_UPDATED = "rbac.authorization.kubernetes.io/autoupdate"

# What everybody reads and no tenant writes, besides what _named finds.
_READ_ONLY = {
    "": [
        "bindings",
        "resourcequotas",
        "resourcequotas/status",
        "limitranges",
        "events",
        "namespaces",
        "namespaces/status",
    ],
    "events.k8s.io": ["events"],
    "metrics.k8s.io": ["pods", "nodes"],  # metrics-server's system:aggregated-metrics-reader
}
# Before they had groups of their own. Nothing serves them any more, but Roles still speak of them.
_EXTENSIONS = {
    "extensions": [
        "daemonsets",
        "deployments",
        "deployments/scale",
        "ingresses",
        "networkpolicies",
        "replicasets",
        "replicasets/scale",
        "replicationcontrollers/scale",
    ]
}
_EXTENSIONS_STATUS = {
    "extensions": ["daemonsets/status", "deployments/status", "ingresses/status", "replicasets/status"]
}
_ROLLBACK = {"apps": ["deployments/rollback"], "extensions": ["deployments/rollback"]}


def cluster_roles() -> Iterator[Object]:
    """The four, as they are created."""
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    yield _role("cluster-admin", everything)
    reviews = _rules({"authorization.k8s.io": ["localsubjectaccessreviews"]}, ["create"])
    yield _role("admin", [*_writing("admin"), *reviews])
    yield _role("edit", _writing("edit"))
    yield _role("view", [*_rules(_named("view"), _READS), *_reading()])


def completed(present: Object, wanted: Object) -> Object | None:
    """`present` with the rules of `wanted` that it does not cover; None where it covers all.

    Rules that somebody added stay; one that somebody took away comes back unless the role's annotation
    `rbac.authorization.kubernetes.io/autoupdate` is "false".
    """
    annotations = present["metadata"].get("annotations") or {}
    missing = uncovered(present.get("rules") or [], wanted["rules"])
    if annotations.get(_UPDATED) == "false" or not missing:
        return None
    out = copy.deepcopy(present)
    out["rules"] = [*(out.get("rules") or []), *missing]
    for part in ("labels", "annotations"):
        out["metadata"][part] = {**wanted["metadata"][part], **(out["metadata"].get(part) or {})}
    return out


def _role(name: str, rules: list[Object]) -> Object:
    metadata = {"name": name, "labels": dict(_LABELS), "annotations": {_UPDATED: "true"}}
    return {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": rules}


def _writing(role: str) -> list[Object]:
    return [
        *_rules(_named(role), [*_READS, *_WRITES]),
        *_rules({"": ["services/proxy"]}, [*_READS, *_WRITES]),
        *_rules({"": ["events"]}, _WRITES),
        *_rules(_EXTENSIONS, _WRITES),
        *_rules(_ROLLBACK, _WRITES),
        *_rules({"": ["serviceaccounts"]}, ["impersonate"]),
        *_reading(),
    ]


def _reading() -> list[Object]:
    return [
        *_rules(_READ_ONLY, _READS),
        *_rules(_EXTENSIONS, _READS),
        *_rules(_EXTENSIONS_STATUS, _READS),
    ]


def _named(role: str) -> dict[str, list[str]]:
    """Resources per group: view sees no secrets and enters no pods, only admin handles roles."""
    found: dict[str, list[str]] = {}
    for info in RESOURCES:
        if not info.namespaced or not info.stored or _kept_from(info, role):
            continue
        names = found.setdefault(info.group, [])
        names.append(info.plural)
        for subresource in info.subresources:
            harmless = subresource in ("log", "status", "scale")
            if harmless or (role != "view" and subresource not in ("binding", "ephemeralcontainers")):
                names.append(f"{info.plural}/{subresource}")
    return found


def _kept_from(info: ResourceInfo, role: str) -> bool:
    key = (info.group, info.plural)
    if key in {("", "resourcequotas"), ("", "limitranges"), ("", "events"), ("events.k8s.io", "events")}:
        return True  # what a tenant may do with them is said apart
    if info.group == _RBAC:
        return role != "admin"
    return key == ("", "secrets") and role == "view"


def _rules(resources: dict[str, list[str]], verbs: list[str]) -> list[Object]:
    return [
        {"apiGroups": [group], "resources": list(names), "verbs": list(verbs)}
        for group, names in resources.items()
    ]
