"""One query's bytes → one response's bytes, as long as the cluster itself knows the answer.

The wire format is dnspython's. What it makes of a query is kept by the query's bytes (without the id, which
is its sender's), until a name changes: answering again costs a look into a dictionary. An answer with
several addresses is kept in several orders (dnspython shuffles), so that clients that take the first are
spread over all. Sources: RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 8482 (ANY).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.NS
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rdtypes.IN.SRV
import dns.reversename
import dns.rrset
from dns.rdata import Rdata

from proxy.dns.records import Answer, Labels, Names, Record

TTL = 5
PAYLOAD = 1232  # what passes everywhere unfragmented (DNS flag day 2020)
KEPT = 10_000
RECORDS = 32  # of a query: it has one question, and one or two records beside it
LONGEST_KEPT = 512  # bytes of a query
ORDERS = 16
DEPTH = 8  # ExternalNames that stand for ExternalNames
IN = dns.rdataclass.IN
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class Outside:
    """A question for another server: `name` is asked there, what is found goes below `response`'s answer."""

    response: dns.message.Message
    name: dns.name.Name
    limit: int


@dataclass(slots=True)
class _Kept:
    """A response without its id, and in how many orders it may come. `labels`: the one name it depends on."""

    labels: Labels | None
    version: int
    limit: int
    orders: list[bytes]
    more: dns.message.Message | None
    turn: int = 0

    def next(self) -> bytes:
        if self.more is not None:
            self.orders.append(_wire(self.more, self.limit)[2:])
            if len(self.orders) >= ORDERS:
                self.more = None
            return self.orders[-1]
        self.turn = (self.turn + 1) % len(self.orders)
        return self.orders[self.turn]


class Responder:
    """Answers from the index. Not for several threads at once."""

    def __init__(
        self,
        names: Names,
        domain: str,
        addresses: Sequence[str],
        networks: Sequence[Network] = (),
        kept: int = KEPT,
    ) -> None:
        self._most = kept
        self._names = names
        self._domain = dns.name.from_text(domain)
        self._addresses = tuple(Record("AAAA" if ":" in text else "A", text) for text in addresses)
        self._networks = tuple(networks)
        self._kept: dict[tuple[bytes, bool], _Kept] = {}

    def respond(self, query: bytes, *, udp: bool) -> bytes | Outside | None:
        """The response; what must be asked elsewhere; None where none is due."""
        kept = self._kept.get((query[2:], udp))
        if kept is not None and kept.version == self._names.version(kept.labels):
            return query[:2] + kept.next()
        if len(query) < 12 or query[2] & 0x80:
            return None
        if sum(struct.unpack_from(">4H", query, 4)) > RECORDS:
            return _refusal(query, dns.rcode.FORMERR)  # to read 64 kB of records takes 0.1 s
        try:
            message = dns.message.from_wire(query)
        except dns.exception.DNSException:
            return _refusal(query, dns.rcode.FORMERR)
        response = dns.message.make_response(message, recursion_available=True, our_payload=PAYLOAD)
        limit = min(max(message.payload, 512), PAYLOAD) if udp else 65535
        labels = self._dependence(message)
        version = self._names.version(labels)
        outside = self._fill(message, response)
        if outside is not None:
            return Outside(response, outside, limit)
        first = _wire(response, limit)
        if len(query) > LONGEST_KEPT:
            return first  # padded ones, each of another kind, would fill the memory
        if len(self._kept) >= self._most:
            self._kept.clear()
        more = response if _several(response) else None
        self._kept[query[2:], udp] = _Kept(labels, version, limit, [first[2:]], more)
        return first

    def _dependence(self, message: dns.message.Message) -> Labels | None:
        """The name whose changes alone can change the answer; None where more may (an ExternalName, PTR)."""
        if len(message.question) != 1 or not message.question[0].name.is_subdomain(self._domain):
            return None
        labels = self._labels(message.question[0].name)
        return None if self._answer(labels).alias else labels

    def _fill(self, message: dns.message.Message, response: dns.message.Message) -> dns.name.Name | None:
        """Put the answer into the response; the name to ask for elsewhere if it is not ours."""
        if message.opcode() != dns.opcode.QUERY:
            response.set_rcode(dns.rcode.NOTIMP)
            return None
        if message.edns > 0:
            response.set_rcode(dns.rcode.BADVERS)
            return None
        if len(message.question) != 1:
            response.set_rcode(dns.rcode.FORMERR)
            return None
        question = message.question[0]
        if question.rdclass != IN:
            response.set_rcode(dns.rcode.REFUSED)
            return None
        if question.name.is_subdomain(self._domain):
            return self._inside(question.name, question.rdtype, response)
        if question.name.is_subdomain(dns.reversename.ipv4_reverse_domain) or question.name.is_subdomain(
            dns.reversename.ipv6_reverse_domain
        ):
            return self._reverse(question.name, question.rdtype, response)
        return question.name

    def _inside(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, response: dns.message.Message
    ) -> dns.name.Name | None:
        for _ in range(DEPTH):
            labels = self._labels(name)
            answer = self._answer(labels)
            if not answer.alias:
                self._add(name, kind, answer, response)
                return None
            response.flags |= dns.flags.AA
            target = dns.name.from_text(answer.alias)
            _add(response.answer, name, _rdata(dns.rdtypes.ANY.CNAME.CNAME, target))
            if kind == dns.rdatatype.CNAME:
                return None
            name = target
            if not name.is_subdomain(self._domain):
                return name
        response.set_rcode(dns.rcode.SERVFAIL)
        return None

    def _labels(self, name: dns.name.Name) -> Labels:
        below = name.relativize(self._domain).labels
        return tuple(label.decode("ascii", "replace").lower() for label in below if label)

    def _answer(self, labels: Labels) -> Answer:
        if labels == ("ns", "dns"):
            return Answer(True, self._addresses)
        return Answer(True) if labels == ("dns",) else self._names.lookup(labels)

    def _add(
        self,
        name: dns.name.Name,
        kind: dns.rdatatype.RdataType,
        answer: Answer,
        response: dns.message.Message,
    ) -> None:
        response.flags |= dns.flags.AA
        for record in answer.records:
            if kind in (dns.rdatatype.from_text(record.type), dns.rdatatype.ANY):
                _add(response.answer, name, self._record(record))
        if name == self._domain:
            self._add_apex(name, kind, response)
        if not answer.exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
        if not response.answer or response.answer[-1].name != name:
            _add(response.authority, self._domain, self._soa())
        elif kind == dns.rdatatype.SRV:
            for labels, record in answer.extra:
                _add(response.additional, self._absolute(labels), self._record(record))

    def _add_apex(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, response: dns.message.Message
    ) -> None:
        if kind == dns.rdatatype.SOA:
            _add(response.answer, name, self._soa())
        if kind == dns.rdatatype.NS:
            target = self._absolute(("ns", "dns"))
            _add(response.answer, name, _rdata(dns.rdtypes.ANY.NS.NS, target))
            for record in self._addresses:
                _add(response.additional, target, self._record(record))

    def _reverse(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, response: dns.message.Message
    ) -> dns.name.Name | None:
        """PTR of a Service's or endpoint's address. Nobody else is asked about our own ranges."""
        try:
            address = ipaddress.ip_address(dns.reversename.to_address(name))
        except (dns.exception.DNSException, ValueError):
            return name
        found = self._names.names_of(str(address))
        if not found and not any(address in network for network in self._networks):
            return name
        response.flags |= dns.flags.AA
        if not found:
            response.set_rcode(dns.rcode.NXDOMAIN)
        for labels in found if kind in (dns.rdatatype.PTR, dns.rdatatype.ANY) else ():
            rdata = _rdata(dns.rdtypes.ANY.PTR.PTR, self._absolute(labels))
            _add(response.answer, name, rdata)
        if not response.answer:
            _add(response.authority, self._domain, self._soa())
        return None

    def _absolute(self, labels: Labels) -> dns.name.Name:
        return dns.name.Name([label.encode() for label in labels]).concatenate(self._domain)

    def _soa(self) -> Rdata:
        names = (self._absolute(("ns", "dns")), self._absolute(("hostmaster",)))
        serial = self._names.generation % 2**32
        return _rdata(dns.rdtypes.ANY.SOA.SOA, *names, serial, 7200, 1800, 86400, TTL)

    def _record(self, record: Record) -> Rdata:
        if record.type == "A":
            return _rdata(dns.rdtypes.IN.A.A, record.value)
        if record.type == "AAAA":
            return _rdata(dns.rdtypes.IN.AAAA.AAAA, record.value)
        if record.type == "SRV":
            port, labels = record.value
            return _rdata(dns.rdtypes.IN.SRV.SRV, 0, 100, port, self._absolute(labels))
        return _rdata(dns.rdtypes.ANY.TXT.TXT, [record.value.encode()])


