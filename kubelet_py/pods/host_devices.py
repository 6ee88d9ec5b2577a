"""The host's devices, which a privileged container finds in its /dev.

Upstream's runtimes give them all, with the host's names, owners and modes (containerd's WithHostDevices);
what a container brings itself there (terminals, shared memory, message queues, the console) stays its own.
Looked for anew for each such container, because devices come and go.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OWN = frozenset({"pts", "ptmx", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"})


def host_devices(folder: Path = Path("/dev")) -> list[dict[str, Any]]:
    """`linux.devices` of an OCI document: every character and block device below `folder`, under /dev."""
    return [_device(path, status, folder) for path, status in _nodes(folder)]


def _nodes(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # gone since its parent was read
        return
    for entry in found:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if entry.name in OWN:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _nodes(Path(entry.path))
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            yield entry.path, status


def _device(path: str, status: os.stat_result, folder: Path) -> dict[str, Any]:
    return {
        "path": f"/dev/{os.path.relpath(path, folder)}",
        "type": "b" if stat.S_ISBLK(status.st_mode) else "c",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
