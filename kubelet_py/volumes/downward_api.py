"""downwardAPI volumes: what the pod is, as files."""

from __future__ import annotations

from kubelet_py.errors import ExpansionError, VolumeError
from kubelet_py.pods.environment import field_value, resource_value
from kubelet_py.pods.model import Object, every_container
from kubelet_py.volumes.atomic_writer import File, Payload
from kubelet_py.volumes.plugin import Context

DEFAULT_MODE = 0o644


def payload(context: Context, source: Object) -> Payload:
    """One file per item: a fieldRef or a resourceFieldRef of a named container."""
    files = {}
    default = source.get("defaultMode", DEFAULT_MODE)
    for item in source.get("items") or ():
        mode = default if item.get("mode") is None else item["mode"]
        files[item["path"]] = File(_value(context, item).encode(), mode)
    return files


def _value(context: Context, item: Object) -> str:
    if "fieldRef" in item:
        try:
            return field_value(context.pod, item["fieldRef"]["fieldPath"], context.facts)
        except ExpansionError as error:
            raise VolumeError(str(error)) from error
    reference = item["resourceFieldRef"]
    for container in every_container(context.pod):
        if container["name"] == reference.get("containerName"):
            return resource_value(container, reference, context.allocatable)
    raise VolumeError(f"container {reference.get('containerName')!r} of {item['path']} does not exist")
