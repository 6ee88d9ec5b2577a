"""D-Bus messages as bytes: the few types of the specification that systemd's interface uses, both ways.

There is no D-Bus library on the way to a container: importing one costs more than a container's start.
Source: the D-Bus Specification, "Type System", "Marshaling (Wire Format)" and "Message Format". Facts relied
on: every value starts at a multiple of its alignment, counted from the message's first byte; structs, and the
body itself, start at multiples of 8; an array's length leaves out the padding in front of its first element.
"""

from __future__ import annotations

import struct

from runtime.errors import SystemdError
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SENDER, SIGNATURE, UNIX_FDS = range(1, 10)
_FIELD_TYPES = {
    PATH: "o", INTERFACE: "s", MEMBER: "s", ERROR_NAME: "s", REPLY_SERIAL: "u", DESTINATION: "s", SENDER: "s",
    SIGNATURE: "g", UNIX_FDS: "u",
}  # fmt: skip
HEADER = 16  # the fixed part, up to and with the length of the header fields
LARGEST = 1 << 27
# h: a descriptor, by its place among those that came with the message.
_NUMBERS = {
    "y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d", "h": "I",
}  # fmt: skip
_ALIGNED = {"n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8, "y": 1, "g": 1, "v": 1}  # all others: 4
_CLOSING = {"(": ")", "{": "}"}


class Variant(Record):
    """A value that carries its own type."""

    signature: str
    value: Any


class Message(Record):
    """One message. `fields`: header field → value."""

    kind: int
    serial: int
    fields: dict[int, Any]
    body: tuple[Any, ...] = ()

    def text(self, field: int) -> str:
        """A header field, "" when it is missing."""
        return str(self.fields.get(field, ""))


def types(signature: str) -> list[str]:
    """The complete types that a signature lists: "sa(sv)u" → ["s", "a(sv)", "u"]. Raises SystemdError."""
    found: list[str] = []
    at = 0
    while at < len(signature):
        end = _end_of_type(signature, at)
        found.append(signature[at:end])
        at = end
    return found


def _end_of_type(signature: str, at: int) -> int:
    while signature[at : at + 1] == "a":
        at += 1
    first = signature[at : at + 1]
    if first not in _CLOSING:
        if not first or first not in "ybnqiuxtdhsogv":
            raise SystemdError(f"Could not read D-Bus signature {signature!r}: unknown type {first!r}")
        return at + 1
    at += 1
    while signature[at : at + 1] != _CLOSING[first]:
        at = _end_of_type(signature, at)
    return at + 1


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def align(self, to: int) -> None:
        self.data += bytes(-len(self.data) % to)

    def number(self, kind: str, value: int) -> None:
        self.align(struct.calcsize(kind))
        self.data += struct.pack("<" + kind, value)

    def put(self, kind: str, value: Any) -> None:
        first = kind[0]
        if first in _NUMBERS:
            self.number(_NUMBERS[first], value)
        elif first in "so":
            raw = value.encode()
            self.number("I", len(raw))
            self.data += raw + b"\0"
        elif first == "g":
            self.data += bytes((len(value),)) + value.encode() + b"\0"
        elif first == "v":
            self.put("g", value.signature)
            self.put(value.signature, value.value)
        elif first == "a":
            self._array(kind[1:], value)
        else:
            self.align(8)
            for inner, part in zip(types(kind[1:-1]), value, strict=True):
                self.put(inner, part)

    def _array(self, kind: str, values: Any) -> None:
        self.number("I", 0)
        place = len(self.data)
        self.align(_ALIGNED.get(kind[0], 4))
        begin = len(self.data)
        if kind == "y":
            self.data += bytes(values)
        else:
            for value in values:
                self.put(kind, value)
        self.data[place - 4 : place] = struct.pack("<I", len(self.data) - begin)


class _Reader:
    def __init__(self, data: bytes, order: str, at: int) -> None:
        self.data = data
        self.at = at
        self._order = order

    def align(self, to: int) -> None:
        self.at += -self.at % to

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise SystemdError("Could not read D-Bus message: it ends early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, kind: str) -> Any:
        size = struct.calcsize(kind)
        self.align(size)
        return struct.unpack(self._order + kind, self.take(size))[0]

    def get(self, kind: str) -> Any:
        first = kind[0]
        if first == "b":
            return bool(self.number("I"))
        if first in _NUMBERS:
            return self.number(_NUMBERS[first])
        if first in "sog":
            length = self.number("B" if first == "g" else "I")
            return self.take(length + 1)[:-1].decode(errors="replace")
        if first == "v":
            signature = self.get("g")
            if len(types(signature)) != 1:
                raise SystemdError(f"Could not read D-Bus message: a variant of type {signature!r}")
            return Variant(signature, self.get(signature))
        if first == "a":
            length = self.number("I")
            self.align(_ALIGNED.get(kind[1], 4))
            end, found = self.at + length, []
            while self.at < end:
                found.append(self.get(kind[1:]))
            return found
        self.align(8)
        return tuple(self.get(inner) for inner in types(kind[1:-1]))


def encode(message: Message, signature: str = "") -> bytes:
    """The whole message, little-endian. `signature` is the body's."""
    body = _Writer()
    for kind, value in zip(types(signature), message.body, strict=True):
        body.put(kind, value)
    fields = {**message.fields, SIGNATURE: signature} if signature else message.fields
    head = _Writer()
    head.data += struct.pack("<cBBBII", b"l", message.kind, 0, 1, len(body.data), message.serial)
    head.put("a(yv)", [(code, Variant(_FIELD_TYPES[code], value)) for code, value in sorted(fields.items())])
    head.align(8)
    return bytes(head.data + body.data)


def length_of(head: bytes) -> int:
    """How long the message is that starts with these HEADER bytes. Raises SystemdError."""
    if head[:1] not in (b"l", b"B") or head[3] != 1:
        raise SystemdError(f"Could not read D-Bus message: it starts with {head[:4]!r}")
    body, _, fields = struct.unpack(_order(head) + "III", head[4:HEADER])
    total = HEADER + fields + -(HEADER + fields) % 8 + body
    if total > LARGEST:
        raise SystemdError(f"Could not read D-Bus message: {total} bytes are more than D-Bus allows")
    return int(total)


def decode(data: bytes) -> Message:
    """A whole message. Raises SystemdError."""
    serial = struct.unpack_from(_order(data) + "I", data, 8)[0]
    reader = _Reader(data, _order(data), HEADER - 4)
    fields = {code: variant.value for code, variant in reader.get("a(yv)")}
    reader.align(8)
    signature = fields.get(SIGNATURE, "")
    body: Sequence[Any] = [reader.get(kind) for kind in types(signature)]
    return Message(data[1], serial, fields, tuple(body))


def _order(data: bytes) -> str:
    return "<" if data[:1] == b"l" else ">"
