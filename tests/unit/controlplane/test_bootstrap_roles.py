"""The roles of every cluster: nothing that upstream's have is missing, and older ones catch up."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from controlplane.apiserver.bootstrap_roles import cluster_roles, completed, kept_part
from controlplane.apiserver.bootstrap_system_roles import bindings
from controlplane.apiserver.escalation import uncovered

Object = dict[str, Any]

ROLES = {role["metadata"]["name"]: role for role in cluster_roles()}
READS = ("get", "list", "watch")
WRITES = ("create", "delete", "deletecollection", "patch", "update")
WORKLOADS = "daemonsets deployments replicasets statefulsets"
OLD_WORKLOADS = "daemonsets deployments ingresses replicasets"
SCALES = "deployments/scale replicasets/scale"


def statuses(names: str) -> str:
    return " ".join(f"{name}/status" for name in names.split())


# Upstream's system:aggregate-to-view, -edit and -admin: verbs, group, resources.
VIEW = [
    (READS, "", "configmaps endpoints persistentvolumeclaims pods replicationcontrollers serviceaccounts"),
    (READS, "", "services namespaces bindings events limitranges resourcequotas"),
    (READS, "", statuses("namespaces pods replicationcontrollers resourcequotas services") + " pods/log"),
    (READS, "", "persistentvolumeclaims/status replicationcontrollers/scale"),
    (READS, "discovery.k8s.io", "endpointslices"),
    (READS, "apps", f"controllerrevisions {WORKLOADS} {statuses(WORKLOADS)} {SCALES} statefulsets/scale"),
    (READS, "autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status"),
    (READS, "batch", "cronjobs jobs cronjobs/status jobs/status"),
    (READS, "extensions", f"{OLD_WORKLOADS} networkpolicies {statuses(OLD_WORKLOADS)} {SCALES}"),
    (READS, "extensions", "replicationcontrollers/scale"),
    (READS, "policy", "poddisruptionbudgets poddisruptionbudgets/status"),
    (READS, "networking.k8s.io", "ingresses ingresses/status networkpolicies"),
]
EDIT = [
    *VIEW,
    (READS + WRITES, "", "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy"),
    (("impersonate",), "", "serviceaccounts"),
    (("create",), "", "pods/eviction serviceaccounts/token"),
    (WRITES, "", "pods configmaps events persistentvolumeclaims replicationcontrollers"),
    (WRITES, "", "replicationcontrollers/scale serviceaccounts services"),
    (WRITES, "apps", f"{WORKLOADS} deployments/rollback {SCALES} statefulsets/scale"),
    (WRITES, "autoscaling", "horizontalpodautoscalers"),
    (WRITES, "batch", "cronjobs jobs"),
    (WRITES, "extensions", f"{OLD_WORKLOADS} networkpolicies deployments/rollback {SCALES}"),
    (WRITES, "extensions", "replicationcontrollers/scale"),
    (WRITES, "policy", "poddisruptionbudgets"),
    (WRITES, "networking.k8s.io", "ingresses networkpolicies"),
    (READS + WRITES, "coordination.k8s.io", "leases"),
]
ADMIN = [
    *EDIT,
    (("create",), "authorization.k8s.io", "localsubjectaccessreviews"),
    (READS + WRITES, "rbac.authorization.k8s.io", "roles rolebindings"),
]


def rules(rows: list[tuple[tuple[str, ...], str, str]]) -> list[Object]:
    return [
        {"verbs": list(verbs), "apiGroups": [group], "resources": names.split()}
        for verbs, group, names in rows
    ]


@pytest.mark.parametrize(("name", "upstreams"), [("view", VIEW), ("edit", EDIT), ("admin", ADMIN)])
def test_each_has_what_upstreams_has(name: str, upstreams: list[Any]) -> None:
    assert uncovered(ROLES[name]["rules"], rules(upstreams)) == []


@pytest.mark.parametrize(
    ("name", "verbs", "group", "resource"),
    [
        ("view", "get", "", "secrets"),
        ("view", "create", "", "events"),
        ("view", "get", "", "pods/exec"),
        ("edit", "update", "", "resourcequotas"),
        ("edit", "get", "rbac.authorization.k8s.io", "roles"),
        ("admin", "update", "", "limitranges"),
        ("admin", "impersonate", "", "users"),
        ("admin", "create", "", "bindings"),
        ("edit", "update", "", "pods/status"),
        # They lead a Service's clients to wherever the writer says (CVE-2021-25740).
        ("edit", "update", "", "endpoints"),
        ("admin", "create", "", "endpoints"),
        ("admin", "patch", "discovery.k8s.io", "endpointslices"),
    ],
)
def test_none_has_what_is_above_it(name: str, verbs: str, group: str, resource: str) -> None:
    wanted = rules([((verbs,), group, resource)])
    assert uncovered(ROLES[name]["rules"], wanted) == wanted


def test_an_older_role_gets_what_it_lacks_and_keeps_what_it_was_given() -> None:
    wanted = ROLES["system:aggregate-to-edit"]
    own = {"verbs": ["get"], "apiGroups": ["a.example"], "resources": ["things"]}
    older = copy.deepcopy(wanted)
    older["metadata"] = {"name": wanted["metadata"]["name"], "labels": {"mine": "yes"}}
    lost = older["rules"].pop(3)
    older["rules"].append(own)
    found = completed(older, wanted)
    assert found is not None
    assert found["rules"] == [*older["rules"], lost]
    assert found["metadata"]["labels"] == {"mine": "yes", **wanted["metadata"]["labels"]}
    assert completed(found, wanted) is None
    wider = copy.deepcopy(found)
    wider["rules"] = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    assert completed(wider, wanted) is None


def test_a_role_that_was_one_list_aggregates_and_its_part_keeps_what_it_had() -> None:
    own = {"verbs": ["get"], "apiGroups": ["a.example"], "resources": ["things"]}
    # Of view's, which may be kept from getting the label by which edit finds it.
    kept = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    written = {"verbs": ["create"], "apiGroups": [""], "resources": ["pods"]}
    older = {"metadata": {"name": "edit"}, "rules": [kept, written, own]}
    found = completed(older, ROLES["edit"])
    assert found is not None
    assert found["aggregationRule"] == ROLES["edit"]["aggregationRule"]
    assert uncovered(found["rules"], [*ROLES["edit"]["rules"], own]) == []
    part = ROLES["system:aggregate-to-edit"]
    assert kept_part({"edit": older}, part)["rules"] == [*part["rules"], kept, own]
    assert kept_part({"edit": older, part["metadata"]["name"]: part}, part) == part
    assert kept_part({"edit": found}, part) == part
    assert kept_part({}, part) == part


def test_each_aggregates_what_its_label_says() -> None:
    labelled = {
        name: {label for label in role["metadata"]["labels"] if "aggregate-to" in label}
        for name, role in ROLES.items()
    }
    to = "rbac.authorization.k8s.io/aggregate-to-"
    assert labelled["view"] == {f"{to}edit"}
    assert labelled["edit"] == {f"{to}admin"}
    for name in ("view", "edit", "admin"):
        selector = {"matchLabels": {f"{to}{name}": "true"}}
        assert ROLES[name]["aggregationRule"] == {"clusterRoleSelectors": [selector]}
        assert ROLES[f"system:aggregate-to-{name}"]["rules"][0] in ROLES[name]["rules"]


def test_what_is_bound_is_there() -> None:
    bound = {binding["roleRef"]["name"] for binding in bindings()}
    assert bound <= set(ROLES)
    assert {"system:auth-delegator", "system:monitoring", "system:kubelet-api-admin"} <= set(ROLES)


def test_a_role_that_is_not_to_be_updated_stays() -> None:
    kept = copy.deepcopy(ROLES["edit"]) | {"rules": []}
    kept["metadata"]["annotations"] = {"rbac.authorization.kubernetes.io/autoupdate": "false"}
    assert completed(kept, ROLES["edit"]) is None
