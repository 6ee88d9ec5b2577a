"""A veth pair per pod, its near end in a Linux bridge, its far end the pod's eth0.

Configuration keys are upstream's (bridge, isGateway, isDefaultGateway, forceAddress, ipMasq, hairpinMode,
mtu, ipam); `nonMasqueradeCIDRs`, a list of prefixes that ipMasq leaves alone, is ours. A key of upstream's
that would change the wiring and is not implemented is refused with code 2, never ignored.

Two choices make addresses safe to reuse without waiting for the kernel (removing a link costs an RCU
grace period, 20–40 ms, so the runtime prefers to drop the namespace and let the kernel clean up):
- the far end's MAC is made from its IPv4 address (0a:58 + the four bytes), so a neighbour entry that is
  still cached somewhere is right for the next pod with that address;
- the near end's name is made from it too, so a leftover of the address's previous owner is seen by the
  kernel as EEXIST, and removed then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cni.errors import (
    CniError,
    InvalidConfig,
    NetlinkError,
    NotAvailable,
    PluginFailure,
    UnsupportedField,
)
from cni.host_local import parse_ranges
from cni.masquerade import Masquerade
from cni.netlink import Netlink
from cni.netns import is_own, left_behind, opened
from cni.rtnetlink import (
    Link,
    Message,
    del_address,
    new_address,
    new_bridge,
    new_route,
    new_veth,
    set_hairpin,
    set_link,
)
from cni.types import IP, Interface, Request, Result

Delegate = Callable[[str, Request], Result | None]

_LO = 1
_REFUSED = ("vlan", "vlanTrunk", "macspoofchk", "promiscMode", "portIsolation", "disableContainerInterface")


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    network: str
    bridge: str
    gateway: bool
    default_gateway: bool
    force_address: bool
    masquerade: bool
    not_masqueraded: tuple[str, ...]
    hairpin: bool
    mtu: int
    ipam: Mapping[str, Any]

    @staticmethod
    def parse(config: Mapping[str, Any]) -> BridgeConfig:
        """Read the plugin's section. Raises UnsupportedField, InvalidConfig."""
        for key in _REFUSED:
            if config.get(key):
                raise UnsupportedField(f"Could not accept {key!r} of the bridge plugin: not implemented")
        default_gateway = bool(config.get("isDefaultGateway"))
        mtu = config.get("mtu") or 0
        if not isinstance(mtu, int) or mtu < 0:
            raise InvalidConfig(f"Could not accept mtu {mtu!r}")
        return BridgeConfig(
            network=str(config.get("name") or ""),
            bridge=str(config.get("bridge") or "cni0"),
            gateway=bool(config.get("isGateway")) or default_gateway,
            default_gateway=default_gateway,
            force_address=bool(config.get("forceAddress")),
            masquerade=bool(config.get("ipMasq")),
            not_masqueraded=tuple(config.get("nonMasqueradeCIDRs") or ()),
            hairpin=bool(config.get("hairpinMode")),
            mtu=mtu,
            ipam=config.get("ipam") or {},
        )


