"""A pod's wiring on the real kernel: ADD, CHECK, DEL, and what is left after each failure."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from network_lab import Namespace, Server, ask, uplink

from cni.bridge import Bridge
from cni.errors import AddressesExhausted, CniError, InvalidConfig, NetlinkError, PluginFailure
from cni.host_local import HostLocal
from cni.invoke import Invoker
from cni.masquerade import Masquerade
from cni.netlink import Netlink
from cni.rtnetlink import Message, del_address
from cni.types import Request

pytestmark = pytest.mark.privileged


def leases(tmp_path: Path) -> list[str]:
    folder = tmp_path / "leases/kubelet-py"
    return sorted(name for name in os.listdir(folder) if name[0].isdigit()) if folder.exists() else []


def veths() -> list[str]:
    with Netlink() as netlink:
        return [link.name for link in netlink.links() if link.kind == "veth"]


def settle_veths(expected: list[str]) -> None:
    # A dropped namespace takes its links along within an RCU grace period.
    gone = threading.Event()
    for _ in range(3000):
        if veths() == expected:
            return
        gone.wait(0.02)
    assert veths() == expected


def test_two_pods_and_the_node_reach_each_other_without_nat(invoker: Invoker) -> None:
    with Namespace() as a, Namespace() as b:
        first = invoker.add("a" * 64, a.path)
        second = invoker.add("b" * 64, b.path)
        a_ip, b_ip = (str(ipaddress.ip_interface(r.ips[0].address).ip) for r in (first, second))
        server = Server("b", b, 80)
        try:
            assert a.ask(b_ip, 80) == f"b {a_ip}"
            assert ask(b_ip, 80) == "b 10.244.1.1"
            node = Server("node", None, 8080)
            try:
                assert a.ask("10.244.1.1", 8080) == f"node {a_ip}"
            finally:
                node.close()
        finally:
            server.close()


def test_add_leaves_the_callers_namespace_alone(invoker: Invoker) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    with Namespace() as pod:
        invoker.add("a", pod.path)
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_result_names_bridge_both_ends_and_the_address(invoker: Invoker) -> None:
    with Namespace() as pod:
        result = invoker.add("a", pod.path)
        bridge, near, far = result.interfaces
        assert (bridge.name, far.name, far.sandbox) == ("kpy0", "eth0", pod.path)
        assert result.ips[0].address == "10.244.1.2/24"
        assert result.ips[0].gateway == "10.244.1.1"
        assert result.ips[0].interface == 2
        with Netlink() as host, pod.netlink() as inside:
            assert host.require(near.name).hairpin
            assert host.require(near.name).master == host.require("kpy0").index
            assert host.require(near.name).mac == near.mac
            eth0 = inside.require("eth0")
            assert (eth0.mac, eth0.up) == (far.mac, True)
            assert inside.require("lo").up
            assert [r.gateway for r in inside.routes() if r.dst == "0.0.0.0/0"] == ["10.244.1.1"]


def test_only_what_leaves_the_pod_networks_is_masqueraded(invoker: Invoker) -> None:
    with Namespace() as pod, Namespace() as outside:
        uplink(outside)
        with outside.netlink() as far:
            far.add_route("10.244.0.0/16", gw="192.0.2.1")
        result = invoker.add("a", pod.path)
        own = str(ipaddress.ip_interface(result.ips[0].address).ip)
        servers = [Server("outside", outside, 80)]
        try:
            assert pod.ask("192.0.2.2", 80) == "outside 192.0.2.1"
            with outside.netlink() as far:
                from cni.rtnetlink import new_address

                far.batch([new_address(far.require("eth0").index, "10.244.9.9/32")])
            with Netlink() as host:
                host.add_route("10.244.9.0/24", gw="192.0.2.2")
            assert pod.ask("10.244.9.9", 80) == f"outside {own}"
        finally:
            for server in servers:
                server.close()


def test_second_add_is_refused_and_the_first_interface_stays(invoker: Invoker, tmp_path: Path) -> None:
    with Namespace() as pod:
        first = invoker.add("a", pod.path)
        with pytest.raises(InvalidConfig, match="attached already"):
            invoker.add("a", pod.path)
        with pytest.raises(NetlinkError, match="EEXIST"):
            invoker.add("other", pod.path)
        invoker.check("a", pod.path)
        assert leases(tmp_path) == [str(ipaddress.ip_interface(first.ips[0].address).ip)]


def test_delete_twice_and_of_an_unknown_container_is_fine(invoker: Invoker, tmp_path: Path) -> None:
    with Namespace() as pod:
        invoker.add("a", pod.path)
        invoker.delete("a", pod.path)
        invoker.delete("a", pod.path)
        invoker.delete("never-seen", None)
        assert veths() == []
        assert leases(tmp_path) == []
        assert os.listdir(tmp_path / "cache/results") == []


def test_delete_after_the_namespace_is_gone_frees_the_address(invoker: Invoker, tmp_path: Path) -> None:
    pod = Namespace()
    path = pod.path
    invoker.add("a", path)
    pod.close()
    invoker.delete("a", path)
    assert leases(tmp_path) == []
    settle_veths([])


def test_delete_with_a_reused_pid_never_touches_another_namespace(invoker: Invoker) -> None:
    with Namespace() as pod, Namespace() as other:
        invoker.add("a", pod.path)
        invoker.add("b", other.path)
        invoker.delete("a", other.path)
        invoker.check("b", other.path)
        invoker.delete("never-seen", "/proc/self/ns/net")
        with Netlink() as host:
            assert host.link("kpy0") is not None


def test_a_new_invoker_deletes_what_an_old_one_added(
    invoker: Invoker, network: Path, own_bin: Path, tmp_path: Path
) -> None:
    with Namespace() as pod:
        invoker.add("a", pod.path)
        for file in network.iterdir():
            file.unlink()
        again = Invoker(
            config_dir=network, bin_dirs=[own_bin], cache_dir=tmp_path / "cache", own_bin_dir=own_bin
        )
        again.delete("a", pod.path)
        assert leases(tmp_path) == []


def test_check_notices_a_missing_address(invoker: Invoker) -> None:
    with Namespace() as pod:
        result = invoker.add("a", pod.path)
        invoker.check("a", pod.path)
        with pod.netlink() as inside:
            inside.batch([del_address(inside.require("eth0").index, result.ips[0].address)])
        with pytest.raises(PluginFailure, match=r"10\.244\.1\.2/24"):
            invoker.check("a", pod.path)


def test_leftover_of_the_addresss_former_owner_is_replaced(invoker: Invoker, tmp_path: Path) -> None:
    with Namespace() as old, Namespace() as new:
        invoker.add("old", old.path)
        # The lease is gone but the link is not, as when the kernel is slow to clean up.
        (tmp_path / "leases/kubelet-py/10.244.1.2").unlink()
        (tmp_path / "leases/kubelet-py/last_reserved_ip.0").unlink()
        result = invoker.add("new", new.path)
        assert result.ips[0].address == "10.244.1.2/24"
        server = Server("new", new, 80)
        try:
            assert ask("10.244.1.2", 80) == "new 10.244.1.1"
        finally:
            server.close()


class Failing(Netlink):
    """Refuses to run the n-th batch of the whole test."""

    left = 0

    def batch(self, messages: list[Message]) -> None:  # type: ignore[override]
        type(self).left -= 1
        if type(self).left == 0:
            raise NetlinkError("obey the test", 5)
        super().batch(messages)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 99])
def test_add_that_fails_at_any_step_leaves_nothing(
    step: int, node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Failing.left = step
    monkeypatch.setattr("cni.wiring.Netlink", Failing)
    monkeypatch.setattr("cni.masquerade.Iptables", Refusing)
    local = HostLocal()
    plugin = Bridge(
        lambda _kind, request: local.add(request) if request.command == "ADD" else local.delete(request)
    )
    config = {
        "cniVersion": "1.1.0",
        "name": "kubelet-py",
        "type": "bridge",
        "bridge": "kpy0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "subnet": "10.244.1.0/24", "dataDir": str(tmp_path / "leases")},
    }
    with Namespace() as pod:
        with pytest.raises(CniError):
            plugin.add(Request("ADD", config, "a", pod.path, "eth0"))
        Failing.left = 0
        assert veths() == []
        assert leases(tmp_path) == []
        with pod.netlink() as inside:
            assert inside.link("eth0") is None


def test_an_address_that_does_not_reach_the_disk_is_not_handed_out(node: None, tmp_path: Path) -> None:
    wired = threading.Event()

    def sync(_handle: int) -> None:
        wired.wait(30)
        raise OSError(errno.EIO, "Input/output error")

    class Keeper(Masquerade):
        def ensure(self, *_: object, **__: object) -> None:
            wired.set()  # the last step but waiting for the disk

    local = HostLocal(sync)
    plugin = Bridge(
        lambda _kind, request: local.add(request) if request.command == "ADD" else local.delete(request),
        masquerade=Keeper(),
    )
    ipam = {"type": "host-local", "subnet": "10.244.1.0/24", "dataDir": str(tmp_path / "leases")}
    config = {"cniVersion": "1.1.0", "name": "kubelet-py", "type": "bridge", "bridge": "kpy0", "ipam": ipam}
    with Namespace() as pod:
        with pytest.raises(CniError, match="Could not reserve"):
            plugin.add(Request("ADD", config | {"ipMasq": True}, "a", pod.path, "eth0"))
        assert wired.is_set()
        assert veths() == []
        assert leases(tmp_path / "leases/kubelet-py") == []
        with pod.netlink() as inside:
            assert inside.link("eth0") is None


class Refusing:
    def __init__(self, version: int = 4) -> None:
        pass

    def has_rule(self, *_: object) -> bool:
        raise PluginFailure("Could not obey the test")


def test_exhausted_range_says_so_and_a_freed_address_serves_again(node: None, tmp_path: Path) -> None:
    local = HostLocal()
    ipam = {"type": "host-local", "subnet": "10.9.0.0/29", "dataDir": str(tmp_path)}
    config = {"cniVersion": "1.1.0", "name": "small", "ipam": ipam}
    for n in range(5):
        local.add(Request("ADD", config, f"c{n}", "x", "eth0"))
    with pytest.raises(AddressesExhausted):
        local.add(Request("ADD", config, "late", "x", "eth0"))
    local.delete(Request("DEL", config, "c3", "x", "eth0"))
    assert local.add(Request("ADD", config, "late", "x", "eth0")).ips[0].address == "10.9.0.5/29"


def test_thirty_pods_at_once_get_thirty_addresses_and_leave_nothing(invoker: Invoker, tmp_path: Path) -> None:
    pods = [Namespace() for _ in range(30)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: invoker.add(f"c{n}", pods[n].path), range(30)))
        assert len({r.ips[0].address for r in results}) == 30
        rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True).stdout
        assert rules.count("-A POSTROUTING") == 1
        for pod in pods:
            pod.close()
        list(pool.map(lambda n: invoker.delete(f"c{n}", None), range(30)))
    assert leases(tmp_path) == []
    settle_veths([])


def test_tear_down_removes_bridge_and_rules(invoker: Invoker) -> None:
    invoker.prepare()
    with Netlink() as host:
        assert "10.244.1.1/24" in [a.address for a in host.addresses(host.require("kpy0").index)]
    rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True).stdout
    assert "CNI-MASQ" in rules
    invoker.tear_down()
    rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True).stdout
    assert "CNI-" not in rules
    with Netlink() as host:
        assert host.link("kpy0") is None


def test_masquerade_rules_that_were_flushed_come_back_on_verify(node: None) -> None:
    keeper = Masquerade()
    keeper.ensure("n", "10.1.0.0/24", ["10.0.0.0/8"])
    subprocess.run(["iptables", "-t", "nat", "-F"], check=True)
    keeper.ensure("n", "10.1.0.0/24", ["10.0.0.0/8"], verify=True)
    rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True).stdout
    assert rules.count("-A POSTROUTING") == 1
    assert "-d 10.0.0.0/8 -j RETURN" in rules
    keeper.remove("n", "10.1.0.0/24")
    rules = subprocess.run(["iptables", "-t", "nat", "-S"], capture_output=True, text=True, check=True).stdout
    assert "CNI-" not in rules


def test_gc_frees_leases_of_unknown_containers_only(invoker: Invoker, tmp_path: Path) -> None:
    with Namespace() as pod, Namespace() as other:
        invoker.add("keep", pod.path)
        invoker.add("drop", other.path)
        (tmp_path / "leases/kubelet-py/10.244.1.77").write_text("crashed\r\neth0")
        invoker.gc([("keep", "eth0")])
        assert leases(tmp_path) == ["10.244.1.2"]
        invoker.check("keep", pod.path)
        with contextlib.suppress(CniError):
            invoker.delete("keep", pod.path)
