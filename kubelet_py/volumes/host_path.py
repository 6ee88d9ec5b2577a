"""hostPath volumes: a path of the node itself, checked or made by its `type`. Source: pkg/volume/hostpath."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object
from kubelet_py.volumes.plugin import Context

CHECKS = {
    "Directory": (stat.S_ISDIR, "is not a directory"),
    "DirectoryOrCreate": (stat.S_ISDIR, "is not a directory"),
    "File": (stat.S_ISREG, "is not a file"),
    "FileOrCreate": (stat.S_ISREG, "is not a file"),
    "Socket": (stat.S_ISSOCK, "is not a socket file"),
    "CharDevice": (stat.S_ISCHR, "is not a character device"),
    "BlockDevice": (stat.S_ISBLK, "is not a block device"),
}


def set_up(context: Context, source: Object) -> Path:
    """The path, which exists and is of the asked type."""
    path = Path(source["path"])
    kind = source.get("type") or ""
    if kind and not kind.endswith("OrCreate") and kind not in CHECKS:
        raise VolumeError(f"{kind} is an invalid volume type")
    if ".." in path.parts:
        raise VolumeError(f"hostPath {path} must not contain '..'")
    if kind == "DirectoryOrCreate" and not path.exists():
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
    elif kind == "FileOrCreate" and not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise VolumeError(f"hostPath {path} could not be created: {error.strerror}") from error
    elif kind == "" and not path.exists():
        # Upstream's runtimes make a missing plain hostPath a directory.
        path.mkdir(parents=True, exist_ok=True, mode=0o755)
    if kind in CHECKS:
        check, otherwise = CHECKS[kind]
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise VolumeError(f"hostPath type check failed: {path} {otherwise}") from error
        if not check(found.st_mode):
            raise VolumeError(f"hostPath type check failed: {path} {otherwise}")
    return path
