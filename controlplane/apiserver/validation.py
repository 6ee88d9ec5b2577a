"""Semantic validation: what the schema cannot say, with upstream's field paths and sentences.

`validate_create` and `validate_update` take objects that fit their schema and have their defaults. They
return every problem at once, in upstream's order: metadata first. An empty list means that the object may be
stored. Metadata rules are apimachinery's pkg/api/validation/objectmeta.go; the rest is dispatched by kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.apiserver import (
    validation_batch,
    validation_certificates,
    validation_config,
    validation_limits,
    validation_network,
    validation_network_policy,
    validation_pod_resize,
    validation_pod_update,
    validation_policy,
    validation_storage,
    validation_workloads,
)
from controlplane.apiserver.errors import Cause
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    check_labels,
    dns_1035_label,
    dns_label,
    dns_subdomain,
    path_segment,
    qualified_name,
)

Object = dict[str, Any]
CreateRule = Callable[[Causes, Object], None]
UpdateRule = Callable[[Causes, Object, Object], None]

_MAX_ANNOTATIONS = 256 * 1024
_RBAC = "rbac.authorization.k8s.io"
_REQUESTS = ("certificates.k8s.io", "certificatesigningrequests")
_TEMPLATES = ("spec.template.", "spec.jobTemplate.")
_STANDARD_FINALIZERS = ("kubernetes", "orphan", "foregroundDeletion")


def name_rule(info: ResourceInfo) -> Callable[[str], list[str]]:
    """The format of this kind's names."""
    if info.group == _RBAC:
        return path_segment
    if info.kind == "Service":
        return dns_1035_label
    if info.kind == "Namespace":
        return dns_label
    return dns_subdomain


def validate_create(info: ResourceInfo, obj: Object) -> list[Cause]:
    """Problems of a new object; [] when there are none. Reviews and bindings need no metadata."""
    causes = Causes()
    if info.stored:
        check_metadata(causes, info, obj)
    rule = _CREATE.get((info.group, info.plural))
    if rule is not None:
        rule(causes, obj)
    return causes.found


def validate_update(info: ResourceInfo, new: Object, old: Object, subresource: str = "") -> list[Cause]:
    """Problems of replacing `old` by `new`, perhaps through a subresource."""
    causes = Causes()
    check_metadata(causes, info, new)
    check_metadata_update(causes, new.get("metadata") or {}, old.get("metadata") or {})
    special = _UPDATE.get((info.group, info.plural))
    if subresource == "resize":
        special = validation_pod_resize.pod_resize
    create = _CREATE.get((info.group, info.plural))
    if create is not None and _judged_anew((info.group, info.plural), new, old):
        causes.found += _new_faults(create, new, old)
    if special is not None:
        special(causes, new, old)
    return causes.found


def _new_faults(rule: CreateRule, new: Object, old: Object) -> list[Cause]:
    """What the rule for new objects says of `new`, but for a template's faults of before: a ReplicaSet that
    was stored when less was refused must still be scaled down, else no mended Deployment replaces it."""
    causes, before = Causes(), Causes()
    rule(causes, new)
    if any(cause.field.startswith(_TEMPLATES) for cause in causes.found):
        rule(before, old)
    known = [cause for cause in before.found if cause.field.startswith(_TEMPLATES)]
    return [cause for cause in causes.found if cause not in known]


def _judged_anew(kind: tuple[str, str], new: Object, old: Object) -> bool:
    """Whether the rule for new objects has to hold for this change, too.

    What was stored under older rules must still get its status, and lose its finalizers: a write that leaves
    all but metadata and status as it was is judged by what it changes, as upstream's status strategies do.
    """
    if kind in _OWN_UPDATE:
        return False
    if kind in _READ_BEYOND_SPEC:
        return True
    parts = (new.keys() | old.keys()) - {"metadata", "status"}
    return any(new.get(part) != old.get(part) for part in parts)


def check_metadata(causes: Causes, info: ResourceInfo, obj: Object) -> None:
    metadata = obj.get("metadata") or {}
    rule = name_rule(info)
    generate = metadata.get("generateName")
    if generate:
        causes.each("metadata.generateName", generate, rule(_without_dash(generate)))
    name = metadata.get("name") or ""
    if not name:
        causes.required("metadata.name", "name or generateName is required")
    else:
        causes.each("metadata.name", name, rule(name))
    namespace = metadata.get("namespace") or ""
    if info.namespaced:
        if not namespace:
            causes.required("metadata.namespace")
        else:
            causes.each("metadata.namespace", namespace, dns_label(namespace))
    elif namespace:
        causes.forbidden("metadata.namespace", "not allowed on this type")
    check_labels(causes, "metadata.labels", metadata.get("labels") or {})
    check_annotations(causes, "metadata.annotations", metadata.get("annotations") or {})
    _check_owners(causes, metadata.get("ownerReferences") or [])
    for finalizer in metadata.get("finalizers") or ():
        causes.each("metadata.finalizers", finalizer, qualified_name(finalizer))
        if "/" not in finalizer and finalizer not in _STANDARD_FINALIZERS:
            detail = "name is neither a standard finalizer name nor is it fully qualified"
            causes.invalid("metadata.finalizers", finalizer, detail)


def _without_dash(prefix: str) -> str:
    """A generateName usually ends in a dash that the random suffix will follow."""
    return prefix[:-1] + "a" if prefix.endswith("-") else prefix


def check_annotations(causes: Causes, path: str, annotations: dict[str, str]) -> None:
    total = 0
    for key, value in annotations.items():
        causes.each(path, key, qualified_name(key.lower()))
        total += len(key.encode()) + len(value.encode())
    if total > _MAX_ANNOTATIONS:
        causes.too_long(path, _MAX_ANNOTATIONS)


