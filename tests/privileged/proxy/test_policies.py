"""NetworkPolicies on real packets: three pods on one bridge, a client on the uplink, the node itself."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_lab
import pytest
from network_lab import Namespace, Server, ask, pod_network, uplink

from cni.netlink import Netlink
from kubelet_py.cli.inspect_nft import pod_policies
from kubelet_py.node import routes
from proxy.nfnetlink import NfTables
from proxy.nfobjects import delete_table, flush_chain
from proxy.policy.enforcer import LOOK, Enforcer, clean_up
from proxy.policy.gate import Gate
from proxy.policy.rules import NO_SERVER
from proxy.policy.table import TABLE
from proxy.policy.world import World
from proxy.proxier import bridge_netfilter_problem

pytestmark = pytest.mark.privileged

NODE = {
    "metadata": {"name": "n1"},
    "spec": {"podCIDRs": ["10.244.1.0/24"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


class Lab:
    """Pods a, b and c with TCP servers on 80 and 81 and a UDP one on 80, and an enforcer synced by hand."""

    def __init__(self, folder: Path) -> None:
        self.invoker = pod_network(folder)
        self.client = Namespace()
        uplink(self.client)
        routes.prepare_kernel(folder / "sysctls.json")
        self.invoker.prepare()
        self.world = World()
        self.now = 0.0
        self.enforcer = Enforcer(self.world, "n1", lambda: True, list, clock=lambda: self.now)
        self.world.node_event("ADDED", NODE)
        self.world.namespace_event("ADDED", {"metadata": {"name": "x", "labels": {"team": "x"}}})
        self.pods: dict[str, Namespace] = {}
        self.ips: dict[str, str] = {}
        self.servers: list[Server] = []
        for name in "abc":
            self.attach(name)
            self.tell(name)
            self.serve(name)
        with self.client.netlink() as netlink:
            netlink.add_route("10.244.1.0/24", gw="192.0.2.1")
        self.servers.append(Server("client", self.client, 80))

    def attach(self, name: str) -> None:
        self.pods[name] = Namespace()
        result = self.invoker.add(f"pod-{name}", self.pods[name].path)
        self.ips[name] = result.ips[0].address.split("/")[0]

    def serve(self, name: str) -> None:
        for port in (80, 81):
            self.servers.append(Server(name, self.pods[name], port))
        self.servers.append(Server(name, self.pods[name], 80, udp=True))

    def tell(self, name: str) -> None:
        """What the API says of a pod once its address is known there."""
        meta = {"namespace": "x", "name": name, "uid": f"uid-{name}", "labels": {"pod": name}}
        status = {"phase": "Running", "podIP": self.ips[name]}
        self.world.pod_event("ADDED", {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status})

    def policy(self, name: str = "p", kind: str = "ADDED", **spec: Any) -> None:
        body = {"metadata": {"namespace": "x", "name": name}, "spec": {"podSelector": {}, **spec}}
        self.world.policy_event(kind, body)
        self.enforcer.sync()

    def reaches(self, sender: str, receiver: str, port: int = 80, *, udp: bool = False) -> bool:
        address = {"client": "192.0.2.2", "node": "192.0.2.1"}.get(receiver) or self.ips[receiver]
        try:
            if sender == "node":
                return bool(ask(address, port))
            space = self.client if sender == "client" else self.pods[sender]
            kind = network_lab.socket.SOCK_DGRAM if udp else network_lab.socket.SOCK_STREAM
            channel = space.socket(kind)
            channel.settimeout(0.4)
            with channel:
                channel.connect((address, port))
                if udp:
                    channel.send(b"?")
                return bool(channel.recv(100))
        except OSError:
            return False

    def matrix(self, port: int = 80) -> set[str]:
        """ "ab" for each pair of which the first reaches the second."""
        return {s + r for s in "abc" for r in "abc" if self.reaches(s, r, port)}

    def close(self) -> None:
        for server in self.servers:
            server.close()
        with NfTables() as kernel:
            clean_up(kernel)
        for name, space in self.pods.items():
            self.invoker.delete(f"pod-{name}", space.path)
            space.close()
        self.client.close()
        self.invoker.tear_down()
        with Netlink() as netlink:
            netlink.delete_link("uplink0")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with network_lab.node():
        if bridge_netfilter_problem():
            Path("/proc/sys/net/bridge/bridge-nf-call-iptables").write_text("1")
        made = Lab(tmp_path)
        yield made
        made.close()


ALL = {s + r for s in "abc" for r in "abc"}
SELF = {"aa", "bb", "cc"}
ONLY_A = {"podSelector": {"matchLabels": {"pod": "a"}}}


def test_without_a_policy_there_is_no_table(lab: Lab) -> None:
    lab.enforcer.sync()
    assert lab.matrix() == ALL
    with NfTables() as kernel:
        assert TABLE not in kernel.tables()


def test_default_deny_of_ingress(lab: Lab) -> None:
    lab.policy(policyTypes=["Ingress"])
    assert lab.matrix() == SELF, "a pod always reaches itself"
    assert lab.reaches("node", "a"), "and its node always reaches it (probes)"
    assert not lab.reaches("client", "a")
    assert lab.reaches("a", "client"), "answers to what the pod asked come back"
    lab.policy(kind="DELETED")
    assert lab.matrix() == ALL
    with NfTables() as kernel:
        assert TABLE not in kernel.tables()


def test_default_deny_of_egress(lab: Lab) -> None:
    server = Server("node", None, 80, address="192.0.2.1")
    assert lab.reaches("a", "node")
    lab.policy(policyTypes=["Egress"])
    assert lab.matrix() == SELF
    assert not lab.reaches("a", "client") and not lab.reaches("a", "node")
    assert lab.reaches("client", "a"), "ingress is free, and answers pass"
    server.close()


def test_a_rule_allows_its_peers_and_ports_only(lab: Lab) -> None:
    lab.policy(
        **ONLY_A,
        ingress=[{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}], "ports": [{"port": 80}]}],
    )
    assert lab.matrix(80) == ALL - {"ca"}
    assert lab.matrix(81) == ALL - {"ba", "ca"}
    assert not lab.reaches("b", "a", udp=True)
    lab.policy("q", **ONLY_A, ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}])
    assert lab.reaches("c", "a", udp=True) and not lab.reaches("c", "a"), "policies add up"


def test_a_range_of_ports(lab: Lab) -> None:
    lab.policy(**ONLY_A, ingress=[{"ports": [{"port": 81, "endPort": 90}]}])
    assert not lab.reaches("b", "a", 80) and lab.reaches("b", "a", 81)


def test_blocks_and_their_exceptions(lab: Lab) -> None:
    block = {"cidr": "192.0.2.0/24", "except": ["192.0.2.2/32"]}
    lab.policy(**ONLY_A, ingress=[{"from": [{"ipBlock": block}]}])
    assert not lab.reaches("client", "a")
    lab.policy(**ONLY_A, ingress=[{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}])
    assert lab.reaches("client", "a") and not lab.reaches("b", "a")


def test_a_new_pod_is_silent_until_it_has_been_judged(lab: Lab) -> None:
    """Already its first packet is dropped: the policy holds before the API knows the address."""
    lab.policy("other", podSelector={"matchLabels": {"pod": "nobody"}}, policyTypes=["Ingress"])
    assert lab.matrix() == ALL
    lab.attach("d")
    lab.serve("d")
    assert not lab.reaches("d", "a") and not lab.reaches("a", "d")
    lab.tell("d")
    lab.enforcer.sync()
    assert lab.reaches("d", "a") and lab.reaches("a", "d")


def test_a_connection_that_a_policy_comes_to_forbid_is_cut(lab: Lab) -> None:
    server = lab.pods["a"].socket()
    client = lab.pods["b"].socket()
    with server, client:
        server.bind((lab.ips["a"], 9000))
        server.listen()
        client.connect((lab.ips["a"], 9000))
        accepted, _ = server.accept()
        with accepted:
            client.send(b"before")
            accepted.settimeout(5)
            assert accepted.recv(100) == b"before"
            lab.policy(policyTypes=["Ingress"])
            client.send(b"after")
            accepted.settimeout(0.5)
            with pytest.raises(TimeoutError):
                accepted.recv(100)
            lab.policy(kind="DELETED")
            accepted.settimeout(10)
            assert accepted.recv(100) == b"after", "TCP tries again"


def test_an_address_that_goes_and_comes_back_to_another_pod(lab: Lab) -> None:
    lab.policy(**ONLY_A, policyTypes=["Ingress"])
    assert not lab.reaches("b", "a")
    gone = {"metadata": {"namespace": "x", "name": "a", "uid": "uid-a"}}
    lab.world.pod_event("DELETED", gone)
    lab.enforcer.sync()
    assert not lab.reaches("b", "a"), "nobody's address now: dropped"
    meta = {"namespace": "x", "name": "new", "uid": "uid-new", "labels": {"pod": "new"}}
    status = {"phase": "Running", "podIP": lab.ips["a"]}
    lab.world.pod_event("ADDED", {"metadata": meta, "spec": {"nodeName": "n1"}, "status": status})
    lab.enforcer.sync()
    assert lab.reaches("b", "a"), "the new owner is not selected"


@pytest.mark.parametrize("harm", ["table", "chain"])
def test_what_others_break_is_written_anew(lab: Lab, harm: str) -> None:
    lab.policy(policyTypes=["Ingress"])
    with NfTables() as kernel:
        kernel.commit([delete_table(TABLE) if harm == "table" else flush_chain(TABLE, "forward")])
    assert lab.matrix() == ALL
    lab.now += LOOK
    said = lab.enforcer.sync()
    assert "full" in said and lab.matrix() == SELF
    assert lab.enforcer.sync() == "", "and then there is nothing to do"


def test_a_new_process_takes_over_without_a_moment_unguarded(lab: Lab) -> None:
    lab.policy(policyTypes=["Ingress"])
    stopped = Enforcer(lab.world, "n1", lambda: False, list, server=NO_SERVER)
    assert stopped.sync() == "", "before the policies are known what is there holds"
    assert lab.matrix() == SELF
    again = Enforcer(lab.world, "n1", lambda: True, list)
    assert "full" in again.sync() and lab.matrix() == SELF


def test_after_a_boot_pods_are_silent_until_the_policies_are_known(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "state/policies.json"
    lab.enforcer = Enforcer(lab.world, "n1", lambda: True, list, gate=Gate(file))
    lab.policy(**ONLY_A, policyTypes=["Ingress"])
    chosen = lab.matrix()
    assert chosen == ALL - {"ba", "ca"}
    assert not Gate(file).close(), "the table of a former life holds"
    assert lab.matrix() == chosen
    with NfTables() as kernel:
        kernel.commit([delete_table(TABLE)])  # what a boot leaves of it
    assert Gate(file).close()
    assert lab.matrix() == SELF, "nobody has been judged"
    assert ask(lab.ips["a"], 80).startswith("a "), "the node reaches its pods all the while"
    again = Enforcer(lab.world, "n1", lambda: False, list, gate=Gate(file))
    assert again.sync() == "" and lab.matrix() == SELF
    again = Enforcer(lab.world, "n1", lambda: True, list, gate=Gate(file))
    assert "full" in again.sync() and lab.matrix() == chosen
    lab.enforcer = again
    lab.policy(kind="DELETED")
    assert not file.exists() and lab.matrix() == ALL
    assert not Gate(file).close() and lab.matrix() == ALL, "a cluster without policies waits for nothing"


@pytest.mark.parametrize("text", ["", "{}", '{"podCIDRs": 5}', "[1]"])
def test_a_file_that_says_nothing_is_told_and_keeps_nobody_silent(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policies.json"
    file.write_text(text)
    assert not Gate(file).close()
    assert "Failed to read whether there were policies" in caplog.text


class Watch:
    """In place of the informers of pods and namespaces."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


