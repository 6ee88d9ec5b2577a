"""Tables: `kubectl get` prints what the server says, column by column.

A client that accepts `as=Table` gets rows of cells instead of objects, so that old clients can print new
kinds. Columns and texts are those of upstream's pkg/printers/internalversion; kinds without their own get a
name and a date. Each row also carries the object's metadata (or all of it, or nothing), as `includeObject`
asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from controlplane.apiserver import tables_cluster, tables_core, tables_pods, tables_workloads
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.tables_text import Column

Object = dict[str, Any]
Cells = Callable[[Object, float], list[Any]]

_RBAC = "rbac.authorization.k8s.io"
_CREATED = (tables_core.CREATED, tables_core.created)


def table(
    info: ResourceInfo,
    objects: Sequence[Object],
    *,
    include_object: str,
    version: str,
    resource_version: str,
    now: float,
    with_columns: bool = True,
) -> Object:
    """A meta.k8s.io Table of `version`; `include_object` is Metadata, Object or None, `now` epoch seconds.

    Without columns it is a later event of a watch, whose first event had them.
    """
    printed, cells = _PRINTERS.get((info.group, info.plural), _CREATED)
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": {"resourceVersion": resource_version} if resource_version else {},
        "columnDefinitions": [column.to_object() for column in printed] if with_columns else [],
        "rows": [_row(info, obj, cells, include_object, version, now) for obj in objects],
    }


def columns_of(info: ResourceInfo) -> tuple[Column, ...]:
    """The columns of one kind, wide ones included."""
    return _PRINTERS.get((info.group, info.plural), _CREATED)[0]


def _row(
    info: ResourceInfo, obj: Object, cells: Cells, include_object: str, version: str, now: float
) -> Object:
    row: Object = {"cells": cells(obj, now)}
    if info.plural == "pods" and not info.group:
        conditions = tables_pods.conditions(obj)
        if conditions:
            row["conditions"] = conditions
    row["object"] = _embedded(obj, include_object, version)
    return row


def _embedded(obj: Object, include_object: str, version: str) -> Object | None:
    if include_object == "None":
        return None
    if include_object == "Object":
        return obj
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj["metadata"],
    }


_PRINTERS: dict[tuple[str, str], tuple[tuple[Column, ...], Cells]] = {
    ("", "pods"): (tables_pods.COLUMNS, tables_pods.cells),
    ("", "nodes"): (tables_core.NODE, tables_core.node),
    ("", "services"): (tables_core.SERVICE, tables_core.service),
    ("", "endpoints"): (tables_core.ENDPOINTS, tables_core.endpoints),
    ("", "namespaces"): (tables_core.NAMESPACE, tables_core.namespace),
    ("", "configmaps"): (tables_core.CONFIG_MAP, tables_core.config_map),
    ("", "secrets"): (tables_core.SECRET, tables_core.secret),
    ("", "serviceaccounts"): (tables_core.SERVICE_ACCOUNT, tables_core.service_account),
    ("", "events"): (tables_core.EVENT, tables_core.event),
    ("events.k8s.io", "events"): (tables_core.EVENT, tables_core.event),
    ("", "persistentvolumes"): (tables_core.VOLUME, tables_core.volume),
    ("", "persistentvolumeclaims"): (tables_core.CLAIM, tables_core.claim),
    ("", "resourcequotas"): (tables_core.QUOTA, tables_core.quota),
    ("", "podtemplates"): (tables_core.POD_TEMPLATE, tables_core.pod_template),
    ("", "replicationcontrollers"): (tables_workloads.REPLICA_SET, tables_workloads.replica_set),
    ("apps", "deployments"): (tables_workloads.DEPLOYMENT, tables_workloads.deployment),
    ("apps", "replicasets"): (tables_workloads.REPLICA_SET, tables_workloads.replica_set),
    ("apps", "statefulsets"): (tables_workloads.STATEFUL_SET, tables_workloads.stateful_set),
    ("apps", "daemonsets"): (tables_workloads.DAEMON_SET, tables_workloads.daemon_set),
    ("apps", "controllerrevisions"): (tables_workloads.REVISION, tables_workloads.revision),
    ("batch", "jobs"): (tables_workloads.JOB, tables_workloads.job),
    ("batch", "cronjobs"): (tables_workloads.CRON_JOB, tables_workloads.cron_job),
    ("autoscaling", "scales"): (tables_workloads.SCALE, tables_workloads.scale),
    ("autoscaling", "horizontalpodautoscalers"): (tables_workloads.AUTOSCALER, tables_workloads.autoscaler),
    ("discovery.k8s.io", "endpointslices"): (tables_cluster.SLICE, tables_cluster.endpoint_slice),
    ("networking.k8s.io", "ingresses"): (tables_cluster.INGRESS, tables_cluster.ingress),
    ("networking.k8s.io", "ingressclasses"): (tables_cluster.INGRESS_CLASS, tables_cluster.ingress_class),
    ("networking.k8s.io", "networkpolicies"): (tables_cluster.NETWORK_POLICY, tables_cluster.network_policy),
    ("metrics.k8s.io", "nodes"): (tables_cluster.USAGE, tables_cluster.usage),
    ("metrics.k8s.io", "pods"): (tables_cluster.USAGE, tables_cluster.usage),
    ("policy", "poddisruptionbudgets"): (tables_cluster.BUDGET, tables_cluster.budget),
    (_RBAC, "rolebindings"): (tables_cluster.BINDING, tables_cluster.role_binding),
    (_RBAC, "clusterrolebindings"): (tables_cluster.BINDING, tables_cluster.role_binding),
    ("storage.k8s.io", "storageclasses"): (tables_cluster.STORAGE_CLASS, tables_cluster.storage_class),
    ("scheduling.k8s.io", "priorityclasses"): (tables_cluster.PRIORITY_CLASS, tables_cluster.priority_class),
    ("coordination.k8s.io", "leases"): (tables_cluster.LEASE, tables_cluster.lease),
    ("node.k8s.io", "runtimeclasses"): (tables_cluster.RUNTIME_CLASS, tables_cluster.runtime_class),
    ("certificates.k8s.io", "certificatesigningrequests"): (
        tables_cluster.SIGNING_REQUEST,
        tables_cluster.signing_request,
    ),
}
