"""The expressions that nf_tables rules are made of, as bytes: PURE.

A rule is a list of expressions that the kernel runs in order; each reads and writes registers, and the rule
ends at the first that does not match. Registers are named here by their 32-bit word, 0 to 15: an IPv4 address
or a port takes one word, an IPv6 address four that follow one another. A key of several fields
("concatenation") is simply what lies in consecutive words, each field starting on a word of its own. A
register must be written before it is read, in the same rule. `nft --debug=netlink -f FILE` prints this
language. Source: linux/netfilter/nf_tables.h, net/netfilter/nft_*.c.
"""

from __future__ import annotations

from enum import IntEnum

from proxy.nfattributes import attribute, nested, text, u32, u64

WORDS = 16
_FIRST_WORD = 8  # NFT_REG32_00
_VERDICT_REGISTER = 0
_LIST_ELEMENT, _NAME, _DATA = 1, 1, 2


class Base(IntEnum):
    """Where `payload` counts its offset from."""

    LINK = 0
    NETWORK = 1
    TRANSPORT = 2


class Meta(IntEnum):
    """What `meta` can read; 32-bit numbers are in host order, PROTOCOL is big-endian as on the wire."""

    LENGTH = 0
    PROTOCOL = 1
    MARK = 3
    IN_INDEX = 4
    OUT_INDEX = 5
    IN_NAME = 6  # four words, padded with zeros
    OUT_NAME = 7
    NF_FAMILY = 15  # one byte: 2 IPv4, 10 IPv6
    L4_PROTOCOL = 16  # one byte
    BRIDGE_IN_NAME = 17
    BRIDGE_OUT_NAME = 18
    PACKET_TYPE = 19


class Ct(IntEnum):
    """What `ct` can read of the packet's conntrack entry; state and status are bit sets in host order."""

    STATE = 0
    DIRECTION = 1
    STATUS = 2
    MARK = 3
    PROTOCOL = 10
    SOURCE_PORT = 11
    DESTINATION_PORT = 12
    SOURCE_IP = 19
    DESTINATION_IP = 20
    SOURCE_IP6 = 21
    DESTINATION_IP6 = 22


INVALID, ESTABLISHED, RELATED, NEW, UNTRACKED = 0x1, 0x2, 0x4, 0x8, 0x40
"""Bits of Ct.STATE."""
STATUS_SNAT, STATUS_DNAT = 0x10, 0x20
"""Bits of Ct.STATUS."""


class Op(IntEnum):
    """How `compare` compares, as big-endian numbers byte by byte."""

    EQUAL = 0
    NOT_EQUAL = 1
    LESS = 2
    LESS_OR_EQUAL = 3
    GREATER = 4
    GREATER_OR_EQUAL = 5


class Code(IntEnum):
    """A verdict. JUMP and GOTO take a chain."""

    DROP = 0
    ACCEPT = 1
    CONTINUE = -1
    JUMP = -3
    GOTO = -4
    RETURN = -5


class Change(IntEnum):
    """What `dynamic_set` does: ADD keeps the timeout of what is there, UPDATE starts it anew."""

    ADD = 0
    UPDATE = 1
    DELETE = 2


class Unreachable(IntEnum):
    """Why `reject` says that the destination cannot be had, the same for IPv4 and IPv6."""

    NO_ROUTE = 0
    PORT = 1
    HOST = 2
    ADMIN_PROHIBITED = 3


LOCAL_ADDRESS = 2
"""`address_type`'s answer for an address of this host (RTN_LOCAL), a 32-bit number in host order."""
_FIB_SOURCE, _FIB_DESTINATION, _FIB_TYPE = 0x1, 0x2, 3


def _expression(name: str, *data: bytes) -> bytes:
    inner = text(_NAME, name)
    return nested(_LIST_ELEMENT, inner, nested(_DATA, *data))


def _register(kind: int, word: int) -> bytes:
    if not 0 <= word < WORDS:
        raise ValueError(f"no register word {word}")
    return u32(kind, _FIRST_WORD + word)


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(1, value))


def verdict_body(code: Code, chain: str = "") -> bytes:
    """The attributes of a verdict: inside rules and as the data of a verdict map's element."""
    return u32(1, code) + (text(2, chain) if chain else b"")


def verdict(code: Code, chain: str = "") -> bytes:
    """End the rule so: drop, accept, return, or go on in another chain."""
    data = nested(2, nested(2, verdict_body(code, chain)))
    return _expression("immediate", u32(1, _VERDICT_REGISTER), data)


def immediate(word: int, value: bytes) -> bytes:
    """Put a constant into a register."""
    return _expression("immediate", _register(1, word), _value(2, value))


