"""A veth pair per pod, its near end in a Linux bridge, its far end the pod's eth0.

Configuration keys are upstream's (bridge, isGateway, isDefaultGateway, forceAddress, ipMasq, hairpinMode,
promiscMode, portIsolation, macspoofchk, disableContainerInterface, vlan, vlanTrunk, preserveDefaultVlan, mtu,
dns, ipam). Ours are `nonMasqueradeCIDRs`, a list of prefixes that ipMasq leaves alone, and `gsoIPv4MaxSize`
(veth.parse_gso). A key of upstream's that would change the wiring and is not implemented, or not by this
kernel, is refused with code 2, never ignored.
"""

from __future__ import annotations

import contextlib
import errno
import sys

from cni import parsed, resizing, spoofcheck, veth
from cni.errors import (
    FirewallError,
    InvalidConfig,
    LimitedConnectivity,
    NetlinkError,
    NotAvailable,
    PluginFailure,
    UnsupportedField,
)
from cni.frozen import frozen, replace
from cni.host_local import local_ranges
from cni.netlink import Netlink
from cni.netns import opened
from cni.rtnetlink import (
    Link,
    Message,
    del_address,
    new_address,
    new_bridge,
    new_route,
    set_link,
    set_port,
)
from cni.types import IP, Interface, Request, Result
from cni.wiring import NetworkConfig, VethPlugin, Wiring, previous_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from cni.vlans import PortVlans

_LO = 1
_REFUSED = ("enabledad",)


@frozen
class BridgeConfig:
    network: NetworkConfig
    bridge: str
    gateway: bool
    default_gateway: bool
    force_address: bool
    hairpin: bool
    promiscuous: bool
    isolated: bool
    mac_checked: bool
    interface_down: bool
    vlans: PortVlans | None

    @staticmethod
    def parse(config: Mapping[str, Any]) -> BridgeConfig:
        """Read the plugin's section. Raises UnsupportedField, InvalidConfig."""
        for key in _REFUSED:
            if config.get(key):
                raise UnsupportedField(f"Could not accept {key!r} of the bridge plugin: not implemented")
        default_gateway = bool(config.get("isDefaultGateway"))
        section = BridgeConfig(
            network=NetworkConfig.parse(config),
            bridge=str(config.get("bridge") or "cni0"),
            gateway=bool(config.get("isGateway")) or default_gateway,
            default_gateway=default_gateway,
            force_address=bool(config.get("forceAddress")),
            hairpin=bool(config.get("hairpinMode")),
            promiscuous=bool(config.get("promiscMode")),
            isolated=bool(config.get("portIsolation")),
            mac_checked=bool(config.get("macspoofchk")),
            interface_down=bool(config.get("disableContainerInterface")),
            vlans=_vlans(config),
        )
        if section.hairpin and section.promiscuous:
            # Every frame would come back to its sender.
            raise InvalidConfig("Could not set hairpinMode and promiscMode at the same time")
        if section.interface_down and section.network.ipam:
            raise InvalidConfig("Could not use ipam with disableContainerInterface")
        return section


