"""A slow cable on the real kernel: what goes through it arrives whole, in pieces as large as were sent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import network_lab
import pytest
from network_lab import Namespace
from segments_lab import SIZE, Sink, Watch, deliver

from cni.netlink import Netlink
from cni.rtnetlink import new_address, new_bridge, new_veth, set_link
from kubelet_py.cli.lab import relay
from runtime.linux import LinuxKernel

pytestmark = pytest.mark.privileged

ADDRESSES = {"slow": "192.0.2.1", "quick": "192.0.2.2"}
Machines = dict[str, Namespace]


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines at a switch, which is the present namespace; a relay without delay at "slow"."""
    with network_lab.node(), Netlink() as switch:
        if not switch.require("lo").gso:
            pytest.skip("this kernel has no gso_ipv4_max_size (it needs 6.3)")
        switch.batch([new_bridge("lab0")])
        for name in ("iptables", "ip6tables", "arptables"):
            file = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
            if file.exists():
                file.write_text("0")
        bridge = switch.require("lab0").index
        made = {name: Namespace() for name in ADDRESSES}
        for name, place in made.items():
            master = bridge if name == "quick" else 0
            pair = new_veth(name, peer="eth0", peer_netns=place.fd, master=master, gso=SIZE)
            switch.batch([pair])
            with place.netlink() as inside:
                index = inside.require("eth0").index
                up = [set_link(1, up=True), set_link(index, up=True)]
                inside.batch([*up, new_address(index, f"{ADDRESSES[name]}/24")])
        child = fork_relay()
        switch.batch([set_link(switch.require("slow-slow").index, up=True, master=bridge)])
        yield made
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for place in made.values():
            place.close()


def fork_relay() -> int:
    """A process, as in a lab: in a thread of this one it would wait for the others' turns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            port, wire = relay.make_port("slow-slow", LinuxKernel()), relay.Plug("slow")
            os.write(writer, b"ready")
            relay.run(wire, port, 0.0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        assert pipe.read(5) == b"ready"
    return child


@pytest.mark.parametrize(("sender", "taker"), [("slow", "quick"), ("quick", "slow")])
def test_large_pieces_pass_a_slow_cable_whole(machines: Machines, sender: str, taker: str) -> None:
    with closing(Sink(machines[taker], 8080)), Watch(machines[taker], "eth0") as watch:
        deliver(machines[sender], ADDRESSES[taker], 8080, watch, beyond=3 << 15, least=4 << 20)


def test_a_port_goes_with_its_plug_and_may_be_made_anew_before(machines: Machines) -> None:
    with Netlink() as switch:
        old = switch.require("slow-slow").index
        port = relay.make_port("slow-slow", LinuxKernel())
        assert switch.require("slow-slow").index != old
        assert switch.link(relay.FAR) is None, "its other end is elsewhere"
        assert switch.require("slow").gso == switch.require("slow-slow").gso == SIZE
        port.close()
