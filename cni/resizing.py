"""Another size of TCP pieces (veth.parse_gso) for a pair that stands.

Both ends have it, for what an end does not take is cut to the MTU before it, by the node's processors: of two
pods with different sizes, one would send to the other more slowly than with the smaller. A socket asks its
device when it connects, so connections that are open keep what they have.
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


def resize(host: Netlink, netns: str, ifname: str, size: int) -> None:
    """Both ends of the pair whose far one is `ifname` in the namespace at `netns`, if that is still there.
    Raises NetlinkError."""
    with left_behind(netns) as descriptor:
        if descriptor is None:
            return
        with Netlink(descriptor) as inside:
            far = inside.link(ifname)
            near = host.link(far.peer) if far is not None and far.kind == "veth" and far.peer else None
            if far is not None and near is not None and near.peer == far.index:
                inside.batch([set_link(far.index, gso=size)])
                host.batch([set_link(near.index, gso=size)])
