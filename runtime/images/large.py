"""Contents of large files, written by a thread of its own while the next entries of a layer are created.

Names, headers and inodes keep one core busy with Python; copying a large content into the page cache is the
kernel's work alone, and os.write lets go of the GIL meanwhile. A small file's content is written faster than
handed over, so it does not come here.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable

from runtime.images.errors import UnpackError
from runtime.images.tarstream import Entry

LARGE = 1 << 16  # bytes
_BATCH = 1 << 20  # bytes that are handed over at once: each time both threads pay for it
_WAITING = 3  # batches
_Work = tuple[int, Entry, memoryview, bool]


class LargeFiles:
    """Owns the descriptors it is given, and closes each when the last piece of its file is written.

    Before that it calls `complete`, which sets what writing would change. `failed` makes an UnpackError of an
    OSError. What goes wrong comes out of a later `take` or of `finish`; nothing is written from then on. Used
    in a `with` block, which waits for the thread.
    """

    def __init__(
        self, complete: Callable[[int, Entry], None], failed: Callable[[Entry, OSError], UnpackError]
    ) -> None:
        self._complete, self._failed = complete, failed
        self._queue: queue.Queue[list[_Work]] = queue.Queue(_WAITING)
        self._batch: list[_Work] = []
        self._bytes = 0  # in the batch
        self._thread = threading.Thread(target=self._run, name="layer-write", daemon=True)
        self._failure: BaseException | None = None
        self._given_up = False

    def __enter__(self) -> LargeFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up = True
        self._stop()

    def prepare(self) -> None:
        """Start the thread, which most layers of a few small files never need."""
        if self._thread.ident is None:
            self._thread.start()

    def take(self, descriptor: int, entry: Entry, pieces: Iterable[memoryview]) -> None:
        """Have the pieces, `entry.size` bytes in all, written to the file; waits while many others do.

        `prepare` comes before the file is opened, so that no descriptor is left if there can be no thread.
        """
        left = entry.size
        try:
            for piece in pieces:
                left -= len(piece)
                self._add(descriptor, entry, piece, not left)
        except BaseException:
            self._given_up = True
            if left:
                self._add(descriptor, entry, memoryview(b""), True)
            raise
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until all is written."""
        self._stop()
        if self._failure is not None:
            raise self._failure

    def _add(self, *work: *_Work) -> None:
        self._batch.append(work)
        self._bytes += len(work[2])
        if self._bytes >= _BATCH:
            batch, self._batch, self._bytes = self._batch, [], 0
            self._queue.put(batch)

    def _stop(self) -> None:
        if self._thread.is_alive():
            if self._batch:
                self._queue.put(self._batch)
            self._queue.put([])
            self._thread.join()

    def _run(self) -> None:
        while batch := self._queue.get():
            self._write(batch)

    def _write(self, batch: list[_Work]) -> None:
        for descriptor, entry, piece, last in batch:
            try:
                self._write_piece(descriptor, entry, piece, last)
            except OSError as error:
                self._failure = self._failure or self._failed(entry, error)
            except BaseException as error:  # raised again by whoever unpacks
                self._failure = self._failure or error

    def _write_piece(self, descriptor: int, entry: Entry, piece: memoryview, last: bool) -> None:
        """Raises OSError, of close(2) too: some file systems tell only then that they are full."""
        try:
            if self._failure is None and not self._given_up:
                write_all(descriptor, piece)
                if last:
                    self._complete(descriptor, entry)
        finally:
            if last:
                os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until nothing is left: it may take less than it is given."""
    done = os.write(descriptor, data)
    while done < len(data):
        done += os.write(descriptor, data[done:])
