"""The plain bytes of an archive: decompressed, counted and hashed, a step ahead of who reads them.

Layers travel as gzip, as zstd or as they are; their first bytes tell. zlib, zstd and sha256 let go of the GIL
while they compute, so a thread of its own does that while the files of the chunks before are being written:
unpacking takes as long as the slower of the two, not as both.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, cast

from runtime.images.errors import UnpackError

CHUNK = 1 << 20
_PLAIN = 1 << 21  # what is read at once where nothing is decompressed: each chunk costs both threads a switch
# Of a chunk with several gzip members: what follows one is copied at its end, and members may have 20 bytes.
_WINDOW = 1 << 14
_AHEAD = 2  # chunks that wait to be read; with them a plain layer has about 8 MB in memory


def decompress(source: BinaryIO) -> Iterator[bytes]:
    """Chunks of the plain stream; gzip, zstd and uncompressed input are told apart by their first bytes."""
    head = source.read(CHUNK)
    if head.startswith(b"\x1f\x8b"):
        yield from _gunzip(head, source)
    elif head.startswith(b"\x28\xb5\x2f\xfd") or head[1:4] == b"\x2a\x4d\x18":
        yield from _unzstd(head, source)
    elif head.startswith((b"BZh", b"\xfd7zXZ")):
        raise UnpackError("Could not read archive: bzip2 and xz are no layer formats (use gzip or zstd)")
    else:
        while head:
            yield head
            head = source.read(_PLAIN)


class Hashed:
    """Passes chunks on, in order, while a thread fetches the next ones and computes their sha256.

    What the chunks raise, and UnpackError for more than `limit` bytes, comes out of the iteration. `digest`
    and `length` are final when it is over. Who may leave it early does so in a `with` block.
    """

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks, self._limit = chunks, limit
        self._hash = hashlib.sha256()
        self._ready: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="layer-hash", daemon=True)
        self.length = 0

    def __enter__(self) -> Hashed:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up = True
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[bytes]:
        self._thread.start()
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def _work(self) -> None:
        last: BaseException | None = None
        try:
            for chunk in self._chunks:
                self.length += len(chunk)
                if self.length > self._limit:
                    raise UnpackError(
                        f"Could not read archive: more than {self._limit} bytes when decompressed"
                    )
                self._ready.put(chunk)
                self._hash.update(chunk)
                if self._given_up:
                    break
        except BaseException as error:  # raised again by whoever reads
            last = error
        self._ready.put(last)


def _gunzip(head: bytes, source: BinaryIO) -> Iterator[bytes]:
    engine, finished, chunk = zlib.decompressobj(31), False, head
    try:
        while chunk:
            rest, window = memoryview(chunk), len(chunk)
            while rest:
                data: bytes | memoryview = rest[:window]
                rest = rest[window:]
                while data:
                    if finished:
                        if not data[0] and not bytes(data).strip(b"\0"):
                            break  # padding after the last member, as tapes and some tools leave it
                        engine, finished = zlib.decompressobj(31), False
                    plain = engine.decompress(data, CHUNK)
                    if plain:
                        yield plain
                    finished = engine.eof
                    data = engine.unused_data if finished else engine.unconsumed_tail
                    if finished and len(data) > _WINDOW:
                        rest, window, data = memoryview(data), _WINDOW, b""
            chunk = source.read(CHUNK)
    except zlib.error as error:
        raise UnpackError(f"Could not read archive: gzip data is damaged ({error})") from error
    if not finished:
        raise UnpackError("Could not read archive: gzip data is cut short")


def _unzstd(head: bytes, source: BinaryIO) -> Iterator[bytes]:
    import zstandard  # lazily: 10 ms and some MB that most images do not need

    engine = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    try:
        with engine.stream_reader(
            cast("IO[bytes]", _Rejoined(head, source.read)), read_across_frames=True
        ) as reader:
            while chunk := reader.read(CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise UnpackError(f"Could not read archive: zstd data is damaged ({error})") from error


class _Rejoined:
    """A file object that gives the bytes already read before the rest."""

    def __init__(self, head: bytes, read: Callable[[int], bytes]) -> None:
        self._head, self._read = head, read

    def read(self, size: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._read(size if size > 0 else CHUNK)
