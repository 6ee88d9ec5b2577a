"""secret volumes: as configMap volumes, but on tmpfs, so that the bytes never reach a disk."""

from __future__ import annotations

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object
from kubelet_py.volumes.atomic_writer import Payload
from kubelet_py.volumes.config_map import DEFAULT_MODE, pick
from kubelet_py.volumes.plugin import Context


def payload(context: Context, source: Object) -> Payload:
    """All keys, or those of `items`; the field is `secretName` in a volume and `name` in a projection."""
    name = source.get("secretName") or source.get("name", "")
    found = context.lookup("secret", name)
    if found is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'secret "{name}" not found')
    data = {key: text.encode("utf-8", "surrogateescape") for key, text in (found.get("data") or {}).items()}
    return pick(data, source, source.get("defaultMode", DEFAULT_MODE), "secret")
