"""ptp on the real kernel: a pod whose only neighbour is the host, in both families."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach, addresses_of, leases, nat_rules
from network_lab import Namespace, Server, ask, uplink

from cni.errors import CniError, NetlinkError, PluginFailure
from cni.netlink import Netlink
from cni.ptp import Ptp
from cni.rtnetlink import Message
from cni.types import Request

pytestmark = pytest.mark.privileged


def ptp(tmp_path: Path, **more: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd08::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": str(tmp_path / "leases")}
    return {"type": "ptp", "ipam": ipam, **more}


def test_pods_reach_each_other_by_the_host_and_are_masqueraded_outside(
    attach: Attach, tmp_path: Path
) -> None:
    invoker = attach(ptp(tmp_path, ipMasq=True, mtu=1400))
    with Namespace() as a, Namespace() as b, Namespace() as outside:
        uplink(outside, node_ip6="2001:db8::1", client_ip6="2001:db8::2")
        first, second = invoker.add("a", a.path), invoker.add("b", b.path)
        assert addresses_of(first) == ["10.8.0.2", "fd08::2"]
        near, far = first.interfaces
        assert (far.name, far.sandbox, far.mtu) == ("eth0", a.path, 1400)
        assert near.sandbox == "" and first.ips[0].interface == 1
        servers = [Server("b", b, 80), Server("b", b, 80, address="::")]
        servers += [Server("out", outside, 80), Server("out", outside, 80, address="::")]
        try:
            for own, other in zip(addresses_of(first), addresses_of(second), strict=True):
                assert a.ask(other, 80) == f"b {own}"
            assert ask("10.8.0.3", 80) == "b 10.8.0.1"
            assert a.ask("192.0.2.2", 80) == "out 192.0.2.1"
            assert a.ask("2001:db8::2", 80) == "out 2001:db8::1"
        finally:
            for server in servers:
                server.close()
        with a.netlink() as inside:
            # No route of the kernel's to the subnet: everything goes by the host.
            by = {r.dst: r.gateway for r in inside.routes()}
            assert by == {"0.0.0.0/0": "10.8.0.1", "10.8.0.1/32": "", "10.8.0.0/24": "10.8.0.1"}
        invoker.check("a", a.path)
        invoker.delete("a", a.path)
        invoker.delete("a", a.path)
        invoker.delete("b", b.path)
        assert leases(tmp_path / "leases/net") == []
        with Netlink() as host:
            assert [link.name for link in host.links() if link.alias.startswith("cni:")] == []
            assert [r.dst for r in host.routes() if r.dst.startswith("10.8.")] == []
    invoker.tear_down()
    for tool in ("iptables", "ip6tables"):
        assert "CNI-" not in nat_rules(tool)


@pytest.mark.parametrize("broken", ["route", "inner route", "address"])
def test_check_notices_what_is_gone(attach: Attach, tmp_path: Path, broken: str) -> None:
    invoker = attach(ptp(tmp_path))
    with Namespace() as pod:
        near = invoker.add("a", pod.path).interfaces[0].name
        invoker.check("a", pod.path)
        with Netlink() as host, pod.netlink() as inside:
            if broken == "route":
                assert host.delete_route("10.8.0.2/32", dev=near)
            elif broken == "inner route":
                assert inside.delete_route("0.0.0.0/0", dev="eth0")
            else:
                words = ["nsenter", f"--net={pod.path}", "ip", "-6", "addr", "flush", "dev", "eth0"]
                subprocess.run([*words, "scope", "global"], check=True)
        with pytest.raises(PluginFailure):
            invoker.check("a", pod.path)


def test_an_address_is_reused_while_the_former_owners_link_lingers(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(ptp(tmp_path))
    with Namespace() as old, Namespace() as new:
        invoker.add("old", old.path)
        for name in ("10.8.0.2", "fd08::2", "last_reserved_ip.0", "last_reserved_ip.1"):
            (tmp_path / "leases/net" / name).unlink()
        invoker.add("new", new.path)
        for address, bind in (("10.8.0.2", "0.0.0.0"), ("fd08::2", "::")):
            server = Server("new", new, 80, address=bind)
            try:
                assert ask(address, 80).startswith("new ")
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


@pytest.mark.parametrize("step", [1, 2, 3])
def test_add_that_fails_at_any_step_leaves_nothing(
    step: int, node: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cni.host_local import HostLocal

    Failing.left = step
    monkeypatch.setattr("cni.wiring.Netlink", Failing)
    local = HostLocal()
    plugin = Ptp(lambda _kind, r: local.add(r) if r.command == "ADD" else local.delete(r))
    config = {"cniVersion": "1.1.0", "name": "net", **ptp(tmp_path)}
    with Namespace() as pod:
        with pytest.raises(CniError, match="obey the test"):
            plugin.add(Request("ADD", config, "a", pod.path, "eth0"))
        Failing.left = 0
        assert leases(tmp_path / "leases/net") == []
        with Netlink() as host, pod.netlink() as inside:
            assert [link.name for link in host.links()] == ["lo"]
            assert inside.link("eth0") is None
            assert [r.dst for r in host.routes(family=socket.AF_INET)] == []


def test_ptp_without_ipam_is_refused(attach: Attach) -> None:
    with Namespace() as pod, pytest.raises(CniError, match="without ipam") as caught:
        attach({"type": "ptp"}).add("a", pod.path)
    assert caught.value.code == 7
