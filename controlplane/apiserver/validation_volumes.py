"""Volumes of a pod spec, and the paths that may be asked for inside one.

Upstream's ValidateVolumes. A volume has a name and exactly one source; a path inside a volume may never
climb out of it, which the kubelet relies on when it writes ConfigMap and Secret files.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_downward import VOLUME_PATHS, check_field_ref, check_resource_ref
from controlplane.apiserver.validation_fields import Causes, dns_label
from controlplane.apiserver.validation_storage import check_claim_spec
from kubeclient import quantity

Object = dict[str, Any]

_HOST_PATH_TYPES = (
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
)
_REQUIRED: dict[str, tuple[str, ...]] = {
    "hostPath": ("path",),
    "secret": ("secretName",),
    "configMap": ("name",),
    "persistentVolumeClaim": ("claimName",),
    "nfs": ("server", "path"),
    "csi": ("driver",),
    "ephemeral": ("volumeClaimTemplate",),
    "image": ("reference",),
}
_PROJECTIONS = ("secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle")
_MIN_TOKEN_SECONDS, _MAX_TOKEN_SECONDS = 600, 1 << 32
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")


def check_volumes(causes: Causes, path: str, volumes: list[Object]) -> set[str]:
    """Checks every volume; gives the set of names that mounts may use."""
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        where = f"{path}[{index}]"
        name = volume.get("name") or ""
        _check_source(causes, where, volume)
        if not name:
            causes.required(f"{where}.name")
            continue
        causes.each(f"{where}.name", name, dns_label(name))
        if name in names:
            causes.duplicate(f"{where}.name", name)
        names.add(name)
    return names


def _check_source(causes: Causes, path: str, volume: Object) -> None:
    kinds = [key for key in volume if key != "name"]
    if not kinds:
        causes.required(path, "must specify a volume type")
        return
    for extra in kinds[1:]:
        causes.forbidden(f"{path}.{extra}", "may not specify more than 1 volume type")
    kind = kinds[0]
    source = volume[kind]
    for name in _REQUIRED.get(kind, ()):
        if not source.get(name):
            causes.required(f"{path}.{kind}.{name}")
    _check_items(causes, f"{path}.{kind}", source, kind)
    if kind == "hostPath":
        _check_host_path(causes, f"{path}.hostPath", source)
    elif kind == "projected":
        _check_projected(causes, f"{path}.projected", source)
    elif kind == "emptyDir" and source.get("sizeLimit") is not None:
        if quantity.parse(str(source["sizeLimit"])) < 0:
            detail = "SizeLimit field must be a valid resource quantity"
            causes.forbidden(f"{path}.emptyDir.sizeLimit", detail)
    elif kind == "nfs" and source.get("path") and not source["path"].startswith("/"):
        causes.invalid(f"{path}.nfs.path", source["path"], "must be an absolute path")
    elif kind == "image":
        causes.one_of(f"{path}.image.pullPolicy", source.get("pullPolicy"), _PULL_POLICIES, empty_ok=True)
    elif kind == "ephemeral" and source.get("volumeClaimTemplate"):
        where = f"{path}.ephemeral.volumeClaimTemplate.spec"
        check_claim_spec(causes, where, source["volumeClaimTemplate"].get("spec") or {})


def _check_host_path(causes: Causes, path: str, source: Object) -> None:
    if ".." in (source.get("path") or "").split("/"):
        causes.invalid(f"{path}.path", source["path"], "must not contain '..'")
    if source.get("type") and source["type"] not in _HOST_PATH_TYPES:
        causes.not_supported(f"{path}.type", source["type"], _HOST_PATH_TYPES)


def _check_items(causes: Causes, path: str, source: Object, kind: str) -> None:
    _check_mode(causes, f"{path}.defaultMode", source.get("defaultMode"))
    items = source.get("items")
    for index, item in enumerate(items if isinstance(items, list) else ()):
        where = f"{path}.items[{index}]"
        if not item.get("path"):
            causes.required(f"{where}.path")
        else:
            check_own_path(causes, f"{where}.path", item["path"])
        _check_mode(causes, f"{where}.mode", item.get("mode"))
        if kind == "downwardAPI":
            _check_downward(causes, where, item)
        elif not item.get("key"):
            causes.required(f"{where}.key")


def _check_mode(causes: Causes, path: str, mode: Any) -> None:
    if isinstance(mode, int) and not 0 <= mode <= 0o777:
        causes.invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive")


def _check_downward(causes: Causes, path: str, item: Object) -> None:
    field, resource = item.get("fieldRef"), item.get("resourceFieldRef")
    if field is not None and resource is not None:
        causes.invalid(path, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
    elif field is not None:
        check_field_ref(causes, f"{path}.fieldRef", field, VOLUME_PATHS)
    elif resource is None:
        causes.required(path, "one of fieldRef and resourceFieldRef is required")
    else:
        check_resource_ref(causes, f"{path}.resourceFieldRef", resource, of_volume=True)


def _check_projected(causes: Causes, path: str, source: Object) -> None:
    taken: set[str] = set()
    for index, projection in enumerate(source.get("sources") or ()):
        where = f"{path}.sources[{index}]"
        kinds = [kind for kind in _PROJECTIONS if kind in projection]
        if not kinds:
            causes.required(where, "must specify a volume projection source")
        for extra in kinds[1:]:
            causes.forbidden(f"{where}.{extra}", "may not specify more than 1 volume type")
        for kind in kinds:
            _check_projection(causes, f"{where}.{kind}", projection[kind], kind)
            for item in projection[kind].get("items") or ():
                wanted = item.get("path") or ""
                if wanted in taken:
                    shown = projection[kind].get("name") or wanted
                    causes.invalid(path, shown, "conflicting duplicate paths")
                taken |= {wanted} - {""}


def _check_projection(causes: Causes, path: str, source: Object, kind: str) -> None:
    if kind in ("secret", "configMap") and not source.get("name"):
        causes.required(f"{path}.name")
    _check_items(causes, path, source, kind)
    if kind == "serviceAccountToken":
        seconds = source.get("expirationSeconds")
        if isinstance(seconds, int) and seconds < _MIN_TOKEN_SECONDS:
            causes.invalid(
                f"{path}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"
            )
        elif isinstance(seconds, int) and seconds > _MAX_TOKEN_SECONDS:
            detail = "may not specify a duration larger than 2^32 seconds"
            causes.invalid(f"{path}.expirationSeconds", seconds, detail)
    if kind in ("serviceAccountToken", "clusterTrustBundle"):
        if not source.get("path"):
            causes.required(f"{path}.path")
        else:
            check_own_path(causes, f"{path}.path", source["path"])


def check_inside(causes: Causes, path: str, value: str) -> None:
    """A path inside a volume: relative, and never upwards."""
    if value.startswith("/"):
        causes.invalid(path, value, "must be a relative path")
    if ".." in value.split("/"):
        causes.invalid(path, value, "must not contain '..'")


def check_own_path(causes: Causes, path: str, value: str) -> None:
    """The path of a file that the kubelet writes: also none of the names that it keeps for itself."""
    check_inside(causes, path, value)
    if value.startswith("..") and ".." not in value.split("/"):
        causes.invalid(path, value, "must not start with '..'")
