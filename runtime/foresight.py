"""What a container's root will look like, guessed before it is there.

A start that is compiled ahead (recorder.py) needs to know which folders it will have to make, and which it
finds: that follows from the image's layers and from what the start itself mounts and makes. The layers are
looked at from the host, name by name and without following a link, so nothing of the host is mistaken for
the image's. A wrong guess costs time only: each is checked when it matters, by the kernel.
"""

from __future__ import annotations

import errno
import os
import stat

FOLDER = 0o040755
MOST_LINKS = 40


class Unforeseen(Exception):
    """What a start will find, or do, cannot be told before."""


class Foresight:
    """`layers` with the TOP first."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self._layers = layers
        self._made: dict[str, int] = {}
        self._mounts: dict[str, str] = {}

    def make(self, path: str, mode: int) -> None:
        """Something is made at `path`."""
        self._made[path] = mode

    def mount(self, path: str, source: str) -> None:
        """A folder or file of the host is to be seen at `path`; with source "" something new and empty."""
        self._mounts[path] = source
        self._made = {made: mode for made, mode in self._made.items() if not made.startswith(path + "/")}

    def find(self, path: str, *, links: bool = True) -> tuple[str, int]:
        """The path without links, "" for the root, and the mode of what is there. Raises OSError (ENOENT,
        ENOTDIR), Unforeseen where a link is in the way and `links` may not be followed."""
        ahead = [name for name in reversed(path.split("/")) if name and name != "."]
        place, mode, followed = "", FOLDER, 0
        while ahead:
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, path)
            name = ahead.pop()
            if name == "..":
                place = place.rpartition("/")[0]
                continue
            inner = f"{place}/{name}"
            mode, target = self._look(inner)
            if target:
                followed += 1
                if not links or followed > MOST_LINKS:
                    raise Unforeseen(f"{inner} is a symlink")
                place, mode = "" if target.startswith("/") else place, FOLDER
                ahead += [part for part in reversed(target.split("/")) if part and part != "."]
            else:
                place = inner
        return place, mode

    def _look(self, path: str) -> tuple[int, str]:
        """Mode and link target of one name, whose parents are real folders."""
        if path in self._mounts:
            source = self._mounts[path]
            return (os.stat(source).st_mode if source else FOLDER), ""
        if path in self._made:
            return self._made[path], ""
        parent = path.rpartition("/")[0]
        while parent and parent not in self._mounts:
            parent = parent.rpartition("/")[0]
        places = [layer + path for layer in self._layers]
        if parent:
            source = self._mounts[parent]
            places = [source + path[len(parent) :]] if source else []
        for place in places:
            try:
                found = os.lstat(place)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISCHR(found.st_mode) and not found.st_rdev:
                break  # a whiteout
            return found.st_mode, os.readlink(place) if stat.S_ISLNK(found.st_mode) else ""
        raise FileNotFoundError(errno.ENOENT, path)
