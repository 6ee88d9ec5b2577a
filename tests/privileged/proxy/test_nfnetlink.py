"""nf_tables messages against the real kernel, with nft(8) as the second opinion."""

from __future__ import annotations

import errno
import struct
import subprocess
from collections.abc import Iterator

import network_lab
import pytest

from proxy import nfexpressions as nfx
from proxy.nfexpressions import Base, Change, Code, Ct, Meta, Op
from proxy.nfnetlink import Conflict, NfTables, NftError
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
    delete_rule,
    delete_set,
    delete_table,
    encode,
    flush_chain,
    flush_set,
    interval_elements,
)

pytestmark = pytest.mark.privileged

TABLE = Table(Family.IP, "kubelet-py-test")
TABLE6 = Table(Family.INET, "kubelet-py-test6")


@pytest.fixture
def nft() -> Iterator[NfTables]:
    with network_lab.node(), NfTables() as made:
        yield made


def listing(*words: str) -> str:
    done = subprocess.run(
        ["nft", *(words or ("list", "ruleset"))], capture_output=True, text=True, check=True
    )
    return " ".join(done.stdout.split())


def key(address: str, port: int) -> bytes:
    return bytes(map(int, address.split("."))) + b"\x06\0\0\0" + port.to_bytes(2, "big") + b"\0\0"


def numbers(*values: int) -> list[Element]:
    return [Element(struct.pack("=I", n)) for n in values]


def marks(nft: NfTables) -> set[int]:
    return {struct.unpack("=I", e.key)[0] for e in nft.elements(TABLE, "marks")}


MARKS: list[Message] = [add_table(TABLE), add_set(TABLE, Set("marks", (Type.MARK,)))]


def test_every_kind_of_object_reads_back_and_nft_shows_the_same(nft: NfTables) -> None:
    services = Set("services", (Type.IPV4, Type.PROTOCOL, Type.PORT), verdicts=True)
    targets = Set("targets", (Type.IPV4, Type.PROTOCOL, Type.PORT, Type.MARK), (Type.IPV4, Type.PORT))
    ranges = Set("ranges", (Type.IPV4, Type.PORT), flags=Flag.INTERVAL)
    nets = Set("nets", (Type.IPV4,), flags=Flag.INTERVAL)
    seen = Set("seen", (Type.IPV4,), flags=Flag.TIMEOUT | Flag.DYNAMIC, size=10)
    where = [
        nfx.payload(0, Base.NETWORK, 16, 4),
        nfx.meta(1, Meta.L4_PROTOCOL),
        nfx.payload(2, Base.TRANSPORT, 2, 2),
    ]
    nft.commit(
        [
            add_table(TABLE),
            *(add_set(TABLE, s, n) for n, s in enumerate([services, targets, ranges, nets, seen])),
            add_chain(TABLE, Chain("pick-2")),
            add_chain(TABLE, Chain("other")),
            add_chain(TABLE, Chain("prerouting", "nat", Hook.PREROUTING, -100)),
            add_chain(TABLE, Chain("forward", "filter", Hook.FORWARD, 5, Code.DROP)),
            add_rule(TABLE, "prerouting", *where, nfx.lookup_verdict("services", 0), comment="all of them"),
            add_rule(
                TABLE,
                "pick-2",
                *where,
                nfx.random_number(3, 2),
                nfx.lookup_data("targets", 0, 4),
                nfx.destination_nat(2, 4, 5),
            ),
            add_rule(
                TABLE,
                "forward",
                nfx.ct(0, Ct.STATE),
                nfx.mask(0, struct.pack("=I", nfx.NEW)),
                nfx.compare(0, bytes(4), Op.NOT_EQUAL),
                nfx.counter(),
                nfx.verdict(Code.ACCEPT),
            ),
            add_rule(
                TABLE,
                "forward",
                nfx.payload(0, Base.NETWORK, 12, 4),
                nfx.dynamic_set("seen", Change.UPDATE, 0, timeout_ms=60_000),
                nfx.reject_icmp(13),
            ),
            add_rule(
                TABLE,
                "forward",
                nfx.payload(0, Base.NETWORK, 12, 4),
                nfx.payload(1, Base.TRANSPORT, 2, 2),
                nfx.lookup("ranges", 0, inverted=True),
                nfx.verdict(Code.JUMP, "other"),
            ),
            *add_elements(
                TABLE, "services", [Element(key("10.0.0.1", 80), verdict=Verdict(Code.GOTO, "pick-2"))]
            ),
            *add_elements(
                TABLE,
                "targets",
                [Element(key("10.0.0.1", 80) + struct.pack("=I", 1), b"\x0a\1\0\1\x1f\x90\0\0")],
            ),
            *add_elements(
                TABLE,
                "ranges",
                [Element(b"\x0a\0\0\0\0\x50\0\0", key_end=b"\x0a\xff\xff\xff\0\x60\0\0")],
            ),
            *add_elements(TABLE, "nets", interval_elements(b"\xc0\0\2\0", b"\xc0\0\2\xff")),
        ]
    )
    assert nft.tables() == [TABLE]
    assert nft.chains(TABLE) == ["pick-2", "other", "prerouting", "forward"]
    assert sorted(nft.sets(TABLE)) == ["nets", "ranges", "seen", "services", "targets"]
    assert [rule.comment for rule in nft.rules(TABLE) if rule.chain == "prerouting"] == [b"all of them"]
    assert nft.elements(TABLE, "services")[0].verdict == Verdict(Code.GOTO, "pick-2")
    text = listing()
    for part in (
        'ip daddr . meta l4proto . th dport vmap @services comment "all of them"',
        "elements = { 10.0.0.1 . tcp . 80 : goto pick-2 }",
        "elements = { 10.0.0.1 . tcp . 80 . 0x00000001 : 10.1.0.1 . 8080 }",
        "elements = { 10.0.0.0/8 . 80-96 }",
        "elements = { 192.0.2.0/24 }",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @targets",
        "type filter hook forward priority filter + 5; policy drop;",
        "ct state new counter packets 0 bytes 0 accept",
        "update @seen { ip saddr timeout 1m } reject with icmp admin-prohibited",
        "ip saddr . th dport != @ranges jump other",
    ):
        assert part in text, text


