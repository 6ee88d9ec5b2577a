"""PURE. What has to be enforced → our nftables table, and the messages from one state of it to the next.

    forward ─ answers and related errors pass
            ─ pods of this node that have not been judged yet: dropped
            ─ map egress-4:  sender   → chain of the pod's egress  ─ allowed: return, at the end: drop
            ─ map ingress-4: receiver → chain of the pod's ingress ─ the same

The table exists only while the cluster has a policy. Every packet in a connection's own direction is
judged, so a policy that comes to forbid a connection cuts it; answers follow unasked. Packets to the node
itself (input) pass the egress part. Pods on one bridge are judged as well, since br_netfilter shows their
packets here. Peers are sets, which rules that mean the same peers share: a pod that comes or goes changes
elements, a policy chains.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from proxy import nfexpressions as nfx
from proxy.nfexpressions import Base, Code, Ct, Meta
from proxy.nfobjects import (
    Chain,
    Element,
    Family,
    Flag,
    Hook,
    Message,
    Set,
    Table,
    Type,
    Verdict,
    add_chain,
    add_elements,
    add_rule,
    add_set,
    add_table,
    delete_chain,
    delete_elements,
    delete_set,
    delete_table,
    flush_chain,
    interval_elements,
)
from proxy.policy.memory import Memory
from proxy.policy.rules import Group, Isolation, Match, Wanted
from proxy.policy.world import EGRESS, INGRESS

TABLE = Table(Family.INET, "kubelet-py-policy")
BEFORE_OTHERS = -10
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_FAMILY = {4: 2, 6: 10}
_TYPE = {4: Type.IPV4, 6: Type.IPV6}
_SOURCE, _DESTINATION = {4: (12, 4), 6: (8, 16)}, {4: (16, 4), 6: (24, 16)}
_REPLY = b"\1"
_ICMPV6 = 58
_DISCOVERY = (bytes([133]), bytes([137]))  # router and neighbour discovery (RFC 4861)

Expressions = tuple[bytes, ...]
Rules = tuple[tuple[Expressions, str], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The table's content by name; rules with their comment."""

    sets: Mapping[str, tuple[Set, frozenset[Element]]] = field(default_factory=dict)
    chains: Mapping[str, tuple[Chain, tuple[tuple[Expressions, str], ...]]] = field(default_factory=dict)


def layout(wanted: Wanted, memory: Memory | None = None) -> Layout:
    """The whole table for what is wanted; with the `memory` of the last pass the same, sooner."""
    memory = memory or Memory()
    sets: dict[str, tuple[Set, frozenset[Element]]] = {}
    for version in (4, 6):
        known = [a for a in wanted.known if _version(a) == version]
        ranges = [ipaddress.ip_network(text, strict=False) for text in wanted.ranges]
        spans = [(n[0].packed, n[-1].packed) for n in ranges if n.version == version]
        _put(sets, Set(f"known-{version}", (_TYPE[version],)), _addresses(known))
        _put(sets, Set(f"range-{version}", (_TYPE[version],), flags=Flag.INTERVAL), _spans(spans))
        for kind in (INGRESS, EGRESS):
            jumps = [
                Element(ipaddress.ip_address(address).packed, verdict=Verdict(Code.JUMP, chain_name(one)))
                for one in wanted.isolations
                if one.kind == kind
                for address in one.addresses
                if _version(address) == version
            ]
            _put(sets, Set(f"{kind.lower()}-{version}", (_TYPE[version],), verdicts=True), jumps)
    names: dict[str, dict[int, list[str]]] = {}
    for group in wanted.groups:
        names[group.name] = _put_group(sets, group, memory)
    chains = {
        "forward": (Chain("forward", "filter", Hook.FORWARD, BEFORE_OTHERS), tuple(_forward())),
        "input": (Chain("input", "filter", Hook.INPUT, BEFORE_OTHERS), tuple(_input())),
    }
    for one in wanted.isolations:
        name = chain_name(one)
        used = {allow.group: names[allow.group] for allow in one.allows if allow.group}
        chains[name] = (Chain(name), memory.part(name, (one, used), partial(_rules_of, one, used)))
    return Layout(sets, chains)


