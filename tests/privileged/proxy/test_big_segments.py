"""Pods whose TCP hands out more than 64 kB at a time: what arrives by each way is what was sent.

The kernel writes 0 for the length of such an IPv4 packet, so every rule, translation and bridge on its way
must know it by other means; and a device that takes less must be given packets of the MTU's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import network_lab
import pytest
import services_lab
from network_lab import Namespace
from segments_lab import SIZE, Sink, Source, Watch, deliver, fetch
from services_lab import VIP, Lab

from cni.netlink import Netlink
from proxy.modes import remove_other

pytestmark = pytest.mark.privileged


@pytest.fixture(params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with network_lab.node():
        lab = Lab(tmp_path, request.param, SIZE)
        with Netlink() as netlink:
            if not netlink.require("kpy0").gso:
                lab.close()
                pytest.skip("this kernel has no gso_ipv4_max_size (it needs 6.3)")
        remove_other(request.param)
        yield lab
        lab.close()


@pytest.fixture
def sinks(lab: Lab) -> Iterator[None]:
    made = [Sink(lab.pods[0], 8080), Sink(lab.pods[1], 8080), Sink(lab.client, 8080)]
    yield
    for sink in made:
        sink.close()


def near(pod: Namespace) -> str:
    """The node's end of a pod's pair."""
    with pod.netlink() as inside, Netlink() as host:
        far = inside.require("eth0")
        near = host.link(far.peer)
        assert near is not None and (far.gso, near.gso) == (SIZE, SIZE)
        return near.name


def test_large_packets_pass_the_bridge_and_a_cluster_ip(lab: Lab, sinks: None) -> None:
    lab.service(1)
    with Watch(None, near(lab.pods[1])) as watch:
        deliver(lab.pods[0], lab.ips[1], 8080, watch, beyond=1 << 16, least=4 << 20)
    with Watch(None, near(lab.pods[1])) as watch:
        deliver(lab.pods[0], VIP, 80, watch, beyond=1 << 16, least=4 << 20)


def test_large_packets_of_a_pod_come_back_to_it_through_its_service(lab: Lab, sinks: None) -> None:
    lab.service(0)
    with Watch(None, near(lab.pods[0])) as watch:
        deliver(lab.pods[0], VIP, 80, watch, beyond=1 << 16, least=4 << 20)


def test_what_leaves_by_an_uplink_that_takes_less_is_cut_before_it(lab: Lab, sinks: None) -> None:
    with Watch(lab.client, "eth0") as out, Watch(None, near(lab.pods[0])) as watch:
        deliver(lab.pods[0], "192.0.2.2", 8080, watch, beyond=1 << 16, least=4 << 20)
    assert 0 < out.largest <= (1 << 16) + 14


def test_who_comes_by_a_node_port_over_a_usual_link_gets_the_usual_pieces(lab: Lab) -> None:
    lab.service(1)
    with closing(Source(lab.pods[1], 8080, 8 << 20)), Watch(lab.client, "eth0") as out:
        assert fetch(lab.client, "192.0.2.1", 30080) == 8 << 20
    assert 0 < out.largest <= (1 << 16) + 14


def test_large_packets_pass_the_bridge_itself_on_their_way_from_the_node(lab: Lab, sinks: None) -> None:
    """What is routed to a pod goes through the bridge's own device, which would cut it."""
    with Watch(None, near(lab.pods[1])) as watch:
        deliver(None, lab.ips[1], 8080, watch, beyond=1 << 16, least=4 << 20)


def test_pods_are_wired_as_the_kernel_does_where_nothing_is_said(tmp_path: Path) -> None:
    with network_lab.node():
        lab = services_lab.Lab(tmp_path, "nftables")
        with lab.pods[0].netlink() as inside:
            assert inside.require("eth0").gso in (0, 1 << 16)
        lab.close()