def test_pods_are_watched_only_as_long_as_there_is_a_policy(lab: Lab) -> None:
    watches: list[Watch] = []

    def more() -> list[Any]:
        watches.append(Watch())
        for name in "abc":
            lab.tell(name)
        return [watches[-1]]

    lab.enforcer = Enforcer(lab.world, "n1", lambda: True, more)
    assert lab.enforcer.sync() == "" and watches == []
    for _ in range(2):
        lab.policy(policyTypes=["Ingress"])
        assert lab.matrix() == SELF and not watches[-1].stopped
        lab.policy(kind="DELETED")
        assert watches[-1].stopped and lab.world.view().pods == ()
        assert lab.matrix() == ALL
    assert len(watches) == 2


def test_nft_lists_the_table(lab: Lab) -> None:
    """People look with nft: what it cannot print would take the whole listing down."""
    block = {"cidr": "192.0.2.0/24", "except": ["192.0.2.2/32"]}
    lab.policy(
        **ONLY_A,
        ingress=[{"from": [{"ipBlock": block}, {"podSelector": {}}], "ports": [{"port": 80, "endPort": 90}]}],
    )
    done = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
    assert "table inet kubelet-py-policy" in done.stdout
    assert 'comment "ingress of x/a"' in done.stdout and "tcp dport 80-90" in done.stdout