class Bridge(VethPlugin):
    """The plugin."""

    def add(self, request: Request) -> Result:
        """Wire the pod; on any failure the veth pair and the addresses are given back."""
        config = BridgeConfig.parse(request.config)
        with self._begun(config.network, request) as wiring:
            found = veth.with_gateways(wiring.found) if config.gateway else wiring.found
            return self._wire(config, wiring, found)

    def _wire(self, config: BridgeConfig, wiring: Wiring, found: Result) -> Result:
        request, host, inside = wiring.request, wiring.host, wiring.inside
        gateways = [_with_prefix(ip) for ip in found.ips if ip.gateway] if config.gateway else []
        bridge, *others = self._ready_bridge(host, config, gateways)
        if config.gateway:
            veth.enable_forwarding(self._proc, found.ips)
        ends = veth.names(request, found.ips)
        mtu = config.network.mtu or bridge.mtu
        pair = wiring.pair(ends, mtu=mtu, gso=config.network.gso, master=bridge.index)
        alias = veth.near_alias(request)
        port = set_port(ends.near, hairpin=config.hairpin, isolated=config.isolated, alias=alias)
        with veth.removed_on_failure(host, ends.near):
            veth.create(host, ends.near, [pair, port])
            if config.network.gso and bridge.gso != config.network.gso:
                resizing.resize_bridge(host, bridge.name, config.network.gso)
            if config.vlans is not None:
                config.vlans.set_port(host, host.require(ends.near).index)
            far = inside.require(request.ifname)
            with _held(ends.near, far.mac) if config.mac_checked else contextlib.nullcontext():
                inside.batch(_inner_messages(config, found, far.index, request.container_id))
                self._end(config.network, wiring, found)
        return replace(
            found,
            interfaces=(
                Interface(bridge.name, bridge.mac, mtu=bridge.mtu),
                Interface(ends.near, ends.near_mac, mtu=far.mtu),
                Interface(request.ifname, far.mac, sandbox=request.netns, mtu=far.mtu),
                *(Interface(link.name, link.mac, mtu=link.mtu) for link in others),
            ),
            ips=tuple(replace(ip, interface=2) for ip in found.ips),
            dns=veth.chosen_dns(request.config, found),
        )

    def _ready_bridge(self, host: Netlink, config: BridgeConfig, gateways: Sequence[str]) -> list[Link]:
        """The bridge; behind it the interface that bears its VLAN's gateway addresses, if there is one."""
        tagged = config.vlans
        inside = bool(gateways and tagged is not None and tagged.access)
        bridge = ensure_bridge(
            host,
            config.bridge,
            () if inside else gateways,
            mtu=config.network.mtu,
            force=config.force_address,
            tagged=tagged,
        )
        if config.promiscuous and not bridge.promisc:
            host.batch([set_link(bridge.index, promisc=True)])
        if tagged is None or not inside:
            return [bridge]
        link = tagged.gateway(host, bridge, gateways[0])
        _set_addresses(host, link, gateways, force=config.force_address)
        return [bridge, link]

    def delete(self, request: Request) -> None:
        """Remove the pod's interface, if its namespace is still there, and free its addresses."""
        config = BridgeConfig.parse(request.config)
        veth.delete_inside(request)
        if config.mac_checked and request.prev_result is not None:
            spoofcheck.release({i.name for i in request.prev_result.interfaces if not i.sandbox})
        veth.release(self._delegate, config.network.ipam, request)

    def check(self, request: Request) -> None:
        """Raise PluginFailure when kernel and prevResult disagree."""
        config = BridgeConfig.parse(request.config)
        previous = previous_of(request)
        self._leave_to_ipam(config.network, request)
        with Netlink() as host, opened(request.netns) as netns, Netlink(netns) as inside:
            far = veth.check_inside(request, previous, inside, up=not config.interface_down)
            near = host.link(far.peer) if far.peer else None
            _check_host(config, previous, host, near)
        if config.mac_checked and near is not None and not spoofcheck.held(near.name, far.mac):
            raise PluginFailure(f"Could not find the MAC address {far.mac} held on {near.name}")

    def gc(self, request: Request) -> None:
        """Links die with their namespaces; only addresses and the checks of what is gone need collecting."""
        config = BridgeConfig.parse(request.config)
        if config.mac_checked:
            _release_gone()
        self._leave_to_ipam(config.network, request)

    def status(self, request: Request) -> None:
        """Raise NotAvailable when another kind of link has the bridge's name, or IPAM has no address;
        LimitedConnectivity when pods are attached to a bridge that is gone or down."""
        config = BridgeConfig.parse(request.config)
        with Netlink() as host:
            link = host.link(config.bridge)
            if link is not None and link.kind != "bridge":
                raise NotAvailable(f"Could not use {config.bridge}: a {link.kind or 'device'}, not a bridge")
            if link is None or not link.up:
                # Before the first ADD there is no bridge, and that ADD makes it.
                mark = veth.network_mark(config.network.name)
                stranded = [other.name for other in host.links() if other.alias.startswith(mark)]
                if stranded:
                    state = "it is down" if link else "it is gone"
                    text = f"Could not use bridge {config.bridge}: {state}"
                    raise LimitedConnectivity(text, f"attached: {', '.join(sorted(stranded))}")
        self._leave_to_ipam(config.network, request)

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Make the bridge with its gateway addresses and the masquerade rules before the first pod.

        With host-local the gateways are known without an allocation; with another IPAM the first ADD sets
        them. Looks at the kernel, so calling it again repairs what someone deleted or flushed.
        """
        section = BridgeConfig.parse(config)
        ranges = local_ranges(section.network.ipam)
        gateways = [f"{r.gateway}/{r.prefix}" for r in ranges] if section.gateway else []
        with Netlink() as host:
            bridge = self._ready_bridge(host, section, gateways)[0]
            for link in host.links():
                if link.alias.startswith(veth.network_mark(section.network.name)) and not link.master:
                    # Somebody deleted the bridge; the pods' ends stayed, as ports of nothing.
                    messages = [set_link(link.index, master=bridge.index)]
                    messages.append(set_port(link.name, hairpin=section.hairpin, isolated=section.isolated))
                    host.batch(messages)
                    if section.vlans is not None:
                        section.vlans.set_port(host, link.index)
        if section.gateway:
            veth.enable_forwarding(self._proc, [IP(gateway) for gateway in gateways])
        self._verify_masquerade(section.network)

    def tear_down(self, config: Mapping[str, Any]) -> None:
        """Remove the bridge and the masquerade rules of a network; what is gone already is no error."""
        section = BridgeConfig.parse(config)
        with Netlink() as host:
            link = host.link(section.bridge)
            if section.vlans is not None:
                section.vlans.remove_gateway(host, section.bridge)
            if link is not None and link.kind == "bridge":
                host.delete_link(section.bridge)
        if section.mac_checked:
            _release_gone()
            spoofcheck.tear_down()
        self._remove_masquerade(section.network)


@contextlib.contextmanager
def _held(near: str, mac: str) -> Iterator[None]:
    """Only frames from the pod's MAC address pass its port, before it can send the first one."""
    spoofcheck.hold(near, mac)
    try:
        yield
    except BaseException:
        with contextlib.suppress(FirewallError):  # the first failure is the one to report
            spoofcheck.release({near})
        raise