def payload(word: int, base: Base, offset: int, length: int) -> bytes:
    """Load bytes of the packet; the rule ends where the packet has none (a later fragment, say)."""
    return _expression("payload", _register(1, word), u32(2, base), u32(3, offset), u32(4, length))


def meta(word: int, key: Meta) -> bytes:
    return _expression("meta", u32(2, key), _register(1, word))


def set_meta(key: Meta, word: int) -> bytes:
    """Write a register to the packet, as the mark."""
    return _expression("meta", u32(2, key), _register(3, word))


def ct(word: int, key: Ct, *, reply: bool | None = None) -> bytes:
    """Load a property of the connection; of addresses and ports, of its original or its reply direction."""
    more = [] if reply is None else [attribute(3, bytes([reply]))]
    return _expression("ct", u32(2, key), _register(1, word), *more)


def compare(word: int, value: bytes, op: Op = Op.EQUAL) -> bytes:
    return _expression("cmp", _register(1, word), u32(2, op), _value(3, value))


def within(word: int, low: bytes, high: bytes, *, inverted: bool = False) -> bytes:
    """Match values from `low` to `high`, both included (inverted: all others)."""
    return _expression("range", _register(1, word), u32(2, inverted), _value(3, low), _value(4, high))


def mask(word: int, bits: bytes, flip: bytes | None = None, to: int | None = None) -> bytes:
    """Register `to` (or the same) becomes (word & bits) ^ flip."""
    length = len(bits)
    return _expression(
        "bitwise",
        _register(1, word),
        _register(2, word if to is None else to),
        u32(3, length),
        _value(4, bits),
        _value(5, flip if flip is not None else bytes(length)),
    )


def lookup(set_name: str, word: int, *, inverted: bool = False) -> bytes:
    """Match when the key from `word` on is in the set (inverted: when it is not)."""
    more = [u32(5, 1)] if inverted else []
    return _expression("lookup", text(1, set_name), _register(2, word), *more)


def lookup_data(map_name: str, word: int, to: int) -> bytes:
    """Load the data of a map's element; the rule ends where the map has no such key."""
    return _expression("lookup", text(1, map_name), _register(2, word), _register(3, to))


def lookup_verdict(map_name: str, word: int) -> bytes:
    """Do what a verdict map says about the key; the rule ends where it says nothing."""
    return _expression("lookup", text(1, map_name), _register(2, word), u32(3, _VERDICT_REGISTER))


def dynamic_set(
    set_name: str, change: Change, key: int, *, data: int | None = None, timeout_ms: int = 0
) -> bytes:
    """Change a set from a packet. The rule ends here when the set is full.

    `data` is where the data lies, for maps; a DELETE wants one too, and does not look at it.
    """
    parts = [text(1, set_name), u32(3, change), _register(4, key)]
    if data is not None:
        parts.append(_register(5, data))
    if timeout_ms:
        parts.append(u64(6, timeout_ms))
    return _expression("dynset", *parts)


def random_number(word: int, modulus: int, offset: int = 0) -> bytes:
    """A number from offset to offset + modulus - 1, 32 bits in host order."""
    return _expression("numgen", _register(1, word), u32(2, modulus), u32(3, 1), u32(4, offset))


def address_type(word: int, *, source: bool = False) -> bytes:
    """What kind of address the packet's destination (or source) is to this host: see LOCAL_ADDRESS."""
    flags = _FIB_SOURCE if source else _FIB_DESTINATION
    return _expression("fib", _register(1, word), u32(2, _FIB_TYPE), u32(3, flags))


def destination_nat(family: int, address: int, port: int | None = None) -> bytes:
    """Redirect the connection; `family` is 2 or 10, the others are register words."""
    parts = [u32(1, 1), u32(2, family), _register(3, address)]
    if port is not None:
        parts.append(_register(5, port))
    return _expression("nat", *parts)


def masquerade(*, random_port: bool = True) -> bytes:
    """Let the connection leave with the outgoing interface's address (postrouting, type nat)."""
    return _expression("masq", *([u32(1, 0x10)] if random_port else []))  # NF_NAT_RANGE_PROTO_RANDOM_FULLY


def reject(reason: Unreachable = Unreachable.PORT) -> bytes:
    """Answer with an ICMP error, IPv4 or IPv6 as the packet is (tables of family inet; hooks of input,
    forward, output)."""
    return _expression("reject", u32(1, 2), attribute(2, bytes([reason])))


def reject_icmp(code: int) -> bytes:
    """The same with a family's own code, for tables of ip and ip6 (IPv4: 3 is port, 13 prohibited; IPv6: 4
    is port, 1 prohibited)."""
    return _expression("reject", u32(1, 0), attribute(2, bytes([code])))


def reject_tcp_reset() -> bytes:
    return _expression("reject", u32(1, 1))


def counter() -> bytes:
    """Count packets and bytes that came so far in the rule."""
    return _expression("counter")