class Bridge:
    """The plugin. `delegate` runs the IPAM plugin by name; `proc` is where sysctls are found."""

    def __init__(
        self, delegate: Delegate, *, masquerade: Masquerade | None = None, proc: Path = Path("/proc")
    ) -> None:
        self._delegate = delegate
        self._masquerade = masquerade or Masquerade()
        self._proc = proc

    def add(self, request: Request) -> Result:
        """Wire the pod; on any failure the veth pair and the addresses are given back."""
        config = BridgeConfig.parse(request.config)
        with opened(request.netns) as netns, Netlink(netns) as inside, Netlink() as host:
            if is_own(netns):
                raise InvalidConfig(f"Could not wire {request.netns}: it is the host's own namespace")
            if inside.link(request.ifname) is not None:
                raise NetlinkError(f"add interface {request.ifname} to the container", errno.EEXIST)
            try:
                addressing = self._addresses(config, request)
                return self._wire(config, request, addressing, host, inside, netns)
            except BaseException:
                with contextlib.suppress(CniError):  # the first failure is the one to report
                    self._release(config, request)
                raise

    def _addresses(self, config: BridgeConfig, request: Request) -> Result:
        if not config.ipam:
            return Result()
        result = self._delegate(str(config.ipam.get("type") or ""), request)
        if result is None or not result.ips:
            raise PluginFailure("Could not get an address: the IPAM plugin returned none")
        if not config.gateway:
            return result
        # A gateway the IPAM plugin left open is the subnet's first address (upstream: CalcGatewayIP).
        return replace(
            result,
            ips=tuple(ip if ip.gateway else replace(ip, gateway=_first(ip.address)) for ip in result.ips),
        )

    def _release(self, config: BridgeConfig, request: Request) -> None:
        if config.ipam:
            self._delegate(str(config.ipam.get("type") or ""), replace(request, command="DEL"))

    def _wire(
        self,
        config: BridgeConfig,
        request: Request,
        found: Result,
        host: Netlink,
        inside: Netlink,
        netns: int,
    ) -> Result:
        gateways = [_with_prefix(ip) for ip in found.ips if ip.gateway] if config.gateway else []
        bridge = ensure_bridge(host, config.bridge, gateways, mtu=config.mtu, force=config.force_address)
        if config.gateway:
            self._enable_forwarding(found.ips)
        near, near_mac, far_mac = _names(request, found.ips)
        pair = new_veth(
            near,
            peer=request.ifname,
            peer_netns=netns,
            master=bridge.index,
            mtu=config.mtu or bridge.mtu,
            mac=near_mac,
            peer_mac=far_mac,
        )
        try:
            _create(host, near, [pair, *([set_hairpin(near)] if config.hairpin else [])])
            far = inside.require(request.ifname)
            inside.batch(_inner_messages(config, found, far.index, request.container_id))
            for subnet in _subnets(found.ips) if config.masquerade else ():
                self._masquerade.ensure(config.network, subnet, config.not_masqueraded)
        except BaseException:
            with contextlib.suppress(NetlinkError):
                host.delete_link(near)
            raise
        return replace(
            found,
            interfaces=(
                Interface(bridge.name, bridge.mac),
                Interface(near, near_mac),
                Interface(request.ifname, far.mac, sandbox=request.netns, mtu=far.mtu),
            ),
            ips=tuple(replace(ip, interface=2) for ip in found.ips),
        )

    def delete(self, request: Request) -> None:
        """Remove the pod's interface, if its namespace is still there, and free its addresses."""
        config = BridgeConfig.parse(request.config)
        if request.netns:
            _delete_inside(request)
        self._release(config, request)

    def check(self, request: Request) -> None:
        """Raise PluginFailure when kernel and prevResult disagree."""
        config = BridgeConfig.parse(request.config)
        previous = request.prev_result
        if previous is None:
            raise InvalidConfig("Could not check: prevResult is missing")
        if config.ipam:
            self._delegate(str(config.ipam.get("type") or ""), request)
        with Netlink() as host, opened(request.netns) as netns, Netlink(netns) as inside:
            _check_host(config, previous, host)
            _check_inside(request, previous, inside)

    def gc(self, request: Request) -> None:
        """Links die with their namespaces; only the addresses need collecting."""
        config = BridgeConfig.parse(request.config)
        if config.ipam:
            self._delegate(str(config.ipam.get("type") or ""), request)

    def status(self, request: Request) -> None:
        """Raise NotAvailable when another kind of link has the bridge's name, or IPAM has no address."""
        config = BridgeConfig.parse(request.config)
        with Netlink() as host:
            link = host.link(config.bridge)
        if link is not None and link.kind != "bridge":
            raise NotAvailable(f"Could not use {config.bridge}: a {link.kind or 'device'}, not a bridge")
        if config.ipam:
            self._delegate(str(config.ipam.get("type") or ""), request)

    def prepare(self, config: Mapping[str, Any]) -> None:
        """Make the bridge with its gateway addresses and the masquerade rules before the first pod.

        Needs host-local ranges, where the gateways are known without an allocation; verifies the rules
        in the kernel, so calling it again repairs what someone flushed.
        """
        section = BridgeConfig.parse(config)
        ranges = [r for entry in parse_ranges(section.ipam) for r in entry]
        gateways = [f"{r.gateway}/{r.prefix}" for r in ranges] if section.gateway else []
        with Netlink() as host:
            ensure_bridge(host, section.bridge, gateways, mtu=section.mtu, force=section.force_address)
        if section.gateway:
            self._enable_forwarding([IP(gateway) for gateway in gateways])
        for r in ranges if section.masquerade else ():
            self._masquerade.ensure(section.network, str(r.subnet), section.not_masqueraded, verify=True)

    def tear_down(self, config: Mapping[str, Any]) -> None:
        """Remove the bridge and the masquerade rules of a network; what is gone already is no error."""
        section = BridgeConfig.parse(config)
        with Netlink() as host:
            link = host.link(section.bridge)
            if link is not None and link.kind == "bridge":
                host.delete_link(section.bridge)
        if section.masquerade:
            for r in (r for entry in parse_ranges(section.ipam) for r in entry):
                self._masquerade.remove(section.network, str(r.subnet))

    def _enable_forwarding(self, ips: Sequence[IP]) -> None:
        for version in {ipaddress.ip_interface(ip.address).version for ip in ips}:
            name = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
            switch = self._proc / "sys/net" / name
            # Writing even the same value makes the kernel walk all devices, so look first.
            if switch.read_text().strip() != "1":
                switch.write_text("1")


