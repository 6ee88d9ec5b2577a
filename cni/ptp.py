"""A veth pair per pod without a bridge: the host routes every packet between its pods.

    host       vethXXXXXXXX  <gateway>/32        route <pod>/32 dev vethXXXXXXXX
    container  eth0          <pod>/24, without the kernel's route to its subnet
                             route <gateway>/32 dev eth0, <subnet> by <gateway>, then IPAM's routes

The container has only the host as its neighbour, so two pods of one subnet cannot forge each other's frames.
Configuration keys are upstream's (ipMasq, mtu, dns, ipam) with `nonMasqueradeCIDRs` and `gsoIPv4MaxSize`
beside, as in bridge.
"""

from __future__ import annotations

import sys
from _socket import AF_INET, AF_INET6

from cni import parsed, veth
from cni.errors import InvalidConfig, PluginFailure
from cni.frozen import replace
from cni.netlink import Netlink
from cni.netns import opened
from cni.rtnetlink import Link, Message, new_address, new_route, set_link, set_port
from cni.types import IP, Interface, Request, Result
from cni.wiring import NetworkConfig, VethPlugin, Wiring, previous_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_LO = 1


class Ptp(VethPlugin):
    """The plugin."""

    def add(self, request: Request) -> Result:
        """Wire the pod; on any failure the veth pair and the addresses are given back."""
        network = _parse(request.config)
        with self._begun(network, request) as wiring:
            return self._wire(network, wiring, veth.with_gateways(wiring.found))

    def _wire(self, network: NetworkConfig, wiring: Wiring, found: Result) -> Result:
        request, host, inside = wiring.request, wiring.host, wiring.inside
        veth.enable_forwarding(self._proc, found.ips)
        ends = veth.names(request, found.ips)
        pair = wiring.pair(ends, mtu=network.mtu, gso=network.gso)
        with veth.removed_on_failure(host, ends.near):
            veth.create(host, ends.near, [pair, set_port(ends.near, alias=veth.near_alias(request))])
            near, far = host.require(ends.near), inside.require(request.ifname)
            host.batch(_host_messages(near.index, found.ips))
            inside.batch(_inner_messages(found, far.index, request.container_id))
            self._end(network, wiring, found)
        return replace(
            found,
            interfaces=(
                Interface(near.name, near.mac, mtu=near.mtu),
                Interface(far.name, far.mac, sandbox=request.netns, mtu=far.mtu),
            ),
            ips=tuple(replace(ip, interface=1) for ip in found.ips),
            dns=veth.chosen_dns(request.config, found),
        )

    def delete(self, request: Request) -> None:
        """Remove the pod's interface, if its namespace is still there, and free its addresses."""
        network = _parse(request.config)
        veth.delete_inside(request)
        veth.release(self._delegate, network.ipam, request)

    def check(self, request: Request) -> None:
        """Raise PluginFailure when kernel and prevResult disagree."""
        network, previous = _parse(request.config), previous_of(request)
        self._leave_to_ipam(network, request)
        with Netlink() as host, opened(request.netns) as netns, Netlink(netns) as inside:
            far = veth.check_inside(request, previous, inside)
            _check_host(previous, host, host.link(far.peer) if far.peer else None)

    def gc(self, request: Request) -> None:
        """Links and host routes die with the namespaces; only the addresses need collecting."""
        self._leave_to_ipam(_parse(request.config), request)

    def status(self, request: Request) -> None:
        """Ready when IPAM is."""
        self._leave_to_ipam(_parse(request.config), request)

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Put the masquerade rules in place, or repair them, before the first pod."""
        self._verify_masquerade(_parse(config))

    def tear_down(self, config: Mapping[str, Any]) -> None:
        """Remove the masquerade rules of a network."""
        self._remove_masquerade(_parse(config))


def _parse(config: Mapping[str, Any]) -> NetworkConfig:
    if not config.get("ipam"):
        raise InvalidConfig("Could not use ptp without ipam: every pod needs an address and a gateway")
    return NetworkConfig.parse(config)


def _host_messages(index: int, ips: Sequence[IP]) -> list[Message]:
    messages: list[Message] = []
    for ip in ips:
        length = parsed.interface(ip.address).max_prefixlen
        messages.append(new_address(index, f"{ip.gateway}/{length}", prefix_route=False))
        # Replaced: the route of the address's former owner goes only when the kernel removes its link.
        messages.append(new_route(_alone(ip.address), index=index, replace=True))
    return messages


def _inner_messages(found: Result, index: int, owner: str) -> list[Message]:
    # The alias is how DEL knows the link for the container's own.
    messages = [set_link(_LO, up=True), set_link(index, up=True, alias=owner)]
    for ip in found.ips:
        source, gateway = str(parsed.interface(ip.address).ip), _alone(ip.gateway)
        subnet = str(parsed.interface(ip.address).network)
        messages.append(new_address(index, ip.address, prefix_route=False))
        messages.append(new_route(gateway, index=index, source=source))
        if parsed.interface(ip.address).network.num_addresses > 1:
            messages.append(new_route(subnet, index=index, gw=ip.gateway, source=source))
    return messages + [veth.route_message(route, index, found.ips) for route in found.routes]


def _alone(address: str) -> str:
    """The prefix that holds this address and no other."""
    ip = parsed.interface(address).ip
    return f"{ip}/{ip.max_prefixlen}"


def _check_host(previous: Result, host: Netlink, near: Link | None) -> None:
    known = [i.name for i in previous.interfaces if not i.sandbox]
    if near is None or near.name not in known or not near.up:
        raise PluginFailure(f"Could not find the host's interface {' or '.join(known)} up")
    families = {4: AF_INET, 6: AF_INET6}
    for ip in previous.ips:
        family = families[parsed.interface(ip.address).version]
        there = {r.dst for r in host.routes(family=family) if r.device == near.index}
        if _alone(ip.address) not in there:
            raise PluginFailure(f"Could not find the host's route to {_alone(ip.address)} by {near.name}")


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("ptp"))
