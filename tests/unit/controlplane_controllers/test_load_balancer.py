from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.load_balancer import Assignment, assign, ours, parse_pool


def service(name: str = "s", *addresses: str, port: int = 80, **spec: Any) -> dict[str, Any]:
    body = {"type": "LoadBalancer", "ports": [{"port": port, "protocol": "TCP"}], **spec}
    status = {"loadBalancer": {"ingress": [{"ip": a} for a in addresses]}} if addresses else {}
    return {"metadata": {"namespace": "d", "name": name}, "spec": body, "status": status}


def node(address: str, ready: str = "True", **labels: str) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": "n"}]
    conditions = [{"type": "Ready", "status": ready}]
    return {
        "metadata": {"name": address, "labels": labels},
        "status": {"addresses": addresses, "conditions": conditions},
    }


NODES = [node("192.0.2.11"), node("192.0.2.9")]


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, True),
        ({"type": "NodePort"}, False),
        ({"loadBalancerClass": "example.org/other"}, False),
    ],
)
def test_whose_a_service_is(spec: dict[str, Any], wanted: bool) -> None:
    assert ours(service(**spec)) is wanted


def test_nodes_that_are_ready_share_their_addresses() -> None:
    excluded = node("192.0.2.13", **{"node.kubernetes.io/exclude-from-external-load-balancers": ""})
    nodes = [*NODES, node("192.0.2.12", "False"), excluded, node("fd00::1")]
    assert assign(service(), [], nodes, ()) == Assignment(("192.0.2.9", "192.0.2.11"))
    assert assign(service(ipFamilies=["IPv6"]), [], nodes, ()) == Assignment(("fd00::1",))
    assert assign(service(), [], [], ()).problem == "no node is ready"


def test_a_service_of_both_families_gets_what_there_is_of_each() -> None:
    both = service(ipFamilies=["IPv4", "IPv6"])
    assert assign(both, [], [*NODES, node("fd00::1")], ()).addresses == (
        "192.0.2.9",
        "192.0.2.11",
        "fd00::1",
    )
    assert assign(both, [], [node("fd00::1")], ()) == Assignment(("fd00::1",))
    pool = parse_pool("203.0.113.0/30,fd00:1::/126")
    assert assign(both, [], [], pool) == Assignment(("203.0.113.1", "fd00:1::1"))
    assert assign(both, [], [], pool[:1]) == Assignment(("203.0.113.1",))
    assert assign(both, [], [], ()).problem == "no node is ready"


def test_one_port_of_the_nodes_has_one_service() -> None:
    other = service("other", "192.0.2.9")
    assert assign(service(), [other], NODES, ()).problem == "Service d/other has the same port of the nodes"
    assert assign(service(port=81), [other], NODES, ()).addresses
    assert assign(service(), [service("waiting")], NODES, ()).addresses, "who has nothing holds nothing"
    assert assign(other, [other], NODES, ()).addresses, "it is not its own rival"
    udp = service(ports=[{"port": 80, "protocol": "UDP"}])
    assert assign(udp, [other], NODES, ()).addresses


@pytest.mark.parametrize("port", [22, 6443, 10250])
def test_a_nodes_own_doors_are_not_given_away(port: int) -> None:
    assert assign(service(port=port), [], NODES, ()).problem == f"port {port} is a node's own"
    assert assign(service(port=port), [], NODES, parse_pool("203.0.113.0/29")).addresses


def test_a_pool_gives_one_address_each_until_it_is_empty() -> None:
    pool = parse_pool("203.0.113.0/30, 198.51.100.7/32")
    first = assign(service(), [], NODES, pool)
    assert first == Assignment(("203.0.113.1",))
    others = [service("a", "203.0.113.1"), service("b", "203.0.113.2")]
    assert assign(service(), others, NODES, pool) == Assignment(("198.51.100.7",))
    others.append(service("c", "198.51.100.7"))
    assert assign(service(), others, NODES, pool).problem.startswith("no address is left")


def test_what_a_service_has_it_keeps_while_it_may() -> None:
    pool = parse_pool("203.0.113.0/29")
    assert assign(service("s", "203.0.113.5"), [], NODES, pool) == Assignment(("203.0.113.5",))
    assert assign(service("s", "192.0.2.9"), [], NODES, pool) == Assignment(("203.0.113.1",))


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("203.0.113.3", ""),
        ("203.0.113.1", "203.0.113.1 is taken"),
        ("192.0.2.1", "loadBalancerIP 192.0.2.1 is not in --load-balancer-addresses"),
        ("mine", "loadBalancerIP 'mine' is no IP address"),
        ("fd00::1%eth0", "loadBalancerIP 'fd00::1%eth0' is no IP address"),
    ],
)
def test_an_address_that_is_asked_for(asked: str, problem: str) -> None:
    found = assign(
        service(loadBalancerIP=asked), [service("a", "203.0.113.1")], NODES, parse_pool("203.0.113.0/29")
    )
    assert found == (Assignment(problem=problem) if problem else Assignment((asked,)))


def test_an_address_is_the_same_in_every_spelling() -> None:
    pool = parse_pool("fd00::/126")
    asked = service(loadBalancerIP="fd00:0::1", ipFamilies=["IPv6"])
    assert assign(asked, [], NODES, pool) == Assignment(("fd00::1",))
    for spelt in ("fd00::1", "fd00:0:0::1"):
        assert assign(asked, [service("a", spelt)], NODES, pool).problem == "fd00::1 is taken"
        unasked = assign(service(ipFamilies=["IPv6"]), [service("a", spelt)], NODES, pool)
        assert unasked == Assignment(("fd00::2",))
    assert assign(service("s", "no address"), [], NODES, parse_pool("203.0.113.5/32")).addresses


@pytest.mark.parametrize("text", ["", "node", "203.0.113.1/24", "203.0.113.0/24,x"])
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_pool(text)
