"""The lab's cables: a veth pair from each machine to the switch, one from the host, and the switch's bridge.

The switch's port for a machine has the machine's name. The switch is also the machines' default gateway,
which leads nowhere: it answers "unreachable" at once, also to packets for pod and Service addresses, and
hands nothing to the host. The host has routes to those ranges by the same cable, so that it does not send
them to its own gateway. Nothing on the way needs frames cut to the MTU, so both ends of each cable take large
pieces of TCP, and nodes let their pods send them (kubelet_py/node/segments.py).
"""

from __future__ import annotations

import errno
import ipaddress
import os
from pathlib import Path

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.rtnetlink import new_address, new_bridge, new_route, new_veth, set_link
from cni.veth import GSO_LARGE
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import HOST, LabPaths
from kubelet_py.cli.lab.state import GATEWAY, HOST_NUMBER, Lab, Machine

BRIDGE = "lab0"
LO = 1
MOST_LABS = 64
HOST_METRIC = 1024  # after any route that the host has to the same range
SYSCTLS = (("net/ipv4/ip_forward", "1"), ("net/bridge/bridge-nf-call-iptables", "0"))


def make_switch(lab: Lab, link: str, host_netns: int) -> None:
    """In the switch's own network namespace: the bridge, and the cable to the host."""
    with Netlink() as netlink:
        netlink.batch([new_bridge(BRIDGE), set_link(LO, up=True)])
        bridge = netlink.require(BRIDGE).index
        netlink.batch([new_address(bridge, f"{lab.address(GATEWAY)}/{lab.prefix}")])
        netlink.batch([new_veth(HOST, peer=link, peer_netns=host_netns, master=bridge, gso=GSO_LARGE)])
    for name, value in SYSCTLS:
        file = Path("/proc/sys", name)
        if file.exists():
            file.write_text(value)


def connect_host(lab: Lab, link: str) -> None:
    """The host's end: an address on the lab's network, and the lab's ranges by way of the switch."""
    quiet = Path("/proc/sys/net/ipv6/conf", link, "disable_ipv6")
    with Netlink() as netlink:
        index = netlink.require(link).index
        if quiet.exists():
            quiet.write_text("1")
        netlink.batch(
            [new_address(index, f"{lab.address(HOST_NUMBER)}/{lab.prefix}"), set_link(index, up=True)]
        )
        for dst in (lab.cluster_cidr, lab.service_cidr):
            _route_if_free(netlink, dst, index, lab.address(GATEWAY))


def _route_if_free(netlink: Netlink, dst: str, index: int, gateway: str) -> None:
    """Behind all routes to the same range, those of another lab among them."""
    for metric in range(HOST_METRIC, HOST_METRIC + MOST_LABS):
        try:
            netlink.batch([new_route(dst, index=index, gw=gateway, metric=metric)])
            return
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
    raise LabError(f"the host has {MOST_LABS} routes to {dst} already (end other labs: kubelet-py lab down)")


def connect_machine(lab: Lab, machine: Machine, switch_netns: int) -> None:
    """In the machine's own network namespace: eth0, its other end in the switch's bridge."""
    with Netlink(switch_netns) as switch, Netlink() as own:
        switch.delete_link(machine.name)  # of an earlier boot, which the kernel may not have cleared away yet
        bridge = switch.require(BRIDGE).index
        name = machine.name
        own.batch([new_veth("eth0", peer=name, peer_netns=switch_netns, mac=machine.mac, gso=GSO_LARGE)])
        port = switch.require(machine.name).index
        switch.batch([set_link(port, up=True, master=bridge)])
        eth0 = own.require("eth0").index
        own.batch([set_link(LO, up=True), new_address(eth0, f"{lab.address(machine.number)}/{lab.prefix}")])
        own.batch([new_route("0.0.0.0/0", index=eth0, gw=lab.address(GATEWAY))])


def disconnect_host(link: str) -> None:
    with Netlink() as netlink:
        netlink.delete_link(link)


def has_link(link: str) -> bool:
    with Netlink() as netlink:
        return netlink.link(link) is not None


def check_free(lab: Lab, paths: LabPaths) -> None:
    """Raise LabError where the host has the lab's network, or something by the name of its link, already."""
    wanted = ipaddress.ip_network(lab.network)
    with Netlink() as netlink:
        if netlink.link(paths.link) is not None:
            raise LabError(
                f"there is an interface {paths.link} already (what a lab left: kubelet-py lab down)"
            )
        for route in netlink.routes():
            there = ipaddress.ip_network(route.dst)
            if there.prefixlen and there.overlaps(wanted):
                raise LabError(
                    f"the host has a route to {there} (choose another network for the lab: --network)"
                )


def open_netns(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
