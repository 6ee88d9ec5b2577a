from __future__ import annotations

from typing import Any

import pytest

from proxy.changes import Changes, Endpoint, ServicePort, View, service_ports, slice_endpoints
from proxy.conntrack import Flow, stale_entries, stale_flows
from proxy.topology import Place, reachable


def service(**spec: Any) -> dict[str, Any]:
    body = {"clusterIP": "10.96.0.1", "ports": [{"name": "a", "port": 80}], **spec}
    return {"metadata": {"name": "s", "namespace": "d"}, "spec": body}


def slice_of(name: str, *endpoints: dict[str, Any], **changed: Any) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "s"}
    return {
        "metadata": {"name": name, "namespace": "d", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
        **changed,
    }


def entry(ip: str, node: str = "", **conditions: bool) -> dict[str, Any]:
    return {"addresses": [ip], "nodeName": node, "conditions": conditions}


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None"},
        {"clusterIP": ""},
        {"type": "ExternalName", "clusterIP": ""},
        {"clusterIP": "fd00::1"},
    ],
)
def test_services_without_an_address_of_the_family_get_no_rules(spec: dict[str, Any]) -> None:
    assert service_ports(service(**spec)) == ()


def test_dual_stack_service_shows_the_address_of_each_family() -> None:
    body = service(clusterIP="fd00::1", clusterIPs=["fd00::1", "10.96.0.9"])
    assert [service_ports(body, v)[0].cluster_ip for v in (4, 6)] == ["10.96.0.9", "fd00::1"]


def test_service_of_another_proxy_is_left_to_it() -> None:
    body = service()
    body["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "cilium"}
    assert service_ports(body) == ()


def test_named_target_port_comes_from_the_slice() -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service(ports=[{"name": "a", "port": 80, "targetPort": "http"}]))
    changes.slice_event("ADDED", slice_of("x", entry("10.1.0.1", "n1"), entry("10.1.0.2", "n2")))
    view = changes.view()
    assert view.of(view.services[0]) == (Endpoint("10.1.0.1", 8080, local=True), Endpoint("10.1.0.2", 8080))


def test_same_port_number_on_tcp_and_udp_stays_apart() -> None:
    changes = Changes("n1")
    ports = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]
    changes.service_event("ADDED", service(ports=ports))
    changes.slice_event(
        "ADDED", slice_of("x", entry("10.1.0.1"), ports=[{"name": "u", "port": 5353, "protocol": "UDP"}])
    )
    view = changes.view()
    assert {p.protocol: len(view.of(p)) for p in view.services} == {"tcp": 0, "udp": 1}


def test_slices_of_one_service_are_merged_and_a_ready_copy_wins() -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service())
    changes.slice_event("ADDED", slice_of("x", entry("10.1.0.1", ready=False)))
    changes.slice_event("ADDED", slice_of("y", entry("10.1.0.1", ready=True), entry("10.1.0.2")))
    view = changes.view()
    assert [(e.ip, e.ready) for e in view.of(view.services[0])] == [("10.1.0.1", True), ("10.1.0.2", True)]
    changes.slice_event("DELETED", slice_of("y"))
    assert [e.ready for e in changes.view().of(view.services[0])] == [False]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, (True, True, False)),
        ({"ready": False}, (False, False, False)),
        ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    ],
)
def test_conditions_have_upstreams_defaults(conditions: dict[str, bool], expected: tuple[bool, ...]) -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service())
    changes.slice_event("ADDED", slice_of("x", entry("10.1.0.1", **conditions)))
    view = changes.view()
    found = view.of(view.services[0])[0]
    assert (found.ready, found.serving, found.terminating) == expected


