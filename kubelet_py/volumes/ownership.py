"""fsGroup: every file of a volume belongs to the pod's group, which may write it.

The walk holds descriptors and never follows a symlink: a container of the pod may be changing the tree under
it, and a link to a file of the host must not hand that file over. Modes are upstream's
(pkg/volume/volume_linux.go): files get 0660, folders 0770 and the setgid bit besides what they have.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o660, 0o2770
O_PATH = 0o10000000


def give_to_group(folder: Path, group: int, policy: str | None = None) -> None:
    """Hand the tree over. With policy OnRootMismatch a root that is right already vouches for the rest."""
    if policy == "OnRootMismatch" and _matches(folder.stat(), group):
        return
    for _, folders, files, here in os.fwalk(folder, topdown=False, follow_symlinks=False):
        for name in (*folders, *files):
            _give(name, here, group)
    _give(str(folder), None, group)


def give_root(folder: Path, group: int) -> None:
    """Hand over the folder alone; nobody else can change what its path leads to."""
    os.chown(folder, -1, group)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | FOLDER_MODE)


def _matches(found: os.stat_result, group: int) -> bool:
    mode = stat.S_IMODE(found.st_mode)
    return found.st_gid == group and mode & FOLDER_MODE == FOLDER_MODE


def _give(name: str, folder: int | None, group: int) -> None:
    """One entry, by a descriptor that is the entry itself even where it is a link."""
    try:
        opened = os.open(name, O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:  # a container removed it meanwhile
        return
    try:
        found = os.fstat(opened)
        if stat.S_ISLNK(found.st_mode):
            os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)
        else:
            os.chown(f"/proc/self/fd/{opened}", -1, group)
            wanted = FOLDER_MODE if stat.S_ISDIR(found.st_mode) else FILE_MODE
            os.chmod(f"/proc/self/fd/{opened}", stat.S_IMODE(found.st_mode) | wanted)
    finally:
        os.close(opened)

