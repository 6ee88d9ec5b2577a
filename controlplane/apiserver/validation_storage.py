"""PersistentVolumes, PersistentVolumeClaims and StorageClasses.

Upstream: pkg/apis/core/validation (ValidatePersistentVolumeSpec and …ClaimUpdate) and
pkg/apis/storage/validation.
What a volume is can never be changed, and what a claim asks for neither, once it is created.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_fields import IMMUTABLE, Causes, check_selector, dns_subdomain
from kubeclient import quantity

Object = dict[str, Any]

_ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_RECLAIM = ("Delete", "Recycle", "Retain")
_MODES = ("Block", "Filesystem")
_BINDING = ("Immediate", "WaitForFirstConsumer")
_SOURCES = (
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume",
    "flocker", "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "local", "nfs", "photonPersistentDisk",
    "portworxVolume", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume",
)  # fmt: skip
_FROZEN_CLAIM = (
    "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound "
    "claims"
)


def _check_access_modes(causes: Causes, path: str, modes: list[str]) -> None:
    if not modes:
        causes.required(path, "at least 1 access mode is required")
    for mode in modes:
        if mode not in _ACCESS_MODES:
            causes.not_supported(path, mode, _ACCESS_MODES)
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        causes.forbidden(path, "may not use ReadWriteOncePod with other access modes")


def persistent_volume(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    _check_access_modes(causes, "spec.accessModes", spec.get("accessModes") or [])
    capacity = spec.get("capacity") or {}
    if not capacity:
        causes.required("spec.capacity")
    elif set(capacity) != {"storage"}:
        causes.not_supported("spec.capacity", _one(capacity), ("storage",))
    elif quantity.parse(str(capacity["storage"])) <= 0:
        causes.invalid("spec.capacity[storage]", str(capacity["storage"]), "must be greater than zero")
    policy = spec.get("persistentVolumeReclaimPolicy")
    causes.one_of("spec.persistentVolumeReclaimPolicy", policy, _RECLAIM, empty_ok=True)
    causes.one_of("spec.volumeMode", spec.get("volumeMode"), _MODES, empty_ok=True)
    _check_class(causes, spec)
    _check_node_affinity(causes, spec.get("nodeAffinity"))
    _check_source(causes, spec)


def _one(amounts: Object) -> str:
    return next((name for name in amounts if name != "storage"), "storage")


def _check_class(causes: Causes, spec: Object) -> None:
    name = spec.get("storageClassName")
    if name:
        causes.each("spec.storageClassName", name, dns_subdomain(name))


def _check_node_affinity(causes: Causes, affinity: Object | None) -> None:
    if affinity is None:
        return
    required = affinity.get("required")
    if required is None:
        causes.required("spec.nodeAffinity.required", "must specify required node constraints")
    elif not required.get("nodeSelectorTerms"):
        path = "spec.nodeAffinity.required.nodeSelectorTerms"
        causes.required(path, "must have at least one node selector term")


def _check_source(causes: Causes, spec: Object) -> None:
    sources = [name for name in _SOURCES if name in spec]
    if not sources:
        causes.required("spec", "must specify a volume type")
    for extra in sources[1:]:
        causes.forbidden(f"spec.{extra}", "may not specify more than 1 volume type")
    if "hostPath" in spec:
        _check_path(causes, "spec.hostPath.path", spec["hostPath"].get("path") or "")
        if spec["hostPath"].get("path") == "/" and spec.get("persistentVolumeReclaimPolicy") == "Recycle":
            detail = "may not be 'recycle' for a hostPath mount of '/'"
            causes.forbidden("spec.persistentVolumeReclaimPolicy", detail)
    if "local" in spec:
        _check_path(causes, "spec.local.path", spec["local"].get("path") or "")
        if not (spec.get("nodeAffinity") or {}).get("required"):
            causes.required("spec.nodeAffinity", "Local volume requires node affinity")
    if "nfs" in spec:
        for name in ("server", "path"):
            if not spec["nfs"].get(name):
                causes.required(f"spec.nfs.{name}")
        if spec["nfs"].get("path") and not spec["nfs"]["path"].startswith("/"):
            causes.invalid("spec.nfs.path", spec["nfs"]["path"], "must be an absolute path")


def _check_path(causes: Causes, path: str, value: str) -> None:
    if not value:
        causes.required(path)
    elif ".." in value.split("/"):
        causes.invalid(path, value, "must not contain '..'")


def persistent_volume_update(causes: Causes, new: Object, old: Object) -> None:
    before, after = old.get("spec") or {}, new.get("spec") or {}
    if any(before.get(name) != after.get(name) for name in _SOURCES):
        detail = "spec.persistentvolumesource is immutable after creation"
        causes.forbidden("spec.persistentvolumesource", detail)
    if before.get("volumeMode") != after.get("volumeMode"):
        causes.invalid("volumeMode", after.get("volumeMode"), IMMUTABLE)
    if before.get("nodeAffinity") and before["nodeAffinity"] != after.get("nodeAffinity"):
        causes.invalid("nodeAffinity", after.get("nodeAffinity"), IMMUTABLE)


def persistent_volume_claim(causes: Causes, obj: Object) -> None:
    check_claim_spec(causes, "spec", obj.get("spec") or {})


def check_claim_spec(causes: Causes, path: str, spec: Object) -> None:
    """Of a claim, or of the template of an ephemeral volume."""
    _check_access_modes(causes, f"{path}.accessModes", spec.get("accessModes") or [])
    if spec.get("selector"):
        check_selector(causes, f"{path}.selector", spec["selector"])
    requests = (spec.get("resources") or {}).get("requests") or {}
    if "storage" not in requests:
        causes.required(f"{path}.resources[storage]")
    elif quantity.parse(str(requests["storage"])) <= 0:
        where = f"{path}.resources[storage]"
        causes.invalid(where, str(requests["storage"]), "must be greater than zero")
    causes.one_of(f"{path}.volumeMode", spec.get("volumeMode"), _MODES, empty_ok=True)
    name = spec.get("storageClassName")
    if name:
        causes.each(f"{path}.storageClassName", name, dns_subdomain(name))


def persistent_volume_claim_update(causes: Causes, new: Object, old: Object) -> None:
    before, after = dict(old.get("spec") or {}), dict(new.get("spec") or {})
    if not before.get("volumeName"):
        after.pop("volumeName", None)
        before.pop("volumeName", None)
    if before.get("storageClassName") is None:  # a default class may still be given
        after.pop("storageClassName", None)
    bound = (old.get("status") or {}).get("phase") == "Bound"
    asked = [((spec.get("resources") or {}).get("requests") or {}).get("storage") for spec in (before, after)]
    if bound and asked[0] is not None and asked[1] is not None:
        if quantity.parse(str(asked[1])) < quantity.parse(str(asked[0])):
            detail = "field can not be less than status.capacity"
            causes.forbidden("spec.resources.requests.storage", detail)
        before.pop("resources")
        after.pop("resources")
    if before != after:
        causes.forbidden("spec", _FROZEN_CLAIM)


def storage_class(causes: Causes, obj: Object) -> None:
    if not obj.get("provisioner"):
        causes.required("provisioner")
    causes.one_of("reclaimPolicy", obj.get("reclaimPolicy"), ("Delete", "Retain"), empty_ok=True)
    causes.one_of("volumeBindingMode", obj.get("volumeBindingMode"), _BINDING, empty_ok=True)


def storage_class_update(causes: Causes, new: Object, old: Object) -> None:
    if (new.get("parameters") or {}) != (old.get("parameters") or {}):
        causes.forbidden("parameters", "updates to parameters are forbidden.")
    for field in ("provisioner", "reclaimPolicy"):
        if new.get(field) != old.get(field):
            causes.forbidden(field, f"updates to {field} are forbidden.")
    if new.get("volumeBindingMode") != old.get("volumeBindingMode"):
        causes.invalid("volumeBindingMode", new.get("volumeBindingMode"), IMMUTABLE)
