"""emptyDir volumes: a folder that lives as long as the pod, on the node's disk or in memory."""

from __future__ import annotations

import os
from pathlib import Path

from kubelet_py.pods.model import Object
from kubelet_py.volumes.mounting import mount_tmpfs
from kubelet_py.volumes.plugin import Context


def set_up(context: Context, source: Object, folder: Path) -> Path:
    """The folder, mode 0777, group fsGroup with the setgid bit; in memory at most `sizeLimit` bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.get("medium") == "Memory":
        from kubeclient import quantity

        limit = source.get("sizeLimit")
        mount_tmpfs(folder, size=quantity.value(limit) if limit else None, mode=0o777)
    folder.chmod(0o777)
    if context.fs_group is not None:
        os.chown(folder, -1, context.fs_group)
        folder.chmod(0o2777)
    return folder
