"""What it takes to write a layer's archive again, bit for bit, once it has been unpacked.

An image's id covers its layers' digests, and those are digests of tar archives: packing the unpacked folder
anew would change the order, the padding or a header, and with them the image. Keeping the archives would
double the disk's bill. So, while a layer is unpacked, everything that is not a file's content is written to
a tape (headers, padding, the end mark), and in the content's place stands the file's name and length. Played
back over the folder it gives the archive (Docker's layers keep such a record, too, and call it tar-split).

A tape is one zlib stream of records: a byte, a length of 8 bytes (big-endian), then for `R` that many raw
bytes, for `F` a name's length (4 bytes) and the name, the length being the file's.

A layer that mentions a name twice loses the first one's content: `broken` says so to the writer.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from runtime.images.errors import UnpackError
from runtime.images.rooted import open_in_root

_RAW, _FILE = b"R", b"F"
_HEAD = struct.Struct(">cQ")
_NAME = struct.Struct(">I")
_FILE_HEAD = struct.Struct(">cQI")
_CHUNK = 1 << 18
_LONGEST_RECORD = 1 << 30


class TapeWriter:
    """Collects the records of one layer; `close` completes the file."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._engine = zlib.compressobj(1)  # headers are mostly zeros: level 1 shrinks them twentyfold
        self._raw: list[bytes | memoryview] = []
        self._records: list[bytes | memoryview] = []
        self._raw_bytes = self._held = 0
        self.broken = False

    def raw(self, data: bytes | memoryview) -> None:
        """Bytes of the archive that are in no file."""
        if data:
            self._raw.append(data)
            self._raw_bytes += len(data)
            if self._raw_bytes >= _CHUNK:
                self._end_raw()

    def file(self, name: bytes, size: int) -> None:
        """Here `size` bytes follow that are the content of `name`."""
        if size:
            self._end_raw()
            self._records += (_FILE_HEAD.pack(_FILE, size, len(name)), name)

    def close(self) -> None:
        self._end_raw()
        self._pack()
        self._handle.write(self._engine.flush())

    def _end_raw(self) -> None:
        if self._raw_bytes:
            self._records.append(_HEAD.pack(_RAW, self._raw_bytes))
            self._records += self._raw
            self._held += self._raw_bytes
            self._raw, self._raw_bytes = [], 0
            if self._held >= _CHUNK:  # zlib called for each header would find cold caches each time
                self._pack()

    def _pack(self) -> None:
        self._handle.write(self._engine.compress(b"".join(self._records)))
        self._records, self._held = [], 0


def length(tape: Path) -> int:
    """How long the archive is, in bytes."""
    return sum(size for _, size, _ in _records(tape))


def play(tape: Path, folder: Path) -> Iterator[bytes]:
    """The archive of the layer in `folder`, in chunks; raises UnpackError when the two do not fit."""
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind, size, data in _records(tape):
            if kind == _RAW:
                yield data
            else:
                yield from _content(root, data, size)
    finally:
        os.close(root)


def _content(root: int, name: bytes, size: int) -> Iterator[bytes]:
    parent, _, last = name.strip(b"/").rpartition(b"/")
    try:
        above = open_in_root(root, parent or b".")
        try:
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
    except OSError as error:
        text = f"Could not read layer: {name!r}: {error.strerror} (the store is damaged)"
        raise UnpackError(text) from error
    try:
        left = size
        while left and (chunk := os.read(descriptor, min(left, _CHUNK))):
            left -= len(chunk)
            yield chunk
        if left or os.read(descriptor, 1):
            raise UnpackError(f"Could not read layer: {name!r} has not {size} bytes (the store is damaged)")
    finally:
        os.close(descriptor)


def _records(tape: Path) -> Iterator[tuple[bytes, int, bytes]]:
    with open(tape, "rb") as handle:
        stream = _Inflated(handle)
        while head := stream.take(_HEAD.size):
            kind, size = _HEAD.unpack(head)
            if kind == _FILE:
                yield kind, size, stream.take(_NAME.unpack(stream.take(_NAME.size))[0])
            else:
                yield kind, size, stream.take(size)


class _Inflated:
    """Reads exact numbers of bytes from a zlib stream."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._engine, self._buffer = handle, zlib.decompressobj(), b""

    def take(self, size: int) -> bytes:
        """`size` bytes, or b"" at the end of the stream; UnpackError when it is cut."""
        if size > _LONGEST_RECORD:
            raise UnpackError("Could not read layer: its tape is damaged (pull or import the image again)")
        pieces, have = [self._buffer], len(self._buffer)
        try:
            while have < size and (packed := self._handle.read(_CHUNK)):
                pieces.append(self._engine.decompress(packed))
                have += len(pieces[-1])
        except zlib.error as error:
            raise UnpackError(f"Could not read layer: its tape is damaged ({error})") from error
        data = b"".join(pieces)
        if have < size and (have or not self._engine.eof):
            raise UnpackError("Could not read layer: its tape is cut short")
        self._buffer = data[size:]
        return data[:size]
