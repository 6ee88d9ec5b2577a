"""Another size of TCP pieces (veth.parse_gso) for what stands: pods' pairs, and their bridge.

Both ends of a pair have it, for what a device does not take is cut to the MTU before it, by the node's
processors: of two pods with different sizes, one would send to the other more slowly than with the smaller.
The bridge itself is such a device for what is routed to pods, from the node or from other nodes; what goes
from port to port never meets it. A socket asks its device when it connects, so connections that are open keep
what they have.
"""

from __future__ import annotations

from cni.netlink import Netlink
from cni.netns import left_behind
from cni.rtnetlink import set_link
from cni.veth import network_mark


def others(host: Netlink, network: str, size: int) -> set[str]:
    """The containers whose pair in a network has another size; none on a kernel that knows no sizes."""
    mark = network_mark(network)
    ends = [link for link in host.links() if link.alias.startswith(mark)]
    return {link.alias.removeprefix(mark) for link in ends if link.gso not in (0, size)}


def resize(host: Netlink, netns: str, ifname: str, *, near: int, far: int) -> None:
    """Both ends of the pair whose far one is `ifname` in the namespace at `netns`, if that is still there.
    Raises NetlinkError."""
    with left_behind(netns) as descriptor:
        if descriptor is None:
            return
        with Netlink(descriptor) as inside:
            there = inside.link(ifname)
            if there is None or there.kind != "veth" or not there.peer:
                return
            here = host.link(there.peer)
            if here is not None and here.peer == there.index:
                inside.batch([set_link(there.index, gso=far)])
                host.batch([set_link(here.index, gso=near)])


def resize_bridge(host: Netlink, name: str, size: int) -> None:
    """The bridge, if there is one, as far as its ports allow. Raises NetlinkError."""
    bridge = host.link(name)
    if bridge is not None and bridge.gso not in (0, allowed := min(size, bridge.gso_most)):
        host.batch([set_link(bridge.index, gso=allowed)])
