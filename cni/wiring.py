"""What bridge and ptp do alike: an ADD's beginning and end, and what they leave to the IPAM plugin.

Both begin with two sockets, one in each namespace, and addresses; both must give back everything when a
later step fails; both keep masquerade rules for a network as a whole. What lies in between, the links, is
theirs.
"""

from __future__ import annotations

import contextlib

from cni import veth
from cni.errors import InvalidConfig, UnsupportedField
from cni.frozen import frozen
from cni.host_local import local_ranges
from cni.masquerade import Masquerade
from cni.netlink import Netlink
from cni.netns import opened
from cni.rtnetlink import Message, new_veth
from cni.types import Request, Result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any


@frozen
class NetworkConfig:
    """The part of a section that both plugins have."""

    name: str
    masquerade: bool
    not_masqueraded: tuple[str, ...]
    mtu: int
    gso: int
    ipam: Mapping[str, Any]

    @staticmethod
    def parse(config: Mapping[str, Any]) -> NetworkConfig:
        """Raises UnsupportedField, InvalidConfig."""
        if config.get("ipMasqBackend") not in (None, "", "iptables"):
            raise UnsupportedField("Could not accept an ipMasqBackend other than iptables")
        return NetworkConfig(
            name=str(config.get("name") or ""),
            masquerade=bool(config.get("ipMasq")),
            not_masqueraded=tuple(config.get("nonMasqueradeCIDRs") or ()),
            mtu=veth.parse_mtu(config),
            gso=veth.parse_gso(config),
            ipam=config.get("ipam") or {},
        )


@frozen
class Wiring:
    """What one ADD works with: a socket in each namespace, the container's descriptor, the addresses.

    These may be relied on once `finish` has returned.
    """

    request: Request
    host: Netlink
    inside: Netlink
    netns: int
    found: Result
    finish: Callable[[], None]

    def pair(self, ends: veth.Ends, *, mtu: int = 0, gso: int = 0, master: int = 0) -> Message:
        return new_veth(
            ends.near,
            peer=ends.far,
            peer_netns=self.netns,
            master=master,
            mtu=mtu,
            mac=ends.near_mac,
            peer_mac=ends.far_mac,
            gso=gso,
        )


class VethPlugin:
    """`delegate` runs the IPAM plugin by name; `proc` is where sysctls are found."""

    def __init__(
        self, delegate: veth.Delegate, *, masquerade: Masquerade | None = None, proc: str = "/proc"
    ) -> None:
        self._delegate = delegate
        self._masquerade = masquerade or Masquerade()
        self._proc = proc

    @contextlib.contextmanager
    def _begun(self, network: NetworkConfig, request: Request) -> Iterator[Wiring]:
        """Both namespaces opened and addresses taken, which are given back when the body fails."""
        with opened(request.netns) as netns, Netlink(netns) as inside, Netlink() as host:
            veth.require_free(request, netns, inside)
            with veth.given_back_on_failure(self._delegate, network.ipam, request):
                found, finish = Result(), veth.nothing
                if network.ipam:
                    found, finish = veth.addresses(self._delegate, network.ipam, request)
                yield Wiring(request, host, inside, netns, found, finish)

    def _end(self, network: NetworkConfig, wiring: Wiring, found: Result) -> None:
        """The last steps: the network's masquerade rules are there, and the addresses are on disk."""
        for subnet in veth.subnets(found.ips) if network.masquerade else ():
            self._masquerade.ensure(network.name, subnet, network.not_masqueraded)
        wiring.finish()

    def _leave_to_ipam(self, network: NetworkConfig, request: Request) -> None:
        """CHECK, GC or STATUS of the IPAM plugin; nothing without one."""
        if network.ipam:
            self._delegate(str(network.ipam.get("type") or ""), request)

    def _verify_masquerade(self, network: NetworkConfig) -> None:
        for r in local_ranges(network.ipam) if network.masquerade else ():
            self._masquerade.ensure(network.name, str(r.subnet), network.not_masqueraded, verify=True)

    def _remove_masquerade(self, network: NetworkConfig) -> None:
        for r in local_ranges(network.ipam) if network.masquerade else ():
            self._masquerade.remove(network.name, str(r.subnet))


def previous_of(request: Request) -> Result:
    """What ADD answered, which a CHECK must be given. Raises InvalidConfig."""
    if request.prev_result is None:
        raise InvalidConfig("Could not check: prevResult is missing")
    return request.prev_result
