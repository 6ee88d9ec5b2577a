"""Where a Service may be entered from outside: node ports, load balancer addresses, external IPs."""

from __future__ import annotations

import pytest
from network_lab import Server, ask
from services_lab import VIP, Lab

from cni.netlink import Netlink
from cni.rtnetlink import new_address

pytestmark = pytest.mark.privileged

LB = "198.51.100.77"


def reach_by(lab: Lab, address: str) -> None:
    """Let the client send packets for `address` to the node, which would route them on to its pods.

    Were it to send them back where they came from, ICMP redirects would use up what errors are allowed.
    """
    with Netlink() as near, lab.client.netlink() as far:
        near.add_route(f"{address}/32", dev="kpy0")
        far.add_route(f"{address}/32", dev="eth0", gw="192.0.2.1")


def test_load_balancer_address_serves_the_ranges_it_is_meant_for(lab: Lab) -> None:
    lab.serve(1, 8080)
    reach_by(lab, LB)
    lab.service(1, type="LoadBalancer", ingress=LB)
    assert lab.client.ask(LB, 80) == "pod1 10.244.1.1"
    lab.service(1, type="LoadBalancer", ingress=LB, loadBalancerSourceRanges=["192.0.2.0/30", "192.0.2.0/29"])
    assert lab.client.ask(LB, 80).startswith("pod1 ")
    lab.service(1, type="LoadBalancer", ingress=LB, loadBalancerSourceRanges=["203.0.113.0/24"])
    with lab.client.socket() as sock, pytest.raises(TimeoutError):
        sock.settimeout(0.4)
        sock.connect((LB, 80))
    assert lab.pods[0].ask(VIP, 80).startswith("pod1 ")
    lab.service(type="LoadBalancer", ingress=LB)
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask(LB, 80)


def test_load_balancer_address_with_local_policy_keeps_the_clients_address(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    reach_by(lab, LB)
    lab.service(
        1, lab.entry(2, node="node-b"), type="LoadBalancer", ingress=LB, externalTrafficPolicy="Local"
    )
    assert {lab.client.ask(LB, 80) for _ in range(10)} == {"pod1 192.0.2.2"}
    # Inside the cluster the policy does not count.
    assert set(lab.pods[0].tally(LB, 80, 20)) == {"pod1", "pod2"}


def test_external_ips_work_only_where_they_are_allowed(lab: Lab) -> None:
    lab.serve(1, 8080)
    reach_by(lab, LB)
    lab.service(1, externalIPs=[LB])
    with lab.client.socket() as sock, pytest.raises(OSError):
        sock.settimeout(0.4)
        sock.connect((LB, 80))
    lab.restart(external_ip_ranges=("198.51.100.64/26",))
    lab.service(1, externalIPs=[LB])
    assert lab.client.ask(LB, 80) == "pod1 10.244.1.1"
    lab.service(externalIPs=[LB])
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask(LB, 80)


def test_node_ports_answer_on_the_configured_addresses_only(lab: Lab) -> None:
    lab.serve(1, 8080)
    with Netlink() as near, lab.client.netlink() as far:
        near.batch([new_address(near.require("uplink0").index, "198.51.100.1/24")])
        for there in ("198.51.100.0/24", "10.244.1.1/32"):
            far.add_route(there, dev="eth0", gw="192.0.2.1")
    lab.restart(node_port_addresses=("198.51.100.0/24",))
    lab.service(1)
    assert lab.client.ask("198.51.100.1", 30080).startswith("pod1 ")
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask("192.0.2.1", 30080)
    lab.restart(node_port_addresses=("0.0.0.0/0", "::/0"))
    lab.service(1)
    for address in ("192.0.2.1", "198.51.100.1", "10.244.1.1"):
        assert lab.client.ask(address, 30080).startswith("pod1 "), address
    lab.restart(node_port_addresses=("198.51.100.0/24",))
    lab.service()
    # What the host itself serves on that port elsewhere stays reachable.
    lab.servers.append(Server("host", None, 30080))
    assert lab.client.ask("192.0.2.1", 30080).startswith("host ")


def test_node_port_is_not_on_loopback(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 30080)
