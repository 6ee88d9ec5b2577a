from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import network_lab
import pytest
from network_lab import Namespace, Server, ask, uplink

from cni.conflist import ConfigFolder
from cni.netlink import Netlink
from cni.rtnetlink import set_link
from kubelet_py.node.network import NodeNetwork
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.privileged

CIDRS = {"pod_cidr": "10.244.3.0/24", "cluster_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/12"}


def ruleset() -> str:
    return subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout


def test_node_network_comes_up_attaches_pods_and_goes_without_a_trace(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    with network_lab.node(), Namespace() as client, Namespace() as pod:
        uplink(client, gso=131072)
        with Netlink() as netlink:
            netlink.batch([set_link(netlink.require("uplink0").index, mtu=1400)])
            gso = netlink.require("uplink0").gso  # 0 of a kernel before 6.3
            before = ([link.name for link in netlink.links()], netlink.routes(table=None))
        forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
        network = NodeNetwork(paths)
        assert network.remembered() == ""
        for _ in range(2):
            assert network.start(python=sys.executable, **CIDRS) == []
        assert NodeNetwork(paths).remembered() == CIDRS["pod_cidr"]
        assert network.invoker.ready() is None
        result = network.invoker.add(
            "c1", pod.path, capabilities={"portMappings": [{"hostPort": 8080, "containerPort": 80}]}
        )
        assert result.ips[0].address == "10.244.3.2/24"
        with pod.netlink() as inside:
            far = inside.require("eth0")
            assert (far.mtu, far.gso) == (1400, gso)
        server = Server("pod", pod, 80)
        assert ask("10.244.3.2", 80) == "pod 10.244.3.1"
        assert client.ask("192.0.2.1", 8080) == "pod 192.0.2.2"
        server.close()
        pod.close()
        NodeNetwork(paths).tear_down()
        done = subprocess.run([sys.executable, "-m", "proxy", "--cleanup"], cwd=Path(__file__).parents[3])
        assert done.returncode == 0
        assert ruleset() == ""
        with Netlink() as netlink:
            after = [link.name for link in netlink.links() if link.kind != "veth" or link.name == "uplink0"]
            assert (after, netlink.routes(table=None)) == before
        assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forward


DUAL = {
    "pod_cidr": "10.244.3.0/24,fd00:244:0:3::/64",
    "cluster_cidr": "10.244.0.0/16,fd00:244::/56",
    "service_cidr": "10.96.0.0/12,fd00:96::/112",
}


def test_a_dual_stack_nodes_pods_have_both_addresses_and_are_masqueraded_in_both(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    with network_lab.node(), Namespace() as client, Namespace() as pod:
        uplink(client, node_ip6="2001:db8::1", client_ip6="2001:db8::2")
        network = NodeNetwork(paths)
        network.start(python=sys.executable, **DUAL)
        assert NodeNetwork(paths).remembered() == DUAL["pod_cidr"]
        result = network.invoker.add("c1", pod.path)
        assert [ip.address for ip in result.ips] == ["10.244.3.2/24", "fd00:244:0:3::2/64"]
        server = Server("pod", pod, 80, address="::")
        assert ask("fd00:244:0:3::2", 80) == "pod fd00:244:0:3::1"
        server.close()
        for address, seen in (("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")):
            world = Server("world", client, 80, address="::" if ":" in address else "0.0.0.0")
            assert pod.ask(address, 80) == f"world {seen}"
            world.close()
        network.invoker.delete("c1", pod.path)
        NodeNetwork(paths).tear_down()
        assert all(chain not in ruleset() for chain in ("CNI-MASQ", "kubelet-py"))


OTHER = {"cniVersion": "1.0.0", "name": "mine", "plugins": [{"type": "ptp"}]}


def start_beside(tmp_path: Path, file: str) -> tuple[list[str], str]:
    """A node's network where `file` was there first: the configurations found, and which one is used."""
    paths = NodePaths(tmp_path)
    paths.cni_config.mkdir(parents=True)
    (paths.cni_config / file).write_text(json.dumps(OTHER))
    with network_lab.node():
        network = NodeNetwork(paths, [Path("/usr/lib/cni")])
        network.start(python=sys.executable, **CIDRS)
        found = sorted(p.name for p in paths.cni_config.iterdir())
        used = ConfigFolder(paths.cni_config).load().name
        network.tear_down()
        return found, used


def test_a_network_that_somebody_else_configured_is_left_alone(tmp_path: Path) -> None:
    assert start_beside(tmp_path, "05-mine.conflist") == (["05-mine.conflist"], "mine")


def test_another_runtimes_network_behind_ours_does_not_keep_ours_away(tmp_path: Path) -> None:
    """Debian's podman brings /etc/cni/net.d/87-podman-bridge.conflist."""
    expected = (["10-kubelet-py.conflist", "87-podman-bridge.conflist"], "kubelet-py")
    assert start_beside(tmp_path, "87-podman-bridge.conflist") == expected
