"""From a query's bytes to a response's: codes, sections, sizes; dnspython writes and reads them."""

from __future__ import annotations

import ipaddress
import random

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from dns_cluster import entry, service, slice_of, small

from proxy.dns.answers import Outside, Responder, finish
from proxy.dns.records import Names

ADDRESS = "10.96.0.10"
RANGES = [ipaddress.ip_network("10.244.0.0/16"), ipaddress.ip_network("10.96.0.0/12")]


def responder(names: Names | None = None) -> Responder:
    return Responder(names or small(), "cluster.local", [ADDRESS], RANGES)


def ask(
    who: Responder, name: str, kind: str = "A", *, udp: bool = True, payload: int = 0
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=0 if payload else -1, payload=payload or 512)
    answer = who.respond(query.to_wire(), udp=udp)
    assert isinstance(answer, bytes)
    read = dns.message.from_wire(answer)
    assert query.is_response(read)
    return read


def lines(message: dns.message.Message) -> list[str]:
    return sorted(line for rrset in message.answer for line in rrset.to_text().splitlines())


def test_an_address_with_authority() -> None:
    found = ask(responder(), "web.default.svc.cluster.local")
    assert lines(found) == ["web.default.svc.cluster.local. 5 IN A 10.96.0.20"]
    assert found.flags & dns.flags.AA and found.flags & dns.flags.RA and found.rcode() == dns.rcode.NOERROR


def test_padded_questions_do_not_fill_the_memory() -> None:
    who = responder()
    for number in range(3):
        padding = [dns.edns.GenericOption(12, number.to_bytes(600, "big"))]
        query = dns.message.make_query("web.default.svc.cluster.local", "A", use_edns=0, options=padding)
        assert who.respond(query.to_wire(), udp=True)
    assert not who._kept
    assert lines(ask(who, "web.default.svc.cluster.local")) and len(who._kept) == 1


