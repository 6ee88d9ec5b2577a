"""nf_tables' tables, chains, sets, elements and rules: as values, as requests, and read from dumps. PURE.

A request is a `Message`; `nfnetlink.NfTables.commit` sends any number of them as one transaction: the packets
see all of it or nothing. Order matters as it does to nft: what is referred to must exist first, what is
deleted must not be referred to any more at that point. Source: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from proxy.nfattributes import (
    LONGEST,
    as_dict,
    as_number,
    as_text,
    attribute,
    attributes,
    nested,
    text,
    u32,
    u64,
)
from proxy.nfexpressions import Code, verdict_body

(NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE) = range(9)
(NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM, NEWGEN, GETGEN) = range(9, 17)
CREATE, EXCLUSIVE, APPEND = 0x400, 0x200, 0x800
VERDICT_TYPE = 0xFFFFFF00
_BATCH_OF_ELEMENTS = LONGEST - 1024


class Family(IntEnum):
    """Which packets a table sees. INET is IPv4 and IPv6 together."""

    INET = 1
    IP = int(socket.AF_INET)
    BRIDGE = 7
    IP6 = int(socket.AF_INET6)


class Hook(IntEnum):
    """Where a base chain sits, of families IP, IP6, INET and (with the same numbers) BRIDGE."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


class Type(IntEnum):
    """A key's fields as `nft list` shows them; lengths are what a field takes in the key, in bytes."""

    INTEGER = 4
    IPV4 = 7
    IPV6 = 8
    PROTOCOL = 12
    PORT = 13
    MARK = 19
    IFNAME = 41

    @property
    def length(self) -> int:
        return {Type.IPV6: 16, Type.IFNAME: 16}.get(self, 4)


class Flag(IntFlag):
    """A set's properties. Maps and concatenations get theirs by themselves."""

    NONE = 0
    CONSTANT = 0x2
    INTERVAL = 0x4
    MAP = 0x8
    TIMEOUT = 0x10
    DYNAMIC = 0x20  # rules may change it (nfexpressions.dynamic_set)
    CONCATENATION = 0x80


@dataclass(frozen=True, slots=True)
class Verdict:
    code: Code
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.family.name.lower()} {self.name}"


@dataclass(frozen=True, slots=True)
class Chain:
    """`kind` ("filter", "nat", "route"), `hook` and `priority` for base chains; `policy` DROP or ACCEPT."""

    name: str
    kind: str = ""
    hook: Hook | None = None
    priority: int = 0
    policy: Code = Code.ACCEPT


@dataclass(frozen=True, slots=True)
class Set:
    """A set, a map (`data` not empty) or a verdict map (`verdicts`). Several fields make a concatenation.

    Without INTERVAL it is a hash table. With it a key is a range; of one field the elements are the
    kernel's red-black tree (see `interval_elements`), of several fields an element has `key_end`.
    `size` is the most elements it may hold, 0 for no limit; sets that packets fill must have one.
    """

    name: str
    key: tuple[Type, ...]
    data: tuple[Type, ...] = ()
    verdicts: bool = False
    flags: Flag = Flag.NONE
    size: int = 0
    timeout_ms: int = 0


@dataclass(frozen=True, slots=True)
class Element:
    """A member. `key` and `key_end` are whole words per field; `end` marks where a range stops (one field).

    `expires_ms` is only what a dump told.
    """

    key: bytes
    data: bytes = b""
    verdict: Verdict | None = None
    key_end: bytes = b""
    end: bool = False
    timeout_ms: int = 0
    expires_ms: int = 0

    def __str__(self) -> str:
        return self.key.hex() + (f"-{self.key_end.hex()}" if self.key_end else "")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a dump shows of a rule: its expressions as the kernel writes them, and the comment."""

    chain: str
    handle: int
    expressions: bytes
    comment: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One request; `action` finishes the sentence "Could not …". `elements_at`: where they start in body."""

    action: str
    kind: int
    flags: int
    family: int
    body: bytes
    elements_at: int = 0


# --- requests ---------------------------------------------------------------------------------------


def add_table(table: Table) -> Message:
    """Make the table; no error when it exists."""
    return Message(f"add table {table}", NEWTABLE, CREATE, table.family, text(1, table.name))


def delete_table(table: Table) -> Message:
    """Remove it with everything in it. Fails when there is none: `add_table` before it makes it certain."""
    return Message(f"delete table {table}", DELTABLE, 0, table.family, text(1, table.name))


