"""What Services become in the nftables backend's maps, and who owns which element; without a kernel."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import pytest

from proxy import nftframe as names
from proxy.changes import Endpoint, ServicePort
from proxy.config import ProxyConfig
from proxy.nfobjects import Element, encode, read_element
from proxy.nftclaims import Claims, key_of
from proxy.nftelements import Slots, Wanted, arranged, elements, slots
from proxy.nftframe import Frame, Target
from proxy.topology import reachable

CONFIG = ProxyConfig(cluster_cidr="10.0.0.0/8")
PORT = ServicePort("ns", "svc", "p", "tcp", "172.30.0.1", 80)
HERE, THERE = Endpoint("10.1.0.1", 8080, local=True), Endpoint("10.1.0.2", 8080)


def wanted(port: ServicePort, *endpoints: Endpoint, config: ProxyConfig = CONFIG) -> Wanted:
    found = reachable(port, endpoints)
    made = Wanted()
    elements(made, port, found, slots(Slots(), found), config)
    return made


def chains(made: Wanted) -> dict[str, list[str]]:
    """Where each verdict map's elements lead, and DROP."""
    found: dict[str, list[str]] = {}
    for name, raw in made.members:
        verdict = read_element(raw, 4, len(raw)).verdict
        if verdict is not None:
            found.setdefault(name, []).append(verdict.chain or verdict.code.name)
    return found


def count(made: Wanted) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, _raw in made.members:
        found[name] = found.get(name, 0) + 1
    return found


def test_a_cluster_ip_is_one_verdict_and_an_element_per_endpoint() -> None:
    made = wanted(PORT, HERE, THERE)
    key = socket.inet_aton("172.30.0.1") + b"\x06\0\0\0\0\x50\0\0"
    places = [socket.inet_aton(e.ip) + b"\x1f\x90\0\0" for e in (HERE, THERE)]
    assert chains(made) == {"service-ips": ["cluster-2"]}
    assert [raw for name, raw in made.members if name == names.ENDPOINTS] == [
        encode(Element(key + struct.pack("=I", n), data)) for n, data in enumerate(places)
    ]
    assert count(made)[names.HAIRPIN] == 1


@pytest.mark.parametrize(
    ("port", "endpoints", "expected"),
    [
        (PORT, (), {"no-endpoint-services": ["reject-chain"]}),
        (replace(PORT, internal_local=True), (THERE,), {"no-endpoint-services": ["DROP"]}),
        (replace(PORT, internal_local=True), (HERE, THERE), {"service-ips": ["cluster-1-local"]}),
        (
            replace(PORT, node_port=30000),
            (),
            {"no-endpoint-services": ["reject-chain"], "no-endpoint-nodeports": ["reject-chain"]},
        ),
        (
            replace(PORT, node_port=30000, external_local=True),
            (HERE, THERE),
            {"service-ips": ["cluster-2"], "service-nodeports": ["nodeport-1-local-of-2"]},
        ),
        (
            replace(PORT, node_port=30000, external_local=True),
            (THERE,),
            {"service-ips": ["cluster-1"], "service-nodeports": ["nodeport-0-local-of-1"]},
        ),
        (
            replace(PORT, ingress_ips=("203.0.113.1",), affinity_seconds=9),
            (HERE, THERE),
            {"service-ips": ["cluster-2-affinity-9", "external-2-affinity-9"]},
        ),
        (replace(PORT, external_ips=("203.0.113.1",)), (HERE,), {"service-ips": ["cluster-1"]}),
    ],
)
def test_policies_choose_the_chain(
    port: ServicePort, endpoints: tuple[Endpoint, ...], expected: dict[str, list[str]]
) -> None:
    assert chains(wanted(port, *endpoints)) == expected


def test_source_ranges_that_overlap_become_one() -> None:
    ranges = ("198.51.100.0/24", "198.51.100.128/25", "192.0.2.1/32")
    made = wanted(replace(PORT, ingress_ips=("203.0.113.1",), source_ranges=ranges), HERE)
    assert (count(made)[names.FIREWALL_IPS], count(made)[names.FIREWALL_ALLOW]) == (1, 2)


def test_every_chain_a_target_leads_to_is_wanted_and_has_rules() -> None:
    port = replace(PORT, node_port=30000, external_local=True, affinity_seconds=9)
    made = wanted(port, HERE, THERE)
    frame = Frame(CONFIG, 4)
    there = {target.chain for target in made.targets}
    assert {"nodeport-2-affinity-9", "nodeport-2-direct-affinity-9", "nodeport-slot-1-affinity-9"} <= there
    for target in made.targets:
        assert frame.target_rules(target)
        assert {other.chain for other in target.all()} <= there


def test_ipv6_keys_fit_into_the_registers() -> None:
    frame = Frame(CONFIG, 6)
    for entrance in ("cluster", "external", "nodeport"):
        for target in Target(entrance, 3, affinity=5).all():
            assert frame.target_rules(target)


def ends(*numbers: int) -> list[Endpoint]:
    return [Endpoint(f"10.1.0.{n}", 80) for n in numbers]


def numbers(places: tuple[tuple[str, int], ...]) -> list[int]:
    return [int(ip.rsplit(".", 1)[1]) for ip, _port in places]


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((), (1, 2), [1, 2]),
        ((1, 2, 3), (1, 3, 4), [1, 4, 3]),
        ((1, 2, 3), (2, 3), [3, 2]),
        ((1, 2, 3), (3,), [3]),
        ((3, 1), (0, 1, 3), [3, 1, 0]),
        ((1, 2), (), []),
    ],
)
def test_endpoints_keep_their_numbers(
    before: tuple[int, ...], now: tuple[int, ...], expected: list[int]
) -> None:
    assert numbers(arranged(arranged((), ends(*before)), ends(*now))) == expected


def element(key: int, data: int = 0) -> tuple[str, bytes]:
    return "m", encode(Element(struct.pack("=I", key), struct.pack("=I", data) if data else b""))


A, B = ("ns", "a"), ("ns", "b")


def test_only_what_differs_from_the_kernel_is_told() -> None:
    claims = Claims()
    claims.change([(A, [element(1, 1), element(2, 2)])])
    assert len(list(claims.differences())) == 2
    claims.settled()
    claims.change([(A, [element(1, 1), element(2, 3)])])
    assert list(claims.differences()) == [("m", element(2, 2)[1], element(2, 3)[1])]
    # Back again before anything was sent: nothing to send.
    claims.change([(A, [element(1, 1), element(2, 2)])])
    assert list(claims.differences()) == []


def test_a_key_that_two_want_goes_to_the_first_and_then_to_the_heir() -> None:
    claims = Claims()
    claims.change([(A, [element(1, 1)]), (B, [element(1, 2)])])
    assert claims.held["m"] == {key_of(element(1)[1]): element(1, 1)[1]}
    claims.settled()
    claims.change([(A, [])])
    assert list(claims.differences()) == [("m", element(1, 1)[1], element(1, 2)[1])]
    claims.change([(B, [])])
    assert claims.held["m"] == {}


def test_one_that_waits_in_vain_takes_nothing_with_it() -> None:
    claims = Claims()
    claims.change([(A, [element(1, 1)]), (B, [element(1, 2)])])
    claims.change([(B, [])])
    claims.change([(A, [element(1, 1)])])
    assert claims.held["m"] == {key_of(element(1)[1]): element(1, 1)[1]}


def test_ranges_are_keys_with_both_ends() -> None:
    first, second = (encode(Element(bytes(8), key_end=bytes(4) + struct.pack("=I", n))) for n in (1, 2))
    assert key_of(first) != key_of(second)
