"""What has to be on the disk before something else may speak of it.

A layer is thousands of files, whose contents a file system writes when it likes: after a power cut the names
are there and the contents are not. To fsync each would take many times as long as to unpack them; syncfs(2)
writes them all in one go, as containerd does with image_pull_with_sync_fs (there it has to be asked for). It
also writes what others have on that file system, which is its price. On a tmpfs it does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_syncfs = ctypes.CDLL(None, use_errno=True).syncfs


@contextlib.contextmanager
def written(folder: Path) -> Iterator[None]:
    """When the block has ended, all it wrote on the file system of `folder` is on the disk; else OSError."""
    # Opened first: the kernel tells of failures since then (Linux 5.8).
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
        if _syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """A file's content, or a folder's names, are on the disk; else OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