def test_only_what_matters_wakes_the_sync() -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service())
    assert changes.changed.is_set()
    changes.changed.clear()
    changes.service_event("MODIFIED", {**service(), "status": {"conditions": []}})
    changes.slice_event("ADDED", slice_of("x", addressType="IPv6"))
    changes.slice_event("DELETED", slice_of("never"))
    assert not changes.changed.is_set()
    changes.service_event("MODIFIED", service(sessionAffinity="ClientIP"))
    assert changes.changed.is_set()
    assert changes.view().services[0].affinity_seconds == 10800
    changes.changed.clear()
    changes.service_event("DELETED", service())
    assert changes.changed.is_set() and changes.view().services == ()


def test_a_change_is_handed_out_once_and_with_its_service_only() -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service())
    other = service()
    other["metadata"] = {"name": "other", "namespace": "d"}
    changes.service_event("ADDED", other)
    assert set(changes.take().services) == {("d", "s"), ("d", "other")}
    assert changes.take().services == {}
    changes.slice_event("ADDED", slice_of("x", entry("10.1.0.1", "n1")))
    ((name, served),) = changes.take().services.items()
    assert name == ("d", "s")
    assert [e.ip for _port, endpoints in served for e in endpoints] == ["10.1.0.1"]
    changes.service_event("DELETED", service())
    assert changes.take().services == {("d", "s"): ()}


def test_a_slice_that_changes_its_service_is_taken_from_the_old_one() -> None:
    changes = Changes("n1")
    changes.service_event("ADDED", service())
    changes.slice_event("ADDED", slice_of("x", entry("10.1.0.1", "n1")))
    changes.take()
    moved = slice_of("x", entry("10.1.0.1", "n1"))
    moved["metadata"]["labels"] = {"kubernetes.io/service-name": "t"}
    changes.slice_event("MODIFIED", moved)
    taken = changes.take().services
    assert set(taken) == {("d", "s"), ("d", "t")}
    assert taken["d", "s"][0][1] == ()


def hinted(ip: str, *zones: str, **more: Any) -> Endpoint:
    return Endpoint(ip, 80, zones=zones, **more)


@pytest.mark.parametrize(
    ("endpoints", "place", "expected"),
    [
        ([hinted("a", "z1"), hinted("b", "z2")], Place("n", "z1"), ["a"]),
        ([hinted("a", "z1"), hinted("b", "z2")], Place("n", "z3"), ["a", "b"]),
        ([hinted("a", "z1"), hinted("b", "z2")], Place("n", ""), ["a", "b"]),
        ([hinted("a", "z1"), hinted("b")], Place("n", "z1"), ["a", "b"]),
        # One that is not ready needs no hint, and is not chosen.
        ([hinted("a", "z1"), hinted("b", ready=False)], Place("n", "z1"), ["a"]),
        ([hinted("a", "z1", nodes=("m",)), hinted("b", "z1", nodes=("n",))], Place("n", "z1"), ["b"]),
    ],
)
def test_hints_restrict_the_choice_when_all_have_one(
    endpoints: list[Endpoint], place: Place, expected: list[str]
) -> None:
    port = ServicePort("d", "s", "a", "tcp", "10.96.0.1", 80)
    assert [e.ip for e in reachable(port, endpoints, place).cluster] == expected


def udp(*ips: str, node_port: int = 0) -> View:
    ports = [{"name": "a", "port": 53, "protocol": "UDP", "nodePort": node_port}]
    found = service_ports(service(ports=ports))
    return View(found, {found[0].key: tuple(Endpoint(ip, 53) for ip in ips)})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (udp("10.1.0.1"), udp("10.1.0.1"), []),
        (udp("10.1.0.1"), udp("10.1.0.2"), [Flow("10.96.0.1", 53, "10.1.0.1")]),
        (udp("10.1.0.1"), View(), [Flow("10.96.0.1", 53, "10.1.0.1")]),
        (udp(), udp("10.1.0.1"), [Flow("10.96.0.1", 53)]),
        (udp("10.1.0.1"), udp("10.1.0.1", "10.1.0.2"), []),
        (
            udp("10.1.0.1", node_port=30053),
            udp(node_port=30053),
            [Flow("10.96.0.1", 53, "10.1.0.1"), Flow("", 30053, "10.1.0.1")],
        ),
    ],
)
def test_udp_flows_of_gone_endpoints_are_stale(old: View, new: View, expected: list[Flow]) -> None:
    assert stale_flows(old, new) == expected