def _check_owners(causes: Causes, owners: list[Object]) -> None:
    controllers: list[Object] = []
    for index, owner in enumerate(owners):
        where = f"metadata.ownerReferences[{index}]"
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                causes.invalid(f"{where}.{key}", owner.get(key) or "", f"{key} must not be empty")
        if owner.get("controller"):
            controllers.append(owner)
    if len(controllers) > 1:
        first, second = (f"{owner.get('kind')}/{owner.get('name')}" for owner in controllers[:2])
        detail = "Only one reference can have Controller set to true. "
        detail += f'Found "true" in references for {first} and {second}'
        causes.invalid("metadata.ownerReferences", owners, detail)


def check_metadata_update(causes: Causes, new: Object, old: Object) -> None:
    """Identity never changes, and an object on its way out gains no finalizers."""
    for key in ("name", "namespace", "uid", "creationTimestamp"):
        if key in old and new.get(key) != old[key]:
            causes.invalid(f"metadata.{key}", new.get(key) or "", IMMUTABLE)
    if old.get("deletionTimestamp"):
        added = [item for item in new.get("finalizers") or () if item not in (old.get("finalizers") or ())]
        if added:
            listed = ", ".join(f'"{item}"' for item in added)
            detail = "no new finalizers can be added if the object is being deleted, found new finalizers "
            causes.forbidden("metadata.finalizers", detail + f"[]string{{{listed}}}")


_CREATE: dict[tuple[str, str], CreateRule] = {
    ("", "pods"): validation_workloads.pod,
    ("", "podtemplates"): validation_workloads.pod_template,
    ("", "replicationcontrollers"): validation_workloads.replication_controller,
    ("apps", "deployments"): validation_workloads.deployment,
    ("apps", "replicasets"): validation_workloads.replica_set,
    ("apps", "statefulsets"): validation_workloads.stateful_set,
    ("apps", "daemonsets"): validation_workloads.daemon_set,
    ("batch", "jobs"): validation_batch.job,
    ("batch", "cronjobs"): validation_batch.cron_job,
    ("", "services"): validation_network.service,
    ("", "endpoints"): validation_network.endpoints,
    ("discovery.k8s.io", "endpointslices"): validation_network.endpoint_slice,
    ("networking.k8s.io", "ingresses"): validation_network.ingress,
    ("networking.k8s.io", "networkpolicies"): validation_network_policy.network_policy,
    ("", "limitranges"): validation_limits.limit_range,
    ("", "resourcequotas"): validation_limits.resource_quota,
    ("scheduling.k8s.io", "priorityclasses"): validation_limits.priority_class,
    ("", "configmaps"): validation_config.config_map,
    ("", "secrets"): validation_config.secret,
    ("", "nodes"): validation_config.node,
    ("", "events"): validation_config.event,
    ("", "persistentvolumes"): validation_storage.persistent_volume,
    ("", "persistentvolumeclaims"): validation_storage.persistent_volume_claim,
    ("coordination.k8s.io", "leases"): validation_config.lease,
    ("storage.k8s.io", "storageclasses"): validation_storage.storage_class,
    (_RBAC, "roles"): validation_policy.role,
    (_RBAC, "clusterroles"): validation_policy.cluster_role,
    (_RBAC, "rolebindings"): validation_policy.role_binding,
    (_RBAC, "clusterrolebindings"): validation_policy.role_binding,
    ("policy", "poddisruptionbudgets"): validation_policy.disruption_budget,
    ("autoscaling", "horizontalpodautoscalers"): validation_policy.autoscaler,
    ("node.k8s.io", "runtimeclasses"): validation_policy.runtime_class,
    _REQUESTS: validation_certificates.signing_request,
}

_UPDATE: dict[tuple[str, str], UpdateRule] = {
    ("", "pods"): validation_pod_update.pod_update,
    ("apps", "deployments"): validation_workloads.selector_update,
    ("apps", "replicasets"): validation_workloads.selector_update,
    ("apps", "daemonsets"): validation_workloads.selector_update,
    ("apps", "statefulsets"): validation_workloads.stateful_set_update,
    ("batch", "jobs"): validation_batch.job_update,
    ("", "services"): validation_network.service_update,
    ("discovery.k8s.io", "endpointslices"): validation_network.endpoint_slice_update,
    ("", "configmaps"): validation_config.config_map_update,
    ("", "secrets"): validation_config.secret_update,
    ("", "nodes"): validation_config.node_update,
    ("", "persistentvolumes"): validation_storage.persistent_volume_update,
    ("", "persistentvolumeclaims"): validation_storage.persistent_volume_claim_update,
    ("storage.k8s.io", "storageclasses"): validation_storage.storage_class_update,
    ("scheduling.k8s.io", "priorityclasses"): validation_policy.priority_class_update,
    ("node.k8s.io", "runtimeclasses"): validation_policy.runtime_class_update,
    _REQUESTS: validation_certificates.signing_request_update,
    (_RBAC, "rolebindings"): validation_policy.role_binding_update,
    (_RBAC, "clusterrolebindings"): validation_policy.role_binding_update,
}

# A pod may have been stored under older rules; upstream checks what changed, not the whole spec again. Of a
# PriorityClass nothing that the rule reads may change.
_OWN_UPDATE = frozenset({("", "pods"), ("scheduling.k8s.io", "priorityclasses")})
# A request's conditions are its status, a token's account stands in an annotation of its Secret.
_READ_BEYOND_SPEC = frozenset({_REQUESTS, ("", "secrets")})
