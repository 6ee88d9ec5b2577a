"""Which parts of an object belong to whom, kind by kind.

A client writes `spec`, a controller writes `status` through its subresource, the server writes some metadata
and `generation`, which counts the changes of `spec` so that a controller can say "seen" in
`status.observedGeneration`. Whoever sends the other's part is not refused but overruled: the stored part is
kept. These are PrepareForCreate and PrepareForUpdate of upstream's pkg/registry/*/*/strategy.go.
"""

from __future__ import annotations

import copy
from typing import Any

from controlplane.apiserver import signing_requests
from controlplane.apiserver.defaults_pod import qos_class
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.users import User
from controlplane.apiserver.validation_pod_resize import only_resources

Object = dict[str, Any]
Key = tuple[str, str]

_COUNTED: frozenset[Key] = frozenset(
    {
        ("", "replicationcontrollers"),
        ("apps", "deployments"),
        ("apps", "replicasets"),
        ("apps", "daemonsets"),
        ("apps", "statefulsets"),
        ("batch", "jobs"),
        ("batch", "cronjobs"),
        ("policy", "poddisruptionbudgets"),
        ("networking.k8s.io", "ingresses"),
        ("networking.k8s.io", "ingressclasses"),
        ("networking.k8s.io", "networkpolicies"),
        ("discovery.k8s.io", "endpointslices"),
        ("scheduling.k8s.io", "priorityclasses"),
    }
)

_FIRST_STATUS: dict[Key, Object] = {
    ("", "pods"): {"phase": "Pending"},
    ("", "namespaces"): {"phase": "Active"},
    ("", "services"): {"loadBalancer": {}},
    ("", "persistentvolumeclaims"): {"phase": "Pending"},
    ("", "persistentvolumes"): {"phase": "Pending"},
    ("", "replicationcontrollers"): {"replicas": 0},
    ("apps", "replicasets"): {"replicas": 0},
    ("apps", "statefulsets"): {"replicas": 0, "availableReplicas": 0},
    ("apps", "daemonsets"): {
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    },
    ("policy", "poddisruptionbudgets"): {
        "disruptionsAllowed": 0,
        "currentHealthy": 0,
        "desiredHealthy": 0,
        "expectedPods": 0,
    },
    ("networking.k8s.io", "ingresses"): {"loadBalancer": {}},
}

# Kept until nobody uses them any more (upstream's admission plugin StorageObjectInUseProtection).
_PROTECTED: dict[Key, str] = {
    ("", "persistentvolumeclaims"): "kubernetes.io/pvc-protection",
    ("", "persistentvolumes"): "kubernetes.io/pv-protection",
}

# A kubelet registers its Node with the status it knows already.
_STATUS_AT_CREATION: frozenset[Key] = frozenset({("", "nodes")})
# PUT to a name that does not exist creates it.
CREATED_BY_UPDATE: frozenset[Key] = frozenset(
    {
        ("", "endpoints"),
        ("", "events"),
        ("", "limitranges"),
        ("", "services"),
        ("coordination.k8s.io", "leases"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
    }
)
# DELETE answers with the object instead of a Status.
RETURNED_WHEN_DELETED: frozenset[Key] = frozenset(
    {
        ("", "pods"),
        ("", "services"),
        ("", "serviceaccounts"),
        ("", "persistentvolumes"),
        ("", "persistentvolumeclaims"),
        ("", "podtemplates"),
        ("", "resourcequotas"),
    }
)


def key_of(info: ResourceInfo) -> Key:
    """The kind as (group, plural), in the group that it is stored under."""
    return info.storage_version[0], info.plural


def prepare_create(info: ResourceInfo, obj: Object, user: User) -> None:
    """Make a new object start where its controllers expect it to start."""
    key = key_of(info)
    if key == signing_requests.KEY:
        signing_requests.record_requestor(obj, user)
    if "status" in info.subresources and key not in _STATUS_AT_CREATION:
        obj["status"] = copy.deepcopy(_FIRST_STATUS.get(key, {}))
    if key in _COUNTED:
        obj["metadata"]["generation"] = 1
    if key == ("", "pods"):
        obj["status"]["qosClass"] = qos_class(obj.get("spec") or {})
        if obj.get("spec", {}).get("schedulingGates"):
            obj["status"]["conditions"] = [_gated()]
    elif key in _PROTECTED:
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if _PROTECTED[key] not in finalizers:
            finalizers.append(_PROTECTED[key])
    elif key == ("", "namespaces"):
        finalizers = obj.setdefault("spec", {}).setdefault("finalizers", [])
        if "kubernetes" not in finalizers:
            finalizers.append("kubernetes")


def prepare_update(info: ResourceInfo, new: Object, old: Object, subresource: str, now: str) -> None:
    """Give back to `new` whatever a write to this (sub)resource may not change; `now` in RFC 3339."""
    _keep_metadata(new["metadata"], old["metadata"])
    key = key_of(info)
    if key == signing_requests.KEY:
        signing_requests.keep_parts(new, old, subresource, now)
    if subresource == "status":
        _only_status(key, new, old)
        return
    if subresource == "resize":
        resized = only_resources(new, old)
        new.clear()
        new.update(resized)
        return
    if subresource == "approval":
        return
    if "status" in info.subresources:
        _keep(new, old, "status")
    if key == ("", "namespaces"):
        if subresource == "finalize":
            finalizers = (new.get("spec") or {}).get("finalizers")
            _keep(new, old, "spec")
            new.setdefault("spec", {})["finalizers"] = finalizers or []
            if not finalizers:
                new["spec"].pop("finalizers")
            return
        kept = (old.get("spec") or {}).get("finalizers")
        if kept:
            new.setdefault("spec", {})["finalizers"] = kept
    if key in _COUNTED and _changed(key, new, old):
        new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


def _changed(key: Key, new: Object, old: Object) -> bool:
    if key == ("discovery.k8s.io", "endpointslices"):
        return any(new.get(part) != old.get(part) for part in ("endpoints", "ports", "addressType"))
    if key == ("apps", "deployments") and _annotations(new) != _annotations(old):
        return True
    return bool(new.get("spec") != old.get("spec"))


def _annotations(obj: Object) -> Object:
    return obj["metadata"].get("annotations") or {}


def _keep_metadata(new: Object, old: Object) -> None:
    for name in (
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ):
        _keep(new, old, name)
    new.pop("selfLink", None)


def _only_status(key: Key, new: Object, old: Object) -> None:
    metadata, status = new["metadata"], new.get("status", {})
    if key not in {("", "pods"), ("", "nodes")}:
        _keep(metadata, old["metadata"], "labels")
    if key == ("", "pods"):
        _keep(metadata, old["metadata"], "ownerReferences")
        status.setdefault("qosClass", (old.get("status") or {}).get("qosClass") or qos_class(old["spec"]))
    for name in set(new) | set(old):
        if name not in ("metadata", "status"):
            _keep(new, old, name)
    new["status"] = status


def _keep(new: Object, old: Object, name: str) -> None:
    if name in old:
        new[name] = old[name]
    else:
        new.pop(name, None)


def _gated() -> Object:
    return {
        "type": "PodScheduled",
        "status": "False",
        "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
    }