def ensure_bridge(
    netlink: Netlink, name: str, addresses: Sequence[str] = (), *, mtu: int = 0, force: bool = False
) -> Link:
    """The bridge, up, with these addresses (with prefix length); made when it is not there.

    Its MAC is fixed from the first address: without that a bridge takes the lowest MAC among its ports
    and changes it as pods come and go, under the neighbour caches of all others. Raises InvalidConfig when
    a link of another kind has the name or another address of the family is set (unless `force`).
    """
    link = netlink.link(name)
    if link is None:
        mac = mac_for(addresses[0]) if addresses else ""
        try:
            netlink.batch([new_bridge(name, mac=mac, mtu=mtu)])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:  # another pod's ADD may have been first
                raise
        link = netlink.require(name)
    if link.kind != "bridge":
        raise InvalidConfig(f"Could not use {name} as the bridge: it is a {link.kind or 'device'}")
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
    return link


def mac_for(address: str) -> str:
    """0a:58 + the IPv4 address; for IPv6 + four bytes of the address's hash. Locally administered."""
    ip = ipaddress.ip_interface(address).ip
    tail = ip.packed if ip.version == 4 else hashlib.sha256(ip.packed).digest()[:4]
    return (b"\x0a\x58" + tail).hex(":")


def _names(request: Request, ips: Sequence[IP]) -> tuple[str, str, str]:
    """Name and MAC of the near end, MAC of the far end."""
    four = next((ip.address for ip in ips if ipaddress.ip_interface(ip.address).version == 4), None)
    if four is None:
        digest = hashlib.sha256(f"{request.container_id}{request.ifname}".encode()).digest()
        return f"veth{digest.hex()[:8]}", (b"\x0e\x58" + digest[:4]).hex(":"), ""
    packed = ipaddress.ip_interface(four).ip.packed
    return f"veth{packed.hex()}", (b"\x0e\x58" + packed).hex(":"), mac_for(four)


def _create(host: Netlink, near: str, messages: Sequence[Message]) -> None:
    try:
        host.batch(messages)
    except NetlinkError as error:
        # The address is ours now, so a link with its name belongs to a pod that is gone.
        if error.errno != errno.EEXIST or host.link(near) is None:
            raise
        host.delete_link(near)
        host.batch(messages)