def test_many_changes_one_by_one_end_where_a_fresh_start_does(lab: Lab) -> None:
    """The incremental way and the whole way must agree, whatever the order."""
    for number in range(12):
        kind = "DELETED" if number % 4 == 3 else "ADDED"
        peers = [{"podSelector": {"matchLabels": {"pod": "abc"[number % 3]}}}]
        blocks = [{"ipBlock": {"cidr": f"192.0.{number}.0/24"}}] if number % 2 else []
        lab.policy(
            f"p{number % 4}", kind, ingress=[{"from": peers + blocks, "ports": [{"port": 80 + number % 2}]}]
        )
    before = {port: lab.matrix(port) for port in (80, 81)}
    assert before[80] not in (ALL, SELF)
    again = Enforcer(lab.world, "n1", lambda: True, list)
    again.sync()
    assert {port: lab.matrix(port) for port in (80, 81)} == before


def test_inspect_shows_a_pods_chains_with_counters(lab: Lab) -> None:
    lab.policy(**ONLY_A, ingress=[{"ports": [{"port": 81}]}])
    assert not lab.reaches("b", "a", 80)
    (chain,) = pod_policies("uid-a").values()
    assert any("tcp dport 81 return" in line for line in chain)
    assert "packets 0" not in chain[-1] and 'drop comment "ingress of x/a"' in chain[-1]
    assert pod_policies("uid-b") == {}