def finish(outside: Outside, found: dns.message.Message | None) -> bytes:
    """The response to an outside question from what the other server said; SERVFAIL when it said nothing."""
    response = outside.response
    if found is None:
        response.set_rcode(dns.rcode.SERVFAIL)
        return _wire(response, outside.limit)
    response.set_rcode(found.rcode())
    if not response.answer:
        response.flags &= ~dns.flags.AA
        response.flags |= found.flags & dns.flags.AD
    response.answer += found.answer
    response.authority += found.authority
    response.additional += found.additional
    return _wire(response, outside.limit)


def _rdata(kind: Any, *fields: Any) -> Rdata:
    """One record of a dnspython class, which is named as its type is."""
    made = kind(IN, dns.rdatatype.from_text(kind.__name__), *fields)
    assert isinstance(made, Rdata)
    return made


def _add(section: list[dns.rrset.RRset], name: dns.name.Name, rdata: Rdata) -> None:
    for rrset in section:
        if rrset.name == name and rrset.rdtype == rdata.rdtype:
            rrset.add(rdata, TTL)
            return
    section.append(dns.rrset.from_rdata(name, TTL, rdata))


def _several(response: dns.message.Message) -> bool:
    """Whether the order of the answer's last set matters to those who take the first address."""
    last = response.answer[-1] if response.answer else ()
    return len(last) > 1


def _wire(response: dns.message.Message, limit: int) -> bytes:
    """The bytes. Where they are more than `limit`, the last set of the answer keeps what fits, and the
    response says that it was cut (RFC 2181, 9): some clients never ask by TCP, and use what they have.
    """
    try:
        return response.to_wire(max_size=limit)
    except dns.exception.TooBig:
        response.additional.clear()
    while response.answer:
        last = response.answer[-1]
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            response.flags |= dns.flags.TC
        rdatas = list(last)
        kept = rdatas[: len(rdatas) - max(1, len(rdatas) // 10)]
        response.answer.pop()
        if kept:
            response.answer.append(dns.rrset.from_rdata_list(last.name, last.ttl, kept))
    return response.to_wire(max_size=limit, prefer_truncation=True)


def _refusal(query: bytes, code: int) -> bytes:
    """A response to what could not be read: its id and opcode, nothing else."""
    return query[:2] + bytes(((query[2] & 0x79) | 0x80, 0x80 | code)) + bytes(8)