def chain_name(one: Isolation) -> str:
    return pod_chains(one.uid)[one.kind]


@lru_cache(maxsize=4096)
def pod_chains(uid: str) -> dict[str, str]:
    """Names of the chains that judge a pod, where a policy selects it, by direction."""
    name = hashlib.sha256(uid.encode()).hexdigest()[:16]
    return {kind: f"{kind.lower()}-{name}" for kind in (INGRESS, EGRESS)}


def _put(sets: dict[str, tuple[Set, frozenset[Element]]], made: Set, elements: Iterable[Element]) -> None:
    sets[made.name] = (made, frozenset(elements))


def _put_group(
    sets: dict[str, tuple[Set, frozenset[Element]]], group: Group, memory: Memory
) -> dict[int, list[str]]:
    """The group's sets by IP version. Other blocks get another name: intervals are never edited."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for version in (4, 6):
        made = Set(f"{group.name}-{version}", (_TYPE[version],))
        elements = memory.part(
            made.name,
            group.addresses,
            partial(_elements_of, group, version),
        )
        sets[made.name] = (made, elements)
        found[version].append(made.name)
    for version, ranges in group.ranges:
        content = hashlib.sha256(b"".join(low + high for low, high in ranges)).hexdigest()[:12]
        name = f"blocks-{content}-{version}"
        _put(sets, Set(name, (_TYPE[version],), flags=Flag.INTERVAL), _spans(ranges))
        found[version].append(name)
    return found


def _elements_of(group: Group, version: int) -> frozenset[Element]:
    return frozenset(_addresses(a for a in group.addresses if _version(a) == version))


def _addresses(texts: Iterable[str]) -> list[Element]:
    return [_element(text) for text in texts]


@lru_cache(maxsize=65536)
def _element(address: str) -> Element:
    return Element(ipaddress.ip_address(address).packed)


def _spans(ranges: Iterable[tuple[bytes, bytes]]) -> list[Element]:
    return [element for low, high in ranges for element in interval_elements(low, high)]


def _version(address: str) -> int:
    return 6 if ":" in address else 4


# --- rules -------------------------------------------------------------------------------------------


def _passing() -> list[tuple[Expressions, str]]:
    related = struct.pack("=I", nfx.RELATED)
    discovery = [*_family(6), nfx.meta(0, Meta.L4_PROTOCOL), nfx.compare(0, bytes([_ICMPV6]))]
    discovery += [nfx.payload(0, Base.TRANSPORT, 0, 1), nfx.within(0, *_DISCOVERY)]
    return [
        ((*discovery, nfx.verdict(Code.ACCEPT)), "neighbours on one bridge find each other"),
        (
            (nfx.ct(0, Ct.DIRECTION), nfx.compare(0, _REPLY), nfx.verdict(Code.ACCEPT)),
            "answers follow what was allowed",
        ),
        (
            (nfx.ct(0, Ct.STATE), nfx.mask(0, related), nfx.compare(0, related), nfx.verdict(Code.ACCEPT)),
            "errors about what was allowed",
        ),
    ]


def _family(version: int) -> list[bytes]:
    return [nfx.meta(0, Meta.NF_FAMILY), nfx.compare(0, bytes([_FAMILY[version]]))]


def _unknown(version: int, place: tuple[int, int]) -> tuple[Expressions, str]:
    address = nfx.payload(0, Base.NETWORK, *place)
    return (
        (
            *_family(version),
            address,
            nfx.lookup(f"range-{version}", 0),
            nfx.lookup(f"known-{version}", 0, inverted=True),
            nfx.counter(),
            nfx.verdict(Code.DROP),
        ),
        "a pod that has not been judged yet",
    )


def _ask(kind: str, version: int) -> tuple[Expressions, str]:
    place = (_SOURCE if kind == EGRESS else _DESTINATION)[version]
    asked = nfx.lookup_verdict(f"{kind.lower()}-{version}", 0)
    return ((*_family(version), nfx.payload(0, Base.NETWORK, *place), asked), "")


def _forward() -> Iterable[tuple[Expressions, str]]:
    yield from _passing()
    for version in (4, 6):
        yield _unknown(version, _SOURCE[version])
        yield _unknown(version, _DESTINATION[version])
    for kind in (EGRESS, INGRESS):
        for version in (4, 6):
            yield _ask(kind, version)


def _input() -> Iterable[tuple[Expressions, str]]:
    yield from _passing()
    for version in (4, 6):
        yield _unknown(version, _SOURCE[version])
        yield _ask(EGRESS, version)


def _rules_of(one: Isolation, names: Mapping[str, Mapping[int, list[str]]]) -> Rules:
    return tuple(_pod_rules(one, names))


def _pod_rules(
    one: Isolation, names: Mapping[str, Mapping[int, list[str]]]
) -> Iterable[tuple[Expressions, str]]:
    """Return for what is allowed, at the end drop. The other side's address is what rules are about."""
    other = _SOURCE if one.kind == INGRESS else _DESTINATION
    for address in one.addresses:
        version = _version(address)
        own = nfx.compare(0, ipaddress.ip_address(address).packed)
        itself = (nfx.payload(0, Base.NETWORK, *other[version]), own, nfx.verdict(Code.RETURN))
        yield (*_family(version), *itself), "itself"
    for allow in one.allows:
        allowed = (*_match(allow.match), nfx.verdict(Code.RETURN))
        if not allow.group:
            yield allowed, ""
            continue
        for version in sorted({_version(address) for address in one.addresses}):
            sender = nfx.payload(0, Base.NETWORK, *other[version])
            for name in names[allow.group][version]:
                yield (*_family(version), sender, nfx.lookup(name, 0), *allowed), ""
    yield (nfx.counter(), nfx.verdict(Code.DROP)), f"{one.kind.lower()} of {one.pod}"[:120]


