"""tmpcopyup: what an image has in a folder, copied into the tmpfs that is about to cover it.

The tmpfs is not attached yet, so nobody sees a half-filled folder. Both trees are walked by descriptor,
without following a link: the image's links keep their text and lead nowhere outside (CVE-2021-30465).
"""

from __future__ import annotations

import os
import stat

CHUNK = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: int, target: int) -> None:
    """Copies the content of one folder into another, with owners, modes, times and extended attributes. Both
    descriptors may be O_PATH. Raises OSError (ENOSPC when the tmpfs is too small)."""
    here, there = os.open(".", _FOLDER, dir_fd=source), os.open(".", _FOLDER, dir_fd=target)
    try:
        for name in os.listdir(here):
            _copy(here, there, name)
        _finish(here, there)
    finally:
        os.close(here)
        os.close(there)


def _copy(here: int, there: int, name: str) -> None:
    status = os.stat(name, dir_fd=here, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=there)
        inner, outer = os.open(name, _FOLDER, dir_fd=here), os.open(name, _FOLDER, dir_fd=there)
        try:
            copy_tree(inner, outer)
        finally:
            os.close(inner)
            os.close(outer)
    elif kind == stat.S_IFREG:
        _copy_file(here, there, name)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)
    elif kind != stat.S_IFSOCK:  # a socket without its listener is of no use
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=there)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=there, follow_symlinks=False)


def _copy_file(here: int, there: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=here)
    try:
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
        try:
            while os.sendfile(target, source, None, CHUNK):
                continue
            _finish(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _finish(source: int, target: int) -> None:
    """Owner before mode, because a change of owner clears the set-id bits."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if name.startswith(("user.", "security.capability", "trusted.")):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