def _inner_messages(config: BridgeConfig, found: Result, index: int, owner: str) -> list[Message]:
    # The alias is how DEL knows the link for the container's own.
    messages = [set_link(_LO, up=True), set_link(index, up=True, alias=owner)]
    messages += [new_address(index, ip.address) for ip in found.ips]
    for route in found.routes:
        version = ipaddress.ip_network(route.dst).version
        gateways = [ip.gateway for ip in found.ips if ip.gateway]
        same = [gw for gw in gateways if ipaddress.ip_address(gw).version == version]
        gateway = route.gw or (same[0] if same else "")
        extra = route.extra
        messages.append(
            new_route(
                route.dst,
                index=index,
                gw=gateway,
                metric=extra.get("priority", 0),
                mtu=extra.get("mtu", 0),
                table=extra.get("table", 254),
                scope=extra.get("scope"),
            )
        )
    if config.default_gateway:
        for ip in found.ips:
            default = "0.0.0.0/0" if ipaddress.ip_interface(ip.address).version == 4 else "::/0"
            if ip.gateway and all(route.dst != default for route in found.routes):
                messages.append(new_route(default, index=index, gw=ip.gateway))
    return messages


def _delete_inside(request: Request) -> None:
    with left_behind(request.netns) as netns:
        if netns is None:
            return
        # The path may by now lead to another pod's namespace. Only a link that bears the container's ID, or
        # else the MAC of the result, is removed.
        with Netlink(netns) as inside:
            link = inside.link(request.ifname)
            previous = request.prev_result
            known = previous.interfaces if previous else ()
            macs = {i.mac for i in known if i.sandbox and i.name == request.ifname}
            if link is None or link.kind != "veth":
                return
            ours = link.alias == request.container_id if link.alias else not macs or link.mac in macs
            if ours:
                inside.delete_link(request.ifname)


def _check_host(config: BridgeConfig, previous: Result, host: Netlink) -> None:
    bridge = host.link(config.bridge)
    if bridge is None or bridge.kind != "bridge":
        raise PluginFailure(f"Could not find bridge {config.bridge}")
    for interface in previous.interfaces:
        if interface.sandbox or interface.name == config.bridge:
            continue
        link = host.link(interface.name)
        if link is None or link.master != bridge.index:
            raise PluginFailure(f"Could not find {interface.name} in bridge {config.bridge}")
        if config.hairpin and not link.hairpin:
            raise PluginFailure(f"Could not find hairpin mode on {interface.name}")


def _check_inside(request: Request, previous: Result, inside: Netlink) -> None:
    link = inside.link(request.ifname)
    if link is None or not link.up:
        raise PluginFailure(f"Could not find {request.ifname} up in the container")
    expected = next((i for i in previous.interfaces if i.sandbox and i.name == request.ifname), None)
    if expected is not None and expected.mac and expected.mac != link.mac:
        raise PluginFailure(f"Could not match {request.ifname}: MAC {link.mac}, expected {expected.mac}")
    present = {a.address for a in inside.addresses(link.index)}
    for ip in previous.ips:
        if ip.address not in present:
            raise PluginFailure(f"Could not find address {ip.address} on {request.ifname}")
    routes = {route.dst for route in inside.routes()}
    for route in previous.routes:
        if ipaddress.ip_network(route.dst).version == 4 and route.dst not in routes:
            raise PluginFailure(f"Could not find route {route.dst} in the container")


def _first(address: str) -> str:
    return str(ipaddress.ip_interface(address).network.network_address + 1)


def _with_prefix(ip: IP) -> str:
    return f"{ip.gateway}/{ipaddress.ip_interface(ip.address).network.prefixlen}"


def _subnets(ips: Sequence[IP]) -> list[str]:
    return [str(ipaddress.ip_interface(ip.address).network) for ip in ips]


def _conflicts(present: str, wanted: str) -> bool:
    """Another address of the same family, other than the kernel's own link-local one."""
    one, other = ipaddress.ip_interface(present), ipaddress.ip_interface(wanted)
    if one.version != other.version or one.ip.is_link_local:
        return False
    # Several IPv6 subnets on one bridge are usual; with IPv4, and within one subnet, it is a mistake.
    return one.version == 4 or one.network.overlaps(other.network)


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("bridge"))
