"""How much of the disk a folder takes, as du counts: blocks, each inode once.

The files are a container's and change under our hands: what vanishes meanwhile is not there, links are never
followed, and another file system mounted inside is not counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
LONG = 2048


@dataclass(frozen=True, slots=True)
class Used:
    bytes: int = 0
    inodes: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(self.bytes + other.bytes, self.inodes + other.inodes)


def used(folder: Path) -> Used:
    """Of the whole tree, the folder itself included; nothing where there is none."""
    try:
        top = os.lstat(folder)
    except OSError:
        return Used()
    seen = {top.st_ino}
    size = top.st_blocks * BLOCK
    waiting: list[str | int] = [str(folder)]
    while waiting:
        place = waiting.pop()
        if isinstance(place, int):
            os.close(place)
            continue
        try:
            if len(os.fsencode(place)) > LONG:  # the kernel takes no path of more than 4,096 bytes
                held = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                waiting.append(held)  # until all below it has been looked at
                place = f"/proc/self/fd/{held}"
            with os.scandir(place) as entries:
                found = list(entries)
        except OSError:
            continue
        for entry in found:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_dev != top.st_dev or status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            size += status.st_blocks * BLOCK
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
    return Used(size, len(seen))
