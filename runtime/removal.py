"""Removing folders that strangers have filled.

shutil.rmtree calls itself for each level, and Python's stack ends at a thousand of them; a container nests
as many as it likes. So what lies deep is moved up into the folder that is being removed, and met there again:
few descriptors are open at a time, and no path gets long. Links are removed, not followed.
"""

from __future__ import annotations

import errno
import os

DEEP = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: str | os.PathLike[str], *, dir_fd: int | None = None) -> None:
    """Removes a folder and all in it. Raises OSError as shutil.rmtree does, FileNotFoundError for what
    somebody else removes at the same time."""
    top = os.open(path, _FOLDER, dir_fd=dir_fd)
    try:
        while names := os.listdir(top):
            _empty(top, names, top, 0)
    finally:
        os.close(top)
    os.rmdir(path, dir_fd=dir_fd)


def _empty(folder: int, names: list[str], top: int, depth: int) -> None:
    for name in names:
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            if depth < DEEP:
                _remove(folder, name, top, depth)
            else:
                os.rename(name, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=top)


def _remove(folder: int, name: str, top: int, depth: int) -> None:
    try:
        os.rmdir(name, dir_fd=folder)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    inner = os.open(name, _FOLDER, dir_fd=folder)
    try:
        _empty(inner, os.listdir(inner), top, depth + 1)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)
