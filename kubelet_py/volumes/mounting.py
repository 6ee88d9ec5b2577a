"""The few mounts that the agent itself makes on the host: tmpfs for what must not touch a disk, subPaths."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from kubelet_py.errors import VolumeError

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 2, 4, 8, 4096
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


def is_mounted(folder: Path) -> bool:
    """Whether something is mounted at exactly this path."""
    wanted = str(folder)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return any(line.split()[4].encode().decode("unicode_escape") == wanted for line in file)


def mount_tmpfs(
    folder: Path, *, size: int | None = None, mode: int = 0o755, execute: bool = True
) -> None:
    """Mount a tmpfs unless one is there; `size` in bytes."""
    if is_mounted(folder):
        return
    options = f"mode={mode:o}" + (f",size={size}" if size else "")
    libc = ctypes.CDLL(None, use_errno=True)
    flags = MS_NOSUID | MS_NODEV | (0 if execute else MS_NOEXEC)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(flags), options.encode()) != 0:
        code = ctypes.get_errno()
        raise VolumeError(f"Could not mount tmpfs on {folder}: {errno.errorcode.get(code, code)}")


def bind(source: str, target: Path) -> None:
    """Bind `source` onto an existing path of the same sort."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(MS_BIND), None) != 0:
        code = ctypes.get_errno()
        raise VolumeError(f"Could not bind onto {target}: {errno.errorcode.get(code, code)}")


def unmount(folder: Path) -> None:
    """Detach what is mounted at the path; nothing where nothing is."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(folder), MNT_DETACH | UMOUNT_NOFOLLOW) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOENT):
            raise VolumeError(f"Could not unmount {folder}: {errno.errorcode.get(code, code)}")
