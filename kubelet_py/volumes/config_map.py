"""configMap volumes: keys become files."""

from __future__ import annotations

import base64

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object
from kubelet_py.volumes.atomic_writer import File, Payload
from kubelet_py.volumes.plugin import Context

DEFAULT_MODE = 0o644
_MISSING_KEY = {
    "configmap": "configmap references non-existent config key",
    "secret": "references non-existent secret key",
}


def payload(context: Context, source: Object) -> Payload:
    """All keys, or those of `items` under their paths; VolumeError when the ConfigMap or a key is missing."""
    found = context.lookup("configmap", source["name"])
    mode = source.get("defaultMode", DEFAULT_MODE)
    if found is None:
        if source.get("optional"):
            return {}
        raise VolumeError(f'configmap "{source["name"]}" not found')
    data = {key: text.encode() for key, text in (found.get("data") or {}).items()}
    data |= {key: base64.b64decode(text) for key, text in (found.get("binaryData") or {}).items()}
    return pick(data, source, mode, "configmap")


def pick(data: dict[str, bytes], source: Object, mode: int, what: str) -> Payload:
    """`items` applied to the keys of a ConfigMap or Secret."""
    items = source.get("items")
    if not items:
        return {key: File(value, mode) for key, value in data.items()}
    files = {}
    for item in items:
        if item["key"] in data:
            own = item.get("mode")
            files[item["path"]] = File(data[item["key"]], mode if own is None else own)
        elif not source.get("optional"):
            raise VolumeError(f"{_MISSING_KEY[what]}: {item['key']}")
    return files
