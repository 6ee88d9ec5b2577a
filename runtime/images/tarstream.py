"""Reading tar archives as a stream, without trusting them.

Python's `tarfile` costs three times as much per entry as extracting the file does, and its extraction
filters were bypassed again and again (CVE-2007-4559, CVE-2025-4517). Layers need little of it: POSIX ustar
and pax headers (`SCHILY.xattr.*` carries extended attributes), GNU long names and base-256 numbers.
Names stay bytes, since Linux does not know encodings. Sparse files (GNU tar's) have their map in sparse.py.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import IO, Any, BinaryIO, Protocol, cast

from runtime.images.errors import UnpackError
from runtime.images.sparse import SparseMap, from_header, from_pax

BLOCK = 512
CHUNK = 1 << 18
MAX_HEADER = 1 << 20  # pax records and long names; the kernel's longest path is 4 kB, xattrs at most 64 kB

_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One member: `kind` is file, dir, symlink, link, char, block or fifo; `mtime` in nanoseconds.

    `size` is what the archive has of it; where `sparse` is set, that is where the pieces of it belong.
    """

    name: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    sparse: SparseMap | None = None


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
            head = source.read(CHUNK)


class Hashed:
    """Passes chunks on and computes their sha256 and length on the way."""

    def __init__(self, chunks: Iterator[bytes], limit: int) -> None:
        self._chunks, self._limit = chunks, limit
        self._hash = hashlib.sha256()
        self.length = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.length += len(chunk)
            if self.length > self._limit:
                raise UnpackError(f"Could not read archive: more than {self._limit} bytes when decompressed")
            self._hash.update(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class Tape(Protocol):
    """Told of every byte of the archive: as it is, or by the name of the file that will have it."""

    def raw(self, data: bytes) -> None: ...
    def file(self, name: bytes, size: int) -> None: ...


class TarReader:
    """Iterates over entries; `content()` gives the current entry's bytes, what is not read is skipped."""

    def __init__(self, chunks: Iterator[bytes], tape: Tape | None = None) -> None:
        self._chunks = chunks
        self._tape = tape
        self._buffer = b""
        self._position = 0
        self._left = 0  # of the current entry's content
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry
        self._record(self._buffer[self._position :])
        for chunk in self._chunks:  # what follows the end mark belongs to the digest
            self._record(chunk)

    def content(self, stored: bytes | None = None) -> Iterator[bytes]:
        """The current entry's content in chunks; `stored` names the file that the caller writes it to."""
        if stored is not None and self._tape is not None:
            self._tape.file(stored, self._left)
        while self._left:
            chunk = self._some(self._left)
            self._left -= len(chunk)
            if stored is None:
                self._record(chunk)
            yield chunk

    def _record(self, data: bytes) -> None:
        if self._tape is not None:
            self._tape.raw(data)

    def _next(self) -> Entry | None:
        long_name, long_target = b"", b""
        pax: dict[str, bytes] = {}
        while True:
            for _ in self.content():
                pass
            self._take(self._padding)
            self._padding = 0
            header = self._take(BLOCK, may_end=True)
            if not header or not header.strip(b"\0"):
                return None
            raw = _parse_header(header)
            kind = header[156:157]
            if kind not in b"LKxg" or kind == b"\0":
                return self._finish(raw, header, long_name, long_target, pax)
            if raw.size > MAX_HEADER:
                raise UnpackError(f"Could not read archive: an extended header of {raw.size} bytes")
            data = self._take(raw.size)
            self._padding = -raw.size % BLOCK
            if kind == b"L":
                long_name = data.rstrip(b"\0")
            elif kind == b"K":
                long_target = data.rstrip(b"\0")
            elif kind == b"x":
                pax = _parse_pax(data)

    def _finish(
        self, raw: Entry, header: bytes, name: bytes, target: bytes, pax: Mapping[str, bytes]
    ) -> Entry:
        kind = header[156:157]
        known = _KINDS.get(kind)
        if known is None:
            raise UnpackError(f"Could not read archive: {_show(raw.name)} has the unknown type {kind!r}")
        changes: dict[str, Any] = {"kind": known}
        if name:
            changes["name"] = name
        if target:
            changes["target"] = target
        if pax:
            changes |= _pax_fields(pax)
        entry = replace(raw, **changes)
        if known == "file" and entry.name.endswith(b"/"):
            entry = replace(entry, kind="dir")  # how archives older than POSIX mark folders
        if entry.size < 0:
            raise UnpackError(f"Could not read archive: {_show(entry.name)} has a negative size")
        # Only regular files carry content, whatever the size field of the others says.
        self._left = entry.size if entry.kind == "file" else 0
        self._padding = -self._left % BLOCK
        return self._spread(entry, header, pax) if entry.kind == "file" else entry

    def _spread(self, entry: Entry, header: bytes, pax: Mapping[str, bytes]) -> Entry:
        """The entry with its map, if it is sparse; what the map takes of the data is not content."""
        if header[156:157] == b"S":
            found = from_header(header, _number, lambda: self._take(BLOCK))
            return replace(entry, sparse=found.check(self._left))
        if not pax:
            return entry

        def block() -> bytes:
            if self._left < BLOCK:
                raise UnpackError(f"Could not read archive: the map of {_show(entry.name)} is cut short")
            self._left -= BLOCK
            return self._take(BLOCK)

        try:
            spread = from_pax(pax, block)
        except ValueError as error:
            raise UnpackError("Could not read archive: a sparse map holds a bad number") from error
        return entry if spread is None else replace(entry, size=self._left, sparse=spread.check(self._left))

    def _some(self, most: int) -> bytes:
        if self._position >= len(self._buffer):
            self._buffer = next(self._chunks, b"")
            self._position = 0
            if not self._buffer:
                raise UnpackError("Could not read archive: it ends in the middle of an entry")
        piece = self._buffer[self._position : self._position + most]
        self._position += len(piece)
        return piece

    def _take(self, size: int, *, may_end: bool = False) -> bytes:
        end = self._position + size
        if end <= len(self._buffer):
            piece = self._buffer[self._position : end]
            self._position = end
            self._record(piece)
            return piece
        pieces, missing = [self._buffer[self._position :]], end - len(self._buffer)
        self._buffer, self._position = b"", 0
        while missing:
            chunk = next(self._chunks, b"")
            if not chunk:
                if may_end and not any(pieces):
                    return b""
                raise UnpackError("Could not read archive: it ends in the middle of an entry")
            pieces.append(chunk[:missing])
            if len(chunk) > missing:
                self._buffer, self._position = chunk, missing
            missing -= len(pieces[-1])
        piece = b"".join(pieces)
        self._record(piece)
        return piece


def _parse_header(header: bytes) -> Entry:
    expected = _number(header[148:156])
    if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
        raise UnpackError("Could not read archive: a header's checksum is wrong (damaged, or not a tar file)")
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return Entry(
        name=name,
        kind="",
        mode=_number(header[100:108]) & 0o7777,
        uid=_number(header[108:116]),
        gid=_number(header[116:124]),
        size=_number(header[124:136]),
        mtime=_number(header[136:148]) * 10**9,
        target=header[157:257].partition(b"\0")[0],
        major=_number(header[329:337]) if header[257:262] == b"ustar" else 0,
        minor=_number(header[337:345]) if header[257:262] == b"ustar" else 0,
    )


def _number(text: bytes) -> int:
    if text[0] & 0x80:  # GNU base-256, big-endian, two's complement below the marker bit
        value = int.from_bytes(text, "big", signed=False) & ((1 << (8 * len(text) - 1)) - 1)
        return value - (1 << (8 * len(text) - 1)) if text[0] & 0x40 else value
    digits = text.partition(b"\0")[0].strip(b" ")
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        raise UnpackError(
            "Could not read archive: a header's number is not octal (damaged, or not a tar file)"
        ) from error


def _parse_pax(data: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = data[space + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if (
            length <= len(digits) + 3
            or not equals
            or not value.endswith(b"\n")
            or position + length > len(data)
        ):
            raise UnpackError("Could not read archive: a pax header is damaged")
        records[key.decode("utf-8", "surrogateescape")] = value[:-1]
        position += length
    return records


def _pax_fields(pax: Mapping[str, bytes]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    xattrs = {}
    try:
        for key, value in pax.items():
            if key == "GNU.sparse.name" or (key == "path" and "GNU.sparse.name" not in pax):
                changes["name"] = value
            elif key == "linkpath":
                changes["target"] = value
            elif key in ("uid", "gid", "size"):
                changes[key] = int(value)
            elif key == "mtime":
                seconds, _, fraction = value.partition(b".")
                sign = -1 if seconds.startswith(b"-") else 1
                changes["mtime"] = int(seconds or b"0") * 10**9 + sign * int(fraction[:9].ljust(9, b"0"))
            elif key.startswith("SCHILY.xattr."):
                xattrs[key.removeprefix("SCHILY.xattr.")] = value
    except ValueError as error:
        raise UnpackError("Could not read archive: a pax header holds a bad number") from error
    if xattrs:
        changes["xattrs"] = xattrs
    return changes


def _gunzip(head: bytes, source: BinaryIO) -> Iterator[bytes]:
    engine = zlib.decompressobj(31)
    data, finished = head, False
    try:
        while data:
            while data:
                if finished:
                    if not data.strip(b"\0"):
                        break  # padding after the last member, as tapes and some tools leave it
                    engine, finished = zlib.decompressobj(31), False
                plain = engine.decompress(data, CHUNK)
                if plain:
                    yield plain
                finished = engine.eof
                data = engine.unused_data if finished else engine.unconsumed_tail
            data = source.read(CHUNK)
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


def _show(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))
