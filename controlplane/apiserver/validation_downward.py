"""What a pod may be told of itself: fieldRef and resourceFieldRef, in variables and in volumes.

Upstream's validateObjectFieldSelector and validateContainerResourceFieldSelector. A name that nobody knows
would be an empty text or a 0 in the container, which its program takes for an answer.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_fields import Causes, qualified_name
from kubeclient import quantity

Object = dict[str, Any]

ENVIRONMENT_PATHS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)
VOLUME_PATHS = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
)
_RESOURCES = (
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
)
_HUGE_PAGES = ("limits.hugepages-", "requests.hugepages-")
_OF_CPU = ("1m", "1")
_OF_BYTES = ("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")
_BYTES_IN_WORDS = {
    "memory": "memory",
    "ephemeral-storage": "local ephemeral storage",
}


def check_field_ref(causes: Causes, path: str, reference: Object, supported: tuple[str, ...]) -> None:
    """metadata.labels['x'] and metadata.annotations['x'] are always allowed besides `supported`."""
    field_path = reference.get("fieldPath") or ""
    if not field_path:
        causes.required(f"{path}.fieldPath")
        return
    base, bracket, rest = field_path.partition("['")
    if not bracket or not field_path.endswith("']"):
        if field_path not in supported:
            causes.not_supported(f"{path}.fieldPath", field_path, supported)
        return
    key = rest.removesuffix("']")
    if base == "metadata.annotations":
        causes.each(path, key.lower(), qualified_name(key.lower()))
    elif base == "metadata.labels":
        causes.each(path, key, qualified_name(key))
    else:
        causes.invalid(
            f"{path}.fieldPath", field_path, "error converting fieldPath: does not support subscript"
        )


def check_resource_ref(causes: Causes, path: str, reference: Object, *, of_volume: bool) -> None:
    """A volume is no container's own, so that it has to name one."""
    name = reference.get("resource") or ""
    if of_volume and not reference.get("containerName"):
        causes.required(f"{path}.containerName")
    elif not name:
        causes.required(f"{path}.resource")
    elif name not in _RESOURCES and not name.startswith(_HUGE_PAGES):
        causes.not_supported(f"{path}.resource", name, _RESOURCES)
    else:
        _check_divisor(causes, f"{path}.divisor", name, str(reference.get("divisor") or "0"))


def _check_divisor(causes: Causes, path: str, name: str, divisor: str) -> None:
    resource = name.partition(".")[2]
    allowed = _OF_CPU if resource == "cpu" else _OF_BYTES
    if quantity.parse(divisor) == 0 or quantity.canonical(divisor) in allowed:
        return
    what = "cpu" if resource == "cpu" else _BYTES_IN_WORDS.get(resource, "hugepages")
    listed = " and ".join(allowed) if resource == "cpu" else ", ".join(allowed)
    causes.invalid(path, name, f"only divisor's values {listed} are supported with the {what} resource")
