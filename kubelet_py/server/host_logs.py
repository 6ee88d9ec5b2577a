"""/logs/: files below the node's var/log, and listings of its folders (`kubectl get --raw …/proxy/logs/`).

Upstream serves this folder by Go's FileServer, which follows symlinks anywhere: a pod that may write to it
by a hostPath volume can then have the kubelet read any file of the host. Here a link may lead to another
place below var/log only (as those of var/log/containers do). It is the opened file that is judged, by its
path in /proc/self/fd, so that nothing can be exchanged between the look and the reading.
"""

from __future__ import annotations

import html
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kubelet_py.server.errors import HttpError

CHUNK = 1 << 16
NOT_FOUND = "404 page not found\n"


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file, open for reading at its beginning; whoever has it closes `descriptor`."""

    descriptor: int
    size: int

    def pieces(self) -> Iterator[bytes]:
        """At most `size` bytes: what is written meanwhile is not told. Short when the file was cut."""
        left = self.size
        while left > 0 and (piece := os.read(self.descriptor, min(CHUNK, left))):
            left -= len(piece)
            yield piece


def open_below(folder: Path, parts: list[str]) -> OpenFile | str:
    """A file, or the listing of a folder as HTML. Raises HttpError (404)."""
    if ".." in parts or any("\0" in part for part in parts):
        raise HttpError(404, NOT_FOUND)
    top = os.path.realpath(folder)
    try:
        place = os.open(os.path.join(top, *parts), os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise HttpError(404, NOT_FOUND) from error
    try:
        real = os.readlink(f"/proc/self/fd/{place}")
        if real != top and not real.startswith(f"{top}/"):
            raise HttpError(404, NOT_FOUND)
        status = os.fstat(place)
        if stat.S_ISDIR(status.st_mode):
            return listing(os.scandir(f"/proc/self/fd/{place}"))
        if not stat.S_ISREG(status.st_mode):
            raise HttpError(404, NOT_FOUND)
        return OpenFile(os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC), status.st_size)
    except OSError as error:
        raise HttpError(404, NOT_FOUND) from error
    finally:
        os.close(place)


def listing(entries: Iterator[os.DirEntry[str]]) -> str:
    """As Go's FileServer writes a folder: sorted, folders with a slash."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in entries)
    links = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
    return f"<pre>\n{links}</pre>\n"