def _match(match: Match) -> list[bytes]:
    if not match.protocol:
        return []
    found = [nfx.meta(0, Meta.L4_PROTOCOL), nfx.compare(0, bytes([_PROTOCOLS[match.protocol]]))]
    if match.low:
        low, high = match.low.to_bytes(2, "big"), match.high.to_bytes(2, "big")
        port = nfx.payload(0, Base.TRANSPORT, 2, 2)
        found += [port, nfx.compare(0, low) if low == high else nfx.within(0, low, high)]
    return found


# --- from one state to the next ----------------------------------------------------------------------


def replace(new: Layout) -> list[Message]:
    """The table anew, whatever it was: one transaction, so no packet passes without it."""
    return [add_table(TABLE), delete_table(TABLE), add_table(TABLE), *change(Layout(), new)]


def _place(element: Element) -> tuple[bytes, bool]:
    return element.key, element.end


def remove() -> list[Message]:
    return [add_table(TABLE), delete_table(TABLE)]


def change(old: Layout, new: Layout) -> list[Message]:
    """Only what differs. What is used comes before its users, and goes after them."""
    messages: list[Message] = []
    for number, name in enumerate(name for name in new.sets if name not in old.sets):
        messages.append(add_set(TABLE, new.sets[name][0], number + 1))
    messages += [add_chain(TABLE, chain) for name, (chain, _) in new.chains.items() if name not in old.chains]
    for name, (_chain, rules) in new.chains.items():
        if name in old.chains and (old.chains[name][1] is rules or old.chains[name][1] == rules):
            continue
        if name in old.chains:
            messages.append(flush_chain(TABLE, name))
        messages += [add_rule(TABLE, name, *expressions, comment=text) for expressions, text in rules]
    for name, (_set, elements) in new.sets.items():
        before = old.sets[name][1] if name in old.sets else frozenset()
        if before is elements:
            continue
        gone = [Element(e.key, end=e.end) for e in before - elements]
        messages += delete_elements(TABLE, name, gone) if gone else []
        fresh = sorted(elements - before, key=_place)
        messages += add_elements(TABLE, name, fresh) if fresh else []
    left = [name for name in old.chains if name not in new.chains]
    messages += [flush_chain(TABLE, name) for name in left] + [delete_chain(TABLE, name) for name in left]
    return messages + [delete_set(TABLE, name) for name in old.sets if name not in new.sets]