def test_thousands_of_records_in_a_query_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each was made an object: with eleven such queries a second a pod took the names of all others."""
    query = dns.message.make_query("web.default.svc.cluster.local", "A").to_wire()
    many = query[:10] + (4000).to_bytes(2, "big") + query[12:] + 4000 * (b"\xc0\x0c\0\x01" + bytes(6))
    monkeypatch.setattr(dns.message, "from_wire", None)
    answer = responder().respond(many, udp=True)
    assert isinstance(answer, bytes) and answer[3] & 0x0F == dns.rcode.FORMERR


def test_letters_may_be_of_any_size_and_come_back_as_they_were() -> None:
    found = ask(responder(), "WeB.Default.SVC.cluster.LOCAL")
    assert lines(found) == ["WeB.Default.SVC.cluster.LOCAL. 5 IN A 10.96.0.20"]


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("none.default.svc.cluster.local", "A", dns.rcode.NXDOMAIN),
        ("db.default.svc.cluster.local", "MX", dns.rcode.NOERROR),
        ("far.default.svc.cluster.local.default.svc.cluster.local", "A", dns.rcode.NXDOMAIN),
        ("default.svc.cluster.local", "A", dns.rcode.NOERROR),
        ("cluster.local", "A", dns.rcode.NOERROR),
        ("99.0.244.10.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
    ],
)
def test_nothing_found_says_for_how_long(name: str, kind: str, code: int) -> None:
    found = ask(responder(), name, kind)
    assert found.rcode() == code and not found.answer
    soa = found.authority[0]
    assert (soa.rdtype, soa.name.to_text(), soa[0].minimum) == (dns.rdatatype.SOA, "cluster.local.", 5)


def test_srv_brings_its_targets_addresses() -> None:
    found = ask(responder(), "_http._tcp.db.default.svc.cluster.local", "SRV", payload=1232)
    assert lines(found)[1].endswith("IN SRV 0 100 8080 db-0.db.default.svc.cluster.local.")
    extra = sorted(rrset.to_text() for rrset in found.additional)
    assert extra[1] == "db-0.db.default.svc.cluster.local. 5 IN A 10.244.0.5"


def test_names_of_addresses() -> None:
    found = ask(responder(), "5.0.244.10.in-addr.arpa", "PTR")
    assert lines(found) == ["5.0.244.10.in-addr.arpa. 5 IN PTR db-0.db.default.svc.cluster.local."]
    reverse = "4.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa"
    assert lines(ask(responder(), reverse, "PTR")) == [f"{reverse}. 5 IN PTR web.default.svc.cluster.local."]


def test_the_top_of_the_domain() -> None:
    found = ask(responder(), "cluster.local", "NS")
    assert lines(found) == ["cluster.local. 5 IN NS ns.dns.cluster.local."]
    assert found.additional[0].to_text() == f"ns.dns.cluster.local. 5 IN A {ADDRESS}"
    assert lines(ask(responder(), "ns.dns.cluster.local")) == [f"ns.dns.cluster.local. 5 IN A {ADDRESS}"]
    assert ask(responder(), "cluster.local", "SOA").answer[0][0].minimum == 5


def test_an_external_name_of_our_own_is_followed() -> None:
    found = ask(responder(), "near.default.svc.cluster.local")
    assert lines(found) == [
        "near.default.svc.cluster.local. 5 IN CNAME web.default.svc.cluster.local.",
        "web.default.svc.cluster.local. 5 IN A 10.96.0.20",
    ]
    assert len(ask(responder(), "near.default.svc.cluster.local", "CNAME").answer) == 1


def test_external_names_that_go_round_end() -> None:
    names = small()
    for name, other in (("a", "b"), ("b", "a")):
        target = f"{other}.default.svc.cluster.local"
        names.service_event("ADDED", service(name, type="ExternalName", externalName=target))
    assert ask(responder(names), "a.default.svc.cluster.local").rcode() == dns.rcode.SERVFAIL


def test_an_external_name_elsewhere_is_asked_there_and_put_together() -> None:
    query = dns.message.make_query("far.default.svc.cluster.local", "A")
    outside = responder().respond(query.to_wire(), udp=True)
    assert isinstance(outside, Outside) and outside.name.to_text() == "example.org."
    upstream = dns.message.make_response(dns.message.make_query("example.org", "A"))
    upstream.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", "192.0.2.1"))
    read = dns.message.from_wire(finish(outside, upstream))
    assert query.is_response(read)
    assert lines(read) == [
        "example.org. 60 IN A 192.0.2.1",
        "far.default.svc.cluster.local. 5 IN CNAME example.org.",
    ]


@pytest.mark.parametrize(
    "name", ["example.org", "com", ".", "local", "1.2.0.192.in-addr.arpa", "in-addr.arpa"]
)
def test_other_names_are_not_ours(name: str) -> None:
    query = dns.message.make_query(name, "PTR")
    outside = responder().respond(query.to_wire(), udp=True)
    assert isinstance(outside, Outside) and outside.name == query.question[0].name
    failed = dns.message.from_wire(finish(outside, None))
    assert failed.rcode() == dns.rcode.SERVFAIL and not failed.flags & dns.flags.AA


def test_queries_that_cannot_be_answered() -> None:
    who = responder()
    query = dns.message.make_query("web.default.svc.cluster.local", "A")
    query.set_opcode(dns.opcode.NOTIFY)
    assert read(who, query.to_wire()).rcode() == dns.rcode.NOTIMP
    other_class = dns.message.make_query("version.bind", "TXT", rdclass="CH")
    assert read(who, other_class.to_wire()).rcode() == dns.rcode.REFUSED
    version = dns.message.make_query("web.default.svc.cluster.local", "A", use_edns=1)
    assert read(who, version.to_wire()).rcode() == dns.rcode.BADVERS
    none = dns.message.make_query("web.default.svc.cluster.local", "A")
    none.question.clear()
    assert read(who, none.to_wire()).rcode() == dns.rcode.FORMERR


def read(who: Responder, query: bytes) -> dns.message.Message:
    answer = who.respond(query, udp=True)
    assert isinstance(answer, bytes) and answer[:2] == query[:2]
    return dns.message.from_wire(answer)


def test_broken_queries_get_an_error_and_responses_none() -> None:
    who, chance = responder(), random.Random(7)
    whole = dns.message.make_query("web.default.svc.cluster.local", "A", use_edns=0).to_wire()
    assert read(who, whole[:20]).rcode() == dns.rcode.FORMERR
    assert who.respond(whole[:11], udp=True) is None and who.respond(b"", udp=True) is None
    response = bytes((*whole[:2], whole[2] | 0x80, *whole[3:]))
    assert who.respond(response, udp=True) is None, "an answer to an answer would go back and forth for ever"
    for _ in range(3000):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        query = bytes(broken[: chance.randint(0, len(broken))])
        answer = who.respond(query, udp=True)
        if isinstance(answer, Outside):
            answer = finish(answer, None)
        if answer is not None:
            assert answer[:2] == query[:2] and answer[2] & 0x80


def test_what_does_not_fit_is_cut_short_and_whole_by_tcp() -> None:
    names = small()
    names.slice_event("MODIFIED", slice_of("db", [entry(f"10.244.1.{i}") for i in range(1, 201)]))
    who = responder(names)
    short = ask(who, "db.default.svc.cluster.local")
    assert short.flags & dns.flags.TC and len(short.to_wire()) <= 512
    wider = ask(who, "db.default.svc.cluster.local", payload=1232)
    assert wider.flags & dns.flags.TC and len(wider.answer[0]) > len(short.answer[0])
    whole = ask(who, "db.default.svc.cluster.local", udp=False)
    assert not whole.flags & dns.flags.TC and len(whole.answer[0]) == 200


def test_clients_that_take_the_first_address_are_spread() -> None:
    who = responder()
    firsts = {ask(who, "db.default.svc.cluster.local").answer[0][0].address for _ in range(60)}
    assert firsts == {"10.244.0.5", "10.244.0.6"}


def test_a_change_shows_in_the_next_answer() -> None:
    names = small()
    who = responder(names)
    name = "web.default.svc.cluster.local"
    assert "10.96.0.20" in lines(ask(who, name))[0] and "10.96.0.20" in lines(ask(who, name))[0]
    names.service_event("MODIFIED", service("web", clusterIP="10.96.0.21"))
    assert "10.96.0.21" in lines(ask(who, name))[0]


def test_a_change_costs_other_names_nothing() -> None:
    names = small()
    who = responder(names)
    query = dns.message.make_query("web.default.svc.cluster.local", "A").to_wire()
    who.respond(query, udp=True)
    (kept,) = who._kept.values()
    names.service_event("MODIFIED", service("far", type="ExternalName", externalName="other.example"))
    names.slice_event("MODIFIED", slice_of("db", [entry("10.244.0.5", "db-0")]))
    who.respond(query, udp=True)
    assert next(iter(who._kept.values())) is kept
    names.service_event("DELETED", service("web"))
    assert ask(who, "web.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
    names.service_event("ADDED", service("web", clusterIP="10.96.0.20"))
    assert ask(who, "web.default.svc.cluster.local").rcode() == dns.rcode.NOERROR
    names.namespace_event("DELETED", {"metadata": {"name": "default"}})
    assert ask(who, "web.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN


def test_an_answer_by_way_of_another_name_follows_that_one() -> None:
    names = small()
    who = responder(names)
    assert len(lines(ask(who, "near.default.svc.cluster.local"))) == 2
    names.service_event("MODIFIED", service("web", clusterIP="10.96.0.99"))
    assert "10.96.0.99" in lines(ask(who, "near.default.svc.cluster.local"))[1]


def test_what_is_kept_is_bounded() -> None:
    who = Responder(small(), "cluster.local", [ADDRESS], RANGES, kept=20)
    for number in range(50):
        query = dns.message.make_query(f"x{number}.default.svc.cluster.local", "A").to_wire()
        who.respond(query, udp=True)
    assert len(who._kept) <= 20