def add_chain(table: Table, chain: Chain) -> Message:
    """Make the chain; no error when the same exists."""
    body = text(1, table.name) + text(3, chain.name)
    if chain.hook is not None:
        body += nested(4, u32(1, chain.hook), u32(2, chain.priority))
        body += u32(5, chain.policy) + text(7, chain.kind)
    return Message(f"add chain {table} {chain.name}", NEWCHAIN, CREATE, table.family, body)


def delete_chain(table: Table, name: str) -> Message:
    """Remove a chain with its rules. Nothing may jump to it (EBUSY)."""
    body = text(1, table.name) + text(3, name)
    return Message(f"delete chain {table} {name}", DELCHAIN, 0, table.family, body)


def add_rule(table: Table, chain: str, *expressions: bytes, comment: str = "") -> Message:
    """Append a rule. The comment is shown by `nft list`, 120 bytes at most."""
    body = text(1, table.name) + text(2, chain) + nested(4, *expressions)
    if comment:
        raw = comment.encode()[:120] + b"\0"
        body += attribute(7, b"\0" + bytes([len(raw)]) + raw)  # libnftnl's user data: type, length, value
    return Message(f"add rule to {table} {chain}", NEWRULE, CREATE | APPEND, table.family, body)


def flush_chain(table: Table, chain: str) -> Message:
    """Remove all rules of a chain."""
    body = text(1, table.name) + text(2, chain)
    return Message(f"flush chain {table} {chain}", DELRULE, 0, table.family, body)


def delete_rule(table: Table, chain: str, handle: int) -> Message:
    body = text(1, table.name) + text(2, chain) + u64(3, handle)
    return Message(f"delete rule {handle} of {table} {chain}", DELRULE, 0, table.family, body)


def add_set(table: Table, made: Set, number: int = 1) -> Message:
    """Make the set; no error when the same exists. `number` only has to differ within a transaction."""
    flags = made.flags
    if made.data or made.verdicts:
        flags |= Flag.MAP
    interval_of_fields = len(made.key) > 1 and Flag.INTERVAL in made.flags
    if interval_of_fields:
        flags |= Flag.CONCATENATION
    body = text(1, table.name) + text(2, made.name) + u32(3, flags)
    body += u32(4, _type(made.key)) + u32(5, _length(made.key))
    if made.verdicts:
        body += u32(6, VERDICT_TYPE)
    elif made.data:
        body += u32(6, _type(made.data)) + u32(7, _length(made.data))
    description = b""
    if made.size:
        description += u32(1, made.size)
    if interval_of_fields:
        description += nested(2, *(nested(1, u32(1, field.length)) for field in made.key))
    if description:
        body += nested(9, description)
    body += u32(10, number)
    if made.timeout_ms:
        body += u64(11, made.timeout_ms)
    return Message(f"add set {table} {made.name}", NEWSET, CREATE, table.family, body)


def delete_set(table: Table, name: str) -> Message:
    """Remove a set with its elements. No rule may use it (EBUSY)."""
    body = text(1, table.name) + text(2, name)
    return Message(f"delete set {table} {name}", DELSET, 0, table.family, body)


def flush_set(table: Table, name: str) -> Message:
    """Remove all elements."""
    body = text(1, table.name) + text(2, name)
    return Message(f"flush set {table} {name}", DELSETELEM, 0, table.family, body)


def encode(element: Element) -> bytes:
    """An element as it stands in a list; for many at once encode early and keep the bytes.

    They are the very bytes that the kernel writes in a dump (which is why no attribute is flagged as
    nested), so what is there can be compared with what is wanted without taking either apart.
    """
    parts = [attribute(1, attribute(1, element.key))]
    if element.key_end:
        parts.append(attribute(10, attribute(1, element.key_end)))
    if element.verdict is not None:
        parts.append(encode_verdict(element.verdict))
    elif element.data:
        parts.append(attribute(2, attribute(1, element.data)))
    if element.end:
        parts.append(u32(3, 1))
    if element.timeout_ms:
        parts.append(u64(4, element.timeout_ms))
    return attribute(1, b"".join(parts))


_KEY = struct.Struct("=HHHHHH")
_VALUE = struct.Struct("=HHHH")


def encode_key(key: bytes, rest: bytes = b"") -> bytes:
    """`encode` for a key of whole words, with the rest of the element as bytes: three times as fast."""
    length = len(key)
    return _KEY.pack(length + len(rest) + 12, 1, length + 8, 1, length + 4, 1) + key + rest


def encode_data(data: bytes) -> bytes:
    """The rest of a map's element, for `encode_key`."""
    length = len(data)
    return _VALUE.pack(length + 8, 2, length + 4, 1) + data