def test_one_failure_undoes_the_whole_transaction_and_names_the_element(nft: NfTables) -> None:
    nft.commit([*MARKS, *add_elements(TABLE, "marks", numbers(1, 2, 3))])
    many = numbers(*range(100, 9000))
    doomed = [
        *add_elements(TABLE, "marks", many),
        *delete_elements(TABLE, "marks", numbers(1, 2, 77, 3)),
    ]
    with pytest.raises(NftError, match="Could not delete element of ip kubelet-py-test marks") as caught:
        nft.commit(doomed)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.element == numbers(77)[0]
    assert marks(nft) == {1, 2, 3}
    # The socket is as good as before.
    nft.commit(add_elements(TABLE, "marks", many))
    assert nft.holds(TABLE, "marks", {encode(element) for element in numbers(1, 2, 3, *range(100, 9000))})


@pytest.mark.parametrize(
    ("messages", "number", "words"),
    [
        ([delete_set(TABLE, "nope")], errno.ENOENT, "delete set ip kubelet-py-test nope"),
        ([add_rule(TABLE, "nope", nfx.counter())], errno.ENOENT, "add rule to ip kubelet-py-test nope"),
        ([delete_table(Table(Family.IP6, "x"))], errno.ENOENT, "delete table ip6 x"),
        ([add_chain(TABLE, Chain("c", "nat", Hook.FORWARD))], errno.EOPNOTSUPP, "add chain"),
    ],
)
def test_errors_say_what_could_not_be_done(
    nft: NfTables, messages: list[Message], number: int, words: str
) -> None:
    nft.commit(MARKS)
    with pytest.raises(NftError, match=words) as caught:
        nft.commit([add_chain(TABLE, Chain("before")), *messages])
    assert caught.value.errno == number
    assert nft.chains(TABLE) == []


def test_the_same_element_with_other_data_is_refused_unless_deleted_before(nft: NfTables) -> None:
    nft.commit([add_table(TABLE), add_set(TABLE, Set("m", (Type.MARK,), (Type.MARK,)))])
    one, other = Element(bytes(4), b"\1\0\0\0"), Element(bytes(4), b"\2\0\0\0")
    nft.commit(add_elements(TABLE, "m", [one]))
    nft.commit(add_elements(TABLE, "m", [one]))
    with pytest.raises(NftError) as caught:
        nft.commit(add_elements(TABLE, "m", [other]))
    assert (caught.value.errno, caught.value.element) == (errno.EEXIST, other)
    nft.commit([*delete_elements(TABLE, "m", [one]), *add_elements(TABLE, "m", [other])])
    assert nft.elements(TABLE, "m") == [other]


