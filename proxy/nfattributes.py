"""Netlink attributes as nf_tables wants them, written and read: PURE bytes.

An attribute is two 16-bit numbers in host order (length with the header, type), the value, and padding to
four bytes; numbers inside values are big-endian here, unlike in rtnetlink (netlink(7), linux/netlink.h). A
length of 16 bits is why no list of set elements can be longer than 65,535 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

NESTED = 0x8000
TYPE_MASK = 0x3FFF
LONGEST = 0xFFFF
"""Bytes an attribute can hold with its header."""

_HEAD = struct.Struct("=HH")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


def attribute(kind: int, value: bytes) -> bytes:
    return _HEAD.pack(len(value) + 4, kind) + value + _PADDING[len(value) & 3]


def nested(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def u32(kind: int, value: int) -> bytes:
    return _HEAD.pack(8, kind) + (value & 0xFFFFFFFF).to_bytes(4, "big")


def u64(kind: int, value: int) -> bytes:
    return _HEAD.pack(12, kind) + value.to_bytes(8, "big")


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(type without flags, begin and end of the value) of each attribute between two offsets."""
    stop = len(data) if end is None else end
    while start + 4 <= stop:
        length, kind = _HEAD.unpack_from(data, start)
        if length < 4 or start + length > stop:
            return
        yield kind & TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


def as_dict(data: bytes) -> dict[int, bytes]:
    """The values by type; of several with one type the last."""
    return {kind: data[begin:end] for kind, begin, end in attributes(data)}


def as_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def as_number(value: bytes) -> int:
    return int.from_bytes(value, "big")