LISTING = """\
udp      17 25 src=10.1.0.9 dst=10.96.0.1 sport=4000 dport=53 src=10.1.0.1 dst=10.1.0.9 sport=53 dport=4000 mark=0 use=1
udp      17 25 src=10.1.0.9 dst=10.96.0.1 sport=4001 dport=53 src=10.1.0.7 dst=10.1.0.9 sport=53 dport=4001 mark=0 use=1
udp      17 25 src=10.1.0.9 dst=10.96.0.1 sport=4002 dport=53 [UNREPLIED] src=10.96.0.1 dst=10.1.0.9 sport=53 dport=4002
udp      17 25 src=192.0.2.9 dst=192.0.2.1 sport=9 dport=30053 src=10.1.0.8 dst=10.1.0.254 sport=53 dport=9 use=1
udp      17 25 src=10.1.0.9 dst=8.8.8.8 sport=4003 dport=53 src=8.8.8.8 dst=192.0.2.1 sport=53 dport=4003 mark=0 use=1
udp      17 25 src=10.1.0.9 dst=10.1.0.1 sport=4004 dport=30053 src=10.1.0.1 dst=10.1.0.9 sport=53 dport=4004 use=1
"""  # noqa: E501


def test_after_a_restart_only_flows_that_go_nowhere_are_stale() -> None:
    assert stale_entries(LISTING, udp("10.1.0.1", node_port=30053)) == [
        Flow("10.96.0.1", 53, "10.1.0.7"),
        Flow("10.96.0.1", 53),
        Flow("", 30053, "10.1.0.8"),
    ]
    assert stale_entries(LISTING, View()) == []
    assert stale_entries("", udp("10.1.0.1")) == []


def test_a_slice_of_v1beta1_names_the_node_among_its_topology_labels() -> None:
    old = {"addresses": ["10.1.0.1"], "topology": {"kubernetes.io/hostname": "n1"}}
    found = slice_endpoints(slice_of("x", old, {"addresses": ["10.1.0.2"], "topology": None}), "n1")
    assert found is not None
    ((_, endpoints),) = found[1]
    assert [endpoint.local for endpoint in endpoints] == [True, False]


def test_what_is_no_plain_address_of_the_family_never_becomes_a_rule() -> None:
    """Python's ipaddress takes a zone behind an IPv6 address, which is any text, with line ends in it."""
    odd = "fe80::1%lo -j RETURN\n-A INPUT -j ACCEPT"
    found = slice_endpoints(slice_of("x", entry(odd), entry("10.0.0.1"), addressType="IPv6"), "n", 6)
    assert found == ("s", ((("d", "s", "a", "tcp"), ()),))
    balancer = {"loadBalancer": {"ingress": [{"ip": odd}, {"ip": "2001:db8::1"}]}}
    body = service(clusterIP="fd00::1", externalIPs=[odd, "10.0.0.1"], loadBalancerSourceRanges=[odd])
    (port,) = service_ports(body | {"status": balancer}, 6)
    assert (port.ingress_ips, port.external_ips, port.source_ranges) == (("2001:db8::1",), (), ("::/128",))
    assert service_ports(service(clusterIP=odd), 6) == ()


def test_what_was_triggered_before_the_proxy_started_is_not_measured() -> None:
    changes = Changes("n", started=1_000_000_000.0)
    for number, stamp in enumerate(("2001-09-09T01:46:39Z", "2001-09-09T01:46:41Z", "soon")):
        body = slice_of("x", entry(f"10.0.0.{number}"))
        body["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": stamp}
        changes.slice_event("ADDED", body)
    assert changes.take().triggered == (1_000_000_001.0,)
