"""The network of a node over time: collected at the start, asked for its status, repaired."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_lab
import pytest
from network_lab import Namespace, Server, ask

from cni.netlink import Netlink
from cni.veth import GSO_LARGE, GSO_USUAL
from kubelet_py.config import Config
from kubelet_py.node.network import NodeNetwork
from kubelet_py.node.network_keeper import STATUS_SECONDS, NetworkKeeper
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.privileged

CLUSTER = {"cluster_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/12"}


class Bench:
    """A keeper with a clock of the test's, and what it told."""

    def __init__(self, paths: NodePaths) -> None:
        self.paths = paths
        self.now = 0.0
        self.changes = self.usable = 0
        self.attached: list[tuple[str, str]] = []
        self.network = NodeNetwork(paths)
        self.keeper = NetworkKeeper(
            self.network, Config(), self._change, self._use, lambda: self.attached, clock=lambda: self.now
        )

    def _change(self) -> None:
        self.changes += 1

    def _use(self) -> None:
        self.usable += 1

    def look(self) -> str | None:
        self.now += STATUS_SECONDS
        self.keeper.look()
        return self.keeper.problem()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with network_lab.node():
        made = Bench(NodePaths(tmp_path))
        yield made
        made.network.tear_down()


def leases(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in tmp_path.rglob("10.244.3.*") if p.is_file())


def test_what_a_killed_agent_left_is_collected_at_the_start(tmp_path: Path) -> None:
    with network_lab.node(), Namespace() as kept, Namespace() as dead:
        old = Bench(NodePaths(tmp_path))
        old.keeper.bring_up("10.244.3.0/24")
        old.network.invoker.add("kept", kept.path)
        old.network.invoker.add("dead", dead.path)
        dead.close()
        again = Bench(NodePaths(tmp_path))
        again.attached = [("kept", "eth0")]
        again.keeper.bring_up("10.244.3.0/24")
        assert leases(tmp_path) == ["10.244.3.2"]
        again.network.invoker.check("kept", kept.path)
        kept.close()
        again.network.tear_down()


def test_a_deleted_bridge_comes_back_with_its_pods(bench: Bench) -> None:
    bench.keeper.bring_up("10.244.3.0/24")
    with Namespace() as pod, Netlink() as host:
        bench.network.invoker.add("a", pod.path)
        server = Server("a", pod, 80)
        assert bench.look() is None
        name = next(link.name for link in host.links() if link.kind == "bridge")
        host.delete_link(name)
        with pytest.raises(OSError):
            ask("10.244.3.2", 80)
        assert bench.look() is None
        assert ask("10.244.3.2", 80) == "a 10.244.3.1"
        bench.network.invoker.check("a", pod.path)
        server.close()
        pod.close()
        bench.network.invoker.delete("a", None)


def test_a_status_of_50_is_the_nodes_problem_until_it_ends(bench: Bench, tmp_path: Path) -> None:
    bench.keeper.bring_up("10.244.3.0/24")
    assert bench.keeper.problem() is None
    before = bench.changes
    assert bench.usable == 1
    folder = tmp_path / "etc/cni/net.d"
    good = json.loads((folder / "10-kubelet-py.conflist").read_text())
    small: dict[str, Any] = json.loads(json.dumps(good))
    small["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.244.3.0/24", "rangeEnd": "10.244.3.2"}]]
    (folder / "10-kubelet-py.conflist").write_text(json.dumps(small))
    with Namespace() as pod:
        bench.network.invoker.add("a", pod.path)
        assert "Could not find a free address" in str(bench.look())
        assert bench.changes == before + 1
        assert bench.usable == 1, "a pod that has failed is not tried again because all others will"
        bench.network.invoker.delete("a", pod.path)
        # While it is bad it is asked sooner.
        bench.now += 1
        bench.keeper.look()
        assert bench.keeper.problem() is None
        assert (bench.changes, bench.usable) == (before + 2, 2)


def sizes(pod: Namespace) -> tuple[int, int]:
    """What the two ends of a pod's pair take of IPv4's TCP at once."""
    with pod.netlink() as inside, Netlink() as host:
        far = inside.require("eth0")
        near = host.link(far.peer)
        assert near is not None
        return far.gso, near.gso


def bridge_size() -> int:
    with Netlink() as host:
        return next(link.gso for link in host.links() if link.kind == "bridge")


def test_pods_pieces_of_tcp_follow_the_nodes_ways_out(bench: Bench) -> None:
    with Netlink() as host:
        if not host.require("lo").gso:
            pytest.skip("this kernel has no gso_ipv4_max_size (it needs 6.3)")
    bench.keeper.bring_up("10.244.3.0/24")
    add, large, usual = bench.network.invoker.add, (GSO_LARGE, GSO_LARGE), (GSO_USUAL, GSO_USUAL)
    shaped = (GSO_USUAL, GSO_LARGE)
    limits = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}
    with Namespace() as pod, Namespace() as slow, Namespace() as later, Namespace() as client:
        add("a", pod.path)
        add("slow", slow.path, capabilities=limits)
        assert (sizes(pod), sizes(slow)) == (large, shaped)
        assert bridge_size() == GSO_LARGE
        network_lab.uplink(client)
        assert bench.look() is None
        add("b", later.path)
        assert [sizes(each) for each in (pod, slow, later)] == [usual] * 3
        assert bridge_size() == GSO_USUAL
        with Netlink() as host:
            host.delete_link("uplink0")
        assert bench.look() is None
        assert [sizes(each) for each in (pod, slow, later)] == [large, shaped, large]
        assert bridge_size() == GSO_LARGE
        bench.network.invoker.check("a", pod.path)
        # An agent that starts finds pods of another's making.
        NodeNetwork(bench.paths, gso=131072).start(
            python=sys.executable, pod_cidr="10.244.3.0/24", **CLUSTER
        )
        asked = (131072, 131072)
        assert [sizes(each) for each in (pod, slow, later)] == [asked, (GSO_USUAL, 131072), asked]


def kept_addresses() -> list[str]:
    """Destinations towards which pods keep their address, as the kernel has them."""
    done = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True)
    words = [line.split() for line in done.stdout.splitlines() if "CNI-MASQ-" in line and "RETURN" in line]
    return [line[line.index("-d") + 1] for line in words]


def test_pods_keep_their_address_towards_nodes_that_know_the_way_back(bench: Bench) -> None:
    bench.keeper.know(("192.0.2.11/32",))
    bench.keeper.bring_up("10.244.3.0/24")
    with Namespace() as pod:
        bench.network.invoker.add("a", pod.path)
        assert "192.0.2.11/32" in kept_addresses()
        bench.keeper.know(("192.0.2.12/32",))
        assert "192.0.2.12/32" in kept_addresses() and "192.0.2.11/32" not in kept_addresses()
        bench.network.invoker.check("a", pod.path)
        bench.network.invoker.delete("a", pod.path)