def encode_verdict(verdict: Verdict) -> bytes:
    """The rest of a verdict map's element, for `encode_key`."""
    return attribute(2, attribute(2, verdict_body(verdict.code, verdict.chain)))


def add_elements(
    table: Table, name: str, elements: Iterable[Element | bytes], *, exclusive: bool = False
) -> list[Message]:
    """Put elements into a set, in as many messages as their size needs; bytes are encoded elements.

    An element that exists with the same data is no error unless `exclusive`; with other data it is
    (EEXIST): delete it first, in the same transaction.
    """
    flags = CREATE | (EXCLUSIVE if exclusive else 0)
    return _elements(f"add element to {table} {name}", NEWSETELEM, flags, table, name, elements)


def delete_elements(table: Table, name: str, elements: Iterable[Element | bytes]) -> list[Message]:
    """Take elements out by their keys (with `key_end` where they have one); ENOENT when one is not there."""
    return _elements(f"delete element of {table} {name}", DELSETELEM, 0, table, name, elements)


def interval_elements(low: bytes, high: bytes) -> list[Element]:
    """A range, both ends included, for an INTERVAL set of one field: its start, and the key after its end."""
    found = [Element(low)]
    if high != b"\xff" * len(high):
        found.append(Element((int.from_bytes(high, "big") + 1).to_bytes(len(high), "big"), end=True))
    return found


def _elements(
    action: str, kind: int, flags: int, table: Table, name: str, elements: Iterable[Element | bytes]
) -> list[Message]:
    head = text(1, table.name) + text(2, name)
    messages: list[Message] = []
    part: list[bytes] = []
    size = 0
    for element in elements:
        raw = element if isinstance(element, bytes) else encode(element)
        if size + len(raw) > _BATCH_OF_ELEMENTS:
            messages.append(Message(action, kind, flags, table.family, head + nested(3, *part), len(head)))
            part, size = [], 0
        part.append(raw)
        size += len(raw)
    if part:
        messages.append(Message(action, kind, flags, table.family, head + nested(3, *part), len(head)))
    return messages


def _type(fields: Sequence[Type]) -> int:
    """nft's number for a concatenation: six bits per field."""
    number = 0
    for field in fields:
        number = number << 6 | field
    return number


def _length(fields: Sequence[Type]) -> int:
    return sum(field.length for field in fields)


# --- what dumps say ---------------------------------------------------------------------------------


def element_at(message: Message, offset: int) -> Element | None:
    """The element of a request that holds byte `offset` of its body, to say which one the kernel refused."""
    if not message.elements_at or offset < message.elements_at:
        return None
    for _kind, begin, end in attributes(message.body, message.elements_at + 4):
        # The kernel points at the attribute's head or at something inside it.
        if begin - 4 <= offset < end:
            return read_element(message.body, begin, end)
    return None


def read_element(data: bytes, begin: int, end: int) -> Element:
    """The element whose attributes lie between two offsets."""
    key = key_end = meaning = b""
    verdict: Verdict | None = None
    stops, timeout, expires = False, 0, 0
    for kind, b, e in attributes(data, begin, end):
        # A value is wrapped once more: inside is one attribute, with a head of four bytes.
        if kind == 1:
            key = data[b + 4 : e]
        elif kind == 2:
            inner = as_dict(data[b:e])
            verdict = _read_verdict(inner[2]) if 2 in inner else None
            meaning = inner.get(1, b"")
        elif kind == 3:
            stops = bool(as_number(data[b:e]) & 1)
        elif kind == 4:
            timeout = as_number(data[b:e])
        elif kind == 5:
            expires = as_number(data[b:e])
        elif kind == 10:
            key_end = data[b + 4 : e]
    return Element(key, meaning, verdict, key_end, stops, timeout, expires)


def _read_verdict(data: bytes) -> Verdict:
    said = as_dict(data)
    return Verdict(Code(int.from_bytes(said[1], "big", signed=True)), as_text(said.get(2, b"")))


def encoded_elements(body: bytes) -> list[bytes]:
    """The elements in one answer to GETSETELEM, each as `encode` writes it."""
    for kind, begin, end in attributes(body):
        if kind == 3:
            return [body[b - 4 : e] for _kind, b, e in attributes(body, begin, end)]
    return []


def read_rule(body: bytes) -> Rule:
    parts = as_dict(body)
    said = parts.get(7, b"")
    comment = said[2 : 2 + said[1]].rstrip(b"\0") if len(said) > 2 and said[0] == 0 else said
    return Rule(as_text(parts[2]), as_number(parts[3]), parts.get(4, b""), comment)
