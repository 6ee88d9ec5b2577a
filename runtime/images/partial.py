"""Blobs on their way in: one file for each, which all pulls of a store share.

root/partial/<hex> is written by one pull at a time, which has it locked; the lock dies with its process. Who
comes while it is locked waits and uses what the first got: the layer, the whole file, or, if that pull broke
off or was killed, the part, which it goes on with. It does not wait for a file that no longer grows, as when
the other was stopped: then it goes on with a copy. On a bad line a large image would else begin from nothing
each time the kubelet tries again, and pods that want the same image would fetch it several times over.
Nothing here is believed: whoever opens a file hashes it from the start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from runtime.images import locks

log = logging.getLogger(__name__)

_KEPT_SECONDS = 24 * 3600.0
_PATIENCE = 90.0  # longer than a pull waits for a server that says nothing


class Partials:
    """The folder of downloads of one store."""

    def __init__(
        self, folder: Path, *, clock: Callable[[], float] = time.time, patience: float = _PATIENCE
    ) -> None:
        self._folder, self._clock, self._patience = folder, clock, patience

    @contextmanager
    def writing(self, digest: str, wait: Callable[[int], None]) -> Iterator[BinaryIO]:
        """The blob's file, to read and append, locked while the block runs; it stays open afterwards.

        While another pull has it, `wait` is called again and again with the bytes that are there. It sleeps,
        and raises to give up.
        """
        path = self._file(digest)
        self._folder.mkdir(parents=True, exist_ok=True)
        seen, since = -1, 0.0
        while True:
            handle = open(path, "a+b")
            if locks.taken(handle.fileno()) and locks.names(path, handle.fileno()):
                break
            size = os.fstat(handle.fileno()).st_size
            if size != seen:
                seen, since = size, time.monotonic()
            elif time.monotonic() - since > self._patience:
                self._replace(path, handle)
            handle.close()
            wait(size)
        try:
            yield handle
            handle.flush()
        except BaseException:
            handle.close()
            raise
        fcntl.flock(handle, fcntl.LOCK_UN)

    def _replace(self, path: Path, stuck: BinaryIO) -> None:
        """Have the name mean a copy, which nobody has locked."""
        log.warning("Went on with a copy of a download that stood still digest=%s", path.name)
        descriptor, name = tempfile.mkstemp(prefix="copy-", dir=self._folder)
        with open(descriptor, "wb") as copy:
            stuck.seek(0)
            shutil.copyfileobj(stuck, copy, 1 << 20)
        os.replace(name, path)

    def forget(self, digests: Iterable[str]) -> None:
        """Their layers are in the store, or they are of no use."""
        for digest in digests:
            locks.drop_if_free(self._file(digest))

    def keep(self, digests: Iterable[str]) -> None:
        """The pull of these ended early: what it got is for the next one."""
        for digest in digests:
            try:
                size = self._file(digest).stat().st_size
            except FileNotFoundError:
                continue
            if size:
                log.info("Kept a broken-off download digest=%s bytes=%d", digest, size)
            else:
                locks.drop_if_free(self._file(digest))

    def drop(self, *, older_than: float = _KEPT_SECONDS) -> int:
        """Delete those not touched for so many seconds (0: all) that nobody has locked; their bytes."""
        freed, limit = 0, self._clock() - older_than
        for file in list(self._folder.iterdir()) if self._folder.is_dir() else ():
            try:
                if older_than and file.stat().st_mtime >= limit:
                    continue
            except FileNotFoundError:
                continue  # a pull has just finished with it
            dropped = locks.drop_if_free(file)
            freed += dropped.st_size if dropped is not None else 0
        return freed

    def _file(self, digest: str) -> Path:
        return self._folder / digest.partition(":")[2]
