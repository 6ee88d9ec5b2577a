"""subPath: a path inside a volume that a container may have filled with symlinks.

The kernel resolves it with openat2(RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS): a symlink that leads out of the
volume fails instead of mounting the host (CVE-2017-1002101, CVE-2021-25741). What was opened is bound, by its
descriptor, onto a path of ours below the pod's folder, and the container is given that path: nothing can be
exchanged between the check and the bind, and the bind survives the agent. (The descriptor itself would not
do: a container's mount namespace cannot clone a mount of ours.) Source: upstream's pkg/volume/util/subpath.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from pathlib import Path, PurePosixPath

from kubelet_py.errors import VolumeError
from kubelet_py.volumes import mounting

SYS_OPENAT2 = 437
O_PATH = 0o10000000
LOOK_UPS = 128
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH = 0x02, 0x08


def bind(volume: Path, path: str, target: Path) -> None:
    """Bind `path` inside `volume` onto `target`, in place of what an earlier attempt bound there."""
    opened = open_beneath(volume, path)
    try:
        mounting.unmount(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(os.stat(opened).st_mode):
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        mounting.bind(f"/proc/self/fd/{opened}", target)
    finally:
        os.close(opened)


def open_beneath(volume: Path, subpath: str) -> int:
    """An O_PATH descriptor of `subpath` below `volume`; a missing path is made as a directory."""
    parts = PurePosixPath(subpath).parts
    if subpath.startswith("/") or ".." in parts:
        raise VolumeError(f"invalid subPath {subpath!r}: it must be relative, without '..'")
    root = os.open(volume, O_PATH | os.O_CLOEXEC)
    try:
        return _descend(root, parts, stat.S_IMODE(os.fstat(root).st_mode))
    finally:
        os.close(root)


def _descend(root: int, parts: tuple[str, ...], mode: int) -> int:
    """What is missing gets the mode of the volume's root, or a container's user could not write there."""
    text = "/".join(parts) or "."
    try:
        return _openat2(root, text)
    except FileNotFoundError:
        pass
    for count in range(1, len(parts) + 1):
        try:
            os.close(_openat2(root, "/".join(parts[:count])))
        except FileNotFoundError:
            parent = _openat2(root, "/".join(parts[: count - 1]) or ".")
            try:
                _make(parts[count - 1], parent, mode)
            except FileExistsError:
                pass
            finally:
                os.close(parent)
    return _openat2(root, text)


def _make(name: str, parent: int, mode: int) -> None:
    """The mode is set on the very folder that was made: a link that took its place is not followed."""
    os.mkdir(name, 0o700, dir_fd=parent)
    made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.fchmod(made, mode)
    finally:
        os.close(made)


def _openat2(folder: int, path: str) -> int:
    how = struct.pack("QQQ", O_PATH | os.O_CLOEXEC, 0, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
    libc = ctypes.CDLL(None, use_errno=True)
    code = errno.EAGAIN
    for _ in range(LOOK_UPS):
        found = int(libc.syscall(SYS_OPENAT2, folder, os.fsencode(path), how, len(how)))
        if found >= 0:
            return found
        code = ctypes.get_errno()
        if code != errno.EAGAIN:  # a rename or mount somewhere on the machine made ".." uncertain
            break
    if code == errno.ENOENT:
        raise FileNotFoundError(path)
    raise VolumeError(
        f"Could not open subPath {path!r}: {errno.errorcode.get(code, code)} (does it leave the volume?)"
    )
