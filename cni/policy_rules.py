"""PURE. Policy routing rules as netlink messages: packets of one source look into a table of their own first.

The kernel asks its rules in the order of their preference; a table that has no route for a packet hands it on
to the next rule (fib_rules.h, struct fib_rule_hdr). Rules are ours by the protocol number that they carry.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from cni.rtnetlink import F_CREATE, F_EXCL, Message, attribute, attributes, u32

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
FRA_SRC, FRA_PRIORITY, FRA_TABLE, FRA_PROTOCOL = 2, 6, 15, 21
FR_ACT_TO_TBL = 1


@dataclass(frozen=True, slots=True)
class Rule:
    """`from SOURCE lookup TABLE`; `source` is a prefix, "" for a rule that is not only about the source."""

    source: str
    table: int
    priority: int
    protocol: int

    @property
    def family(self) -> int:
        return socket.AF_INET6 if ":" in self.source else socket.AF_INET


def ask_rules(family: int) -> bytes:
    return _head(family, 0, 0)


def new_rule(rule: Rule) -> Message:
    return Message(f"add rule from {rule.source}", RTM_NEWRULE, F_CREATE | F_EXCL, _body(rule))


def del_rule(rule: Rule) -> Message:
    return Message(f"remove rule from {rule.source}", RTM_DELRULE, 0, _body(rule))


def read_rule(payload: bytes) -> Rule:
    _family, _dst, length, _tos, table = struct.unpack_from("=5B", payload)
    found = attributes(payload, 12)
    source = found.get(FRA_SRC)
    protocol = found.get(FRA_PROTOCOL)
    return Rule(
        source=f"{ipaddress.ip_address(source)}/{length}" if source else "",
        table=_number(found.get(FRA_TABLE)) or table,
        priority=_number(found.get(FRA_PRIORITY)),
        protocol=protocol[0] if protocol else 0,
    )


def _head(family: int, length: int, table: int) -> bytes:
    return struct.pack("=8BI", family, 0, length, 0, table, 0, 0, FR_ACT_TO_TBL, 0)


def _body(rule: Rule) -> bytes:
    source = ipaddress.ip_network(rule.source)
    return (
        _head(rule.family, source.prefixlen, rule.table)
        + attribute(FRA_SRC, source.network_address.packed)
        + u32(FRA_PRIORITY, rule.priority)
        + u32(FRA_TABLE, rule.table)
        + attribute(FRA_PROTOCOL, bytes([rule.protocol]))
    )


def _number(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw)[0]) if raw else 0
