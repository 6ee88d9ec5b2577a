"""fsGroup: every file of a volume belongs to the pod's group, which may write it.

The walk holds descriptors and never follows a symlink: a container of the pod may be changing the tree under
it, and a link to a file of the host must not hand that file over. Modes are upstream's
(pkg/volume/volume_linux.go): files get 0660, folders 0770 and the setgid bit besides what they have.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

FILE_MODE, FOLDER_MODE = 0o660, 0o2770
O_PATH = 0o10000000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def give_to_group(folder: Path, group: int, policy: str | None = None) -> None:
    """Hand the tree over. With policy OnRootMismatch a root that is right already vouches for the rest."""
    if policy == "OnRootMismatch" and _matches(folder.stat(), group):
        return
    for here, names in _folders(folder):
        for name in names:
            _give(name, here, group)
    _give(str(folder), None, group)


def give_root(folder: Path, group: int) -> None:
    """Hand over the folder alone; nobody else can change what its path leads to."""
    os.chown(folder, -1, group)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | FOLDER_MODE)


def _folders(top: Path) -> Iterator[tuple[int, list[str]]]:
    """Each folder of a tree, links not followed, by a descriptor that is good until the next one, and the
    names in it. os.fwalk calls itself for each level, and keeps a descriptor; a container nests as deep as it
    likes. Raises OSError, ESTALE when a folder is moved out of the one that it was found in."""
    here = os.open(top, _FOLDER)
    above: list[tuple[tuple[int, int], list[str]]] = []
    try:
        names, left = _listed(here)
        yield here, names
        while left or above:
            if left:
                try:
                    inner = os.open(left.pop(), _FOLDER, dir_fd=here)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
                    continue  # a container put something else there meanwhile
                above.append((_identity(here), left))
                os.close(here)
                here = inner
                names, left = _listed(here)
                yield here, names
            else:
                outer = os.open("..", _FOLDER, dir_fd=here)
                os.close(here)
                here = outer
                expected, left = above.pop()
                if _identity(here) != expected:
                    raise OSError(errno.ESTALE, f"{os.strerror(errno.ESTALE)}: a folder was moved", str(top))
    finally:
        os.close(here)


def _listed(folder: int) -> tuple[list[str], list[str]]:
    """All names in it, and those of folders."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, _ in found], [name for name, is_folder in found if is_folder]


def _identity(folder: int) -> tuple[int, int]:
    status = os.fstat(folder)
    return status.st_dev, status.st_ino


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