def test_a_transaction_for_an_older_generation_is_refused(nft: NfTables) -> None:
    nft.commit(MARKS)
    seen = nft.generation()
    subprocess.run(["nft", "add", "table", "ip6", "elsewhere"], check=True)
    assert nft.generation() == seen + 1
    with pytest.raises(Conflict):
        nft.commit(add_elements(TABLE, "marks", numbers(1)), seen)
    assert marks(nft) == set()
    nft.commit(add_elements(TABLE, "marks", numbers(1)), nft.generation())
    assert marks(nft) == {1}


def test_what_is_deleted_and_flushed_is_gone(nft: NfTables) -> None:
    nft.commit(
        [
            *MARKS,
            *add_elements(TABLE, "marks", numbers(1, 2)),
            add_chain(TABLE, Chain("a")),
            *(add_rule(TABLE, "a", nfx.counter(), comment=c) for c in "xyz"),
        ]
    )
    first = nft.rules(TABLE)[0]
    nft.commit([delete_rule(TABLE, "a", first.handle), flush_set(TABLE, "marks")])
    assert [r.comment for r in nft.rules(TABLE)] == [b"y", b"z"]
    assert marks(nft) == set()
    nft.commit([flush_chain(TABLE, "a"), add_rule(TABLE, "a", nfx.counter(), comment="new")])
    assert [r.comment for r in nft.rules(TABLE)] == [b"new"]
    nft.commit([delete_chain(TABLE, "a"), delete_set(TABLE, "marks")])
    assert (nft.chains(TABLE), nft.sets(TABLE)) == ([], [])
    nft.commit([add_table(TABLE), delete_table(TABLE)])
    assert (nft.tables(), nft.rules(TABLE), listing()) == ([], [], "")
    with pytest.raises(NftError, match="list elements"):
        nft.elements(TABLE, "marks")


def test_a_dump_has_the_bytes_that_were_sent_whatever_their_number(nft: NfTables) -> None:
    services = Set("v", (Type.MARK,), verdicts=True)
    data = Set("d", (Type.MARK,), (Type.IPV6, Type.PORT))
    nft.commit(
        [
            add_table(TABLE),
            add_chain(TABLE, Chain("c")),
            add_set(TABLE, services),
            add_set(TABLE, data, 2),
        ]
    )
    keys = [struct.pack("=I", n) for n in range(20000)]
    verdicts = [encode(Element(k, verdict=Verdict(Code.GOTO, "c"))) for k in keys]
    values = [encode(Element(k, k + struct.pack("=IIII", 1, 2, 3, 4))) for k in keys]
    nft.commit([*add_elements(TABLE, "v", verdicts), *add_elements(TABLE, "d", values)])
    assert nft.holds(TABLE, "v", set(verdicts)) and nft.holds(TABLE, "d", set(values))
    assert not nft.holds(TABLE, "v", set(verdicts[1:])) and not nft.holds(TABLE, "d", set())


def test_inet_tables_take_ipv6_keys_and_refuse_both_families_alike(nft: NfTables) -> None:
    pods = Set("pods", (Type.IPV6, Type.PORT))
    nft.commit(
        [
            add_table(TABLE6),
            add_set(TABLE6, pods),
            add_chain(TABLE6, Chain("forward", "filter", Hook.FORWARD)),
            add_rule(
                TABLE6,
                "forward",
                nfx.meta(0, Meta.NF_FAMILY),
                nfx.compare(0, b"\x0a"),
                nfx.payload(0, Base.NETWORK, 24, 16),
                nfx.payload(4, Base.TRANSPORT, 2, 2),
                nfx.lookup("pods", 0),
                nfx.reject(nfx.Unreachable.ADMIN_PROHIBITED),
            ),
            add_rule(
                TABLE6,
                "forward",
                nfx.meta(0, Meta.L4_PROTOCOL),
                nfx.compare(0, b"\x06"),
                nfx.payload(0, Base.TRANSPORT, 2, 2),
                nfx.within(0, b"\0\x50", b"\0\x60"),
                nfx.reject_tcp_reset(),
            ),
            *add_elements(TABLE6, "pods", [Element(bytes(15) + b"\1" + b"\0\x50\0\0")]),
        ]
    )
    text = listing()
    assert "ip6 daddr . th dport @pods reject with icmpx admin-prohibited" in text, text
    assert "tcp dport 80-96 reject with tcp reset" in text, text
    assert "elements = { ::1 . 80 }" in text