def _release_gone() -> None:
    known = spoofcheck.interfaces()  # before the links: an ADD may be on its way
    with Netlink() as host:
        spoofcheck.release(known - {link.name for link in host.links()})


def ensure_bridge(
    netlink: Netlink,
    name: str,
    addresses: Sequence[str] = (),
    *,
    mtu: int = 0,
    force: bool = False,
    tagged: PortVlans | None = None,
) -> Link:
    """The bridge, up, with these addresses (with prefix length); made when it is not there.

    Its MAC is fixed from the first address: without that a bridge takes the lowest MAC among its ports
    and changes it as pods come and go, under the neighbour caches of all others. Raises InvalidConfig when
    a link of another kind has the name or another address of the family is set (unless `force`);
    UnsupportedField when the kernel's bridges know no VLANs.
    """
    link, made = netlink.link(name), False
    if link is None:
        mac = veth.mac_for(addresses[0]) if addresses else ""
        try:
            netlink.batch([new_bridge(name, mac=mac, mtu=mtu)])
            made = True
        except NetlinkError as error:
            if error.errno != errno.EEXIST:  # another pod's ADD may have been first
                raise
        link = netlink.require(name)
    if link.kind != "bridge":
        raise InvalidConfig(f"Could not use {name} as the bridge: it is a {link.kind or 'device'}")
    if tagged is not None:
        with veth.removed_on_failure(netlink, name) if made else contextlib.nullcontext():
            tagged.filter(netlink, link)
    _set_addresses(netlink, link, addresses, force=force)
    return link


def _set_addresses(netlink: Netlink, link: Link, addresses: Sequence[str], *, force: bool) -> None:
    """The addresses on the link, which is up then; others of their families are removed with `force` only."""
    name = link.name
    present = [a.address for a in netlink.addresses(link.index)]
    messages = [] if link.up else [set_link(link.index, up=True)]
    for address in addresses:
        if address in present:
            continue
        others = [a for a in present if _conflicts(a, address)]
        if others and not force:
            raise InvalidConfig(f"Could not give {name} the address {address}: it has {', '.join(others)}")
        messages += [del_address(link.index, other) for other in others]
        messages.append(new_address(link.index, address, replace=True))
    if messages:
        netlink.batch(messages)


def _inner_messages(config: BridgeConfig, found: Result, index: int, owner: str) -> list[Message]:
    # The alias is how DEL knows the link for the container's own.
    up = None if config.interface_down else True
    messages = [set_link(_LO, up=True), set_link(index, up=up, alias=owner)]
    messages += [new_address(index, ip.address) for ip in found.ips]
    messages += [veth.route_message(route, index, found.ips) for route in found.routes]
    if config.default_gateway:
        for ip in found.ips:
            default = "0.0.0.0/0" if parsed.interface(ip.address).version == 4 else "::/0"
            if ip.gateway and all(route.dst != default for route in found.routes):
                messages.append(new_route(default, index=index, gw=ip.gateway))
    return messages


def _check_host(config: BridgeConfig, previous: Result, host: Netlink, near: Link | None) -> None:
    bridge = host.link(config.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise PluginFailure(f"Could not find bridge {config.bridge}")
    # Other plugins of the chain may have added interfaces; ours is the other end of the container's.
    known = [i.name for i in previous.interfaces if not i.sandbox and i.name != config.bridge]
    if near is None or near.name not in known or near.master != bridge.index:
        raise PluginFailure(f"Could not find {' or '.join(known)} in bridge {config.bridge}")
    if not near.up:
        raise PluginFailure(f"Could not find {near.name} up")
    if config.hairpin and not near.hairpin:
        raise PluginFailure(f"Could not find hairpin mode on {near.name}")
    if config.isolated and not near.isolated:
        raise PluginFailure(f"Could not find port isolation on {near.name}")
    lacking = config.vlans.problem(host, near.index) if config.vlans is not None else ""
    if lacking:
        raise PluginFailure(f"Could not find {lacking} on {near.name}")


def _vlans(config: Mapping[str, Any]) -> PortVlans | None:
    """None, and nothing imported, for a network without VLANs. Raises InvalidConfig."""
    if not config.get("vlan") and config.get("vlanTrunk") is None:
        return None
    from cni.vlans import PortVlans

    return PortVlans.parse(config)


def _with_prefix(ip: IP) -> str:
    return f"{ip.gateway}/{parsed.interface(ip.address).network.prefixlen}"


def _conflicts(present: str, wanted: str) -> bool:
    """Another address of the same family, other than the kernel's own link-local one."""
    one, other = parsed.interface(present), parsed.interface(wanted)
    if one.version != other.version or one.ip.is_link_local:
        return False
    # Several IPv6 subnets on one bridge are usual; with IPv4, and within one subnet, it is a mistake.
    return one.version == 4 or one.network.overlaps(other.network)


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("bridge"))
