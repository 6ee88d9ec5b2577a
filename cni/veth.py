"""A veth pair between host and container: names, making, checking, removing, for the plugins that have one.

Two choices make addresses safe to reuse without waiting for the kernel (removing a link costs an RCU
grace period, 20–40 ms, so the runtime prefers to drop the namespace and let the kernel clean up):
- the far end's MAC is made from its IPv4 address (0a:58 + the four bytes), so a neighbour entry that is
  still cached somewhere is right for the next pod with that address;
- the near end's name is made from it too, so a leftover of the address's previous owner is seen by the
  kernel as EEXIST, and removed then.
Aliases say whose a link is: the far end bears the container's ID, the near end the network and the ID.
"""

from __future__ import annotations

import contextlib
import os
from _socket import AF_INET, AF_INET6
from errno import EEXIST

from cni import parsed
from cni.errors import CniError, InvalidConfig, NetlinkError, PluginFailure
from cni.frozen import frozen, replace
from cni.netlink import Netlink
from cni.netns import is_own, left_behind
from cni.rtnetlink import Link, Message, new_route
from cni.types import DNS, IP, Request, Result, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    Delegate = Callable[[str, Request], Result | None]


GSO_USUAL, GSO_LARGE, GSO_MOST = 65536, 196608, 524280
"""Bytes: what each device starts with, what suits pods that no smaller device lies between, and what a veth
takes at the most (the kernel's GSO_MAX_SIZE)."""


@frozen
class Ends:
    """What the two ends of one pair are to be called; an empty MAC is the kernel's choice."""

    near: str
    near_mac: str
    far: str
    far_mac: str


def names(request: Request, ips: Sequence[IP]) -> Ends:
    """Near end and MACs by the first IPv4 address, or by container and interface when there is none.

    A MAC that was asked for (runtimeConfig.mac, args.cni.mac, MAC= in CNI_ARGS) is the far end's.
    """
    wanted = _requested_mac(request)
    four = next((ip.address for ip in ips if parsed.interface(ip.address).version == 4), None)
    if four is None:
        digest = _digest(f"{request.container_id}{request.ifname}".encode())
        return Ends(f"veth{digest.hex()}", (b"\x0e\x58" + digest).hex(":"), request.ifname, wanted)
    packed = parsed.interface(four).ip.packed
    near_mac = (b"\x0e\x58" + packed).hex(":")
    return Ends(f"veth{packed.hex()}", near_mac, request.ifname, wanted or mac_for(four))


def mac_for(address: str) -> str:
    """0a:58 + the IPv4 address; for IPv6 + four bytes of the address's hash. Locally administered."""
    ip = parsed.interface(address).ip
    tail = ip.packed if ip.version == 4 else _digest(ip.packed)
    return (b"\x0a\x58" + tail).hex(":")


def _digest(data: bytes) -> bytes:
    import hashlib  # only pods without IPv4 need it, and it loads OpenSSL

    return hashlib.sha256(data).digest()[:4]


def _requested_mac(request: Request) -> str:
    runtime = request.config.get("runtimeConfig") or {}
    cni_args = (request.config.get("args") or {}).get("cni") or {}
    mac = str(runtime.get("mac") or cni_args.get("mac") or request.args.get("MAC") or "")
    if mac and not _is_mac(mac):
        raise InvalidConfig(f"Could not accept MAC address {mac!r}")
    return mac.lower()


def _is_mac(text: str) -> bool:
    pairs = text.split(":")
    digits = set("0123456789abcdefABCDEF")
    return len(pairs) == 6 and all(len(pair) == 2 and digits.issuperset(pair) for pair in pairs)


def near_alias(request: Request) -> str:
    return network_mark(request.network) + request.container_id


def network_mark(network: str) -> str:
    """How the alias of each near end of a network begins."""
    return f"cni:{network}:"


def parse_mtu(config: Mapping[str, Any]) -> int:
    """The `mtu` of a configuration, 0 for none. Raises InvalidConfig."""
    mtu = config.get("mtu") or 0
    if not isinstance(mtu, int) or mtu < 0:
        raise InvalidConfig(f"Could not accept mtu {mtu!r}")
    return mtu


def parse_gso(config: Mapping[str, Any]) -> int:
    """The `gsoIPv4MaxSize` of a configuration, 0 for the kernel's own. Raises InvalidConfig.

    So many bytes does the pod's TCP hand out at a time, for others to cut to the MTU (or, between pods, for
    nobody): what a packet costs on its way is paid as often. Kernels before 6.3 pass over it.
    """
    size = config.get("gsoIPv4MaxSize") or 0
    if not isinstance(size, int) or isinstance(size, bool) or (size and not GSO_USUAL <= size <= GSO_MOST):
        raise InvalidConfig(f"Could not accept gsoIPv4MaxSize {size!r} ({GSO_USUAL} to {GSO_MOST})")
    return size


# --- addresses -----------------------------------------------------------------------------------


def addresses(
    delegate: Delegate, ipam: Mapping[str, Any], request: Request
) -> tuple[Result, Callable[[], None]]:
    """What the IPAM plugin gives, and what must be called before that may be relied on: it waits for what the
    plugin has not finished. Raises PluginFailure when there is no address."""
    unfinished: list[Callable[[], object]] = []
    result = delegate(str(ipam.get("type") or ""), replace(request, unfinished=unfinished))

    def finish() -> None:
        for wait in unfinished:
            wait()

    if result is None or not result.ips:
        finish()
        raise PluginFailure("Could not get an address: the IPAM plugin returned none")
    return result, finish


def nothing() -> None:
    """There is nothing to wait for."""


def release(delegate: Delegate, ipam: Mapping[str, Any], request: Request) -> None:
    """Give the addresses back; of a configuration without IPAM there are none."""
    if ipam:
        delegate(str(ipam.get("type") or ""), replace(request, command="DEL"))


@contextlib.contextmanager
def given_back_on_failure(delegate: Delegate, ipam: Mapping[str, Any], request: Request) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(CniError):  # the first failure is the one to report
            release(delegate, ipam, request)
        raise


def with_gateways(result: Result) -> Result:
    """A gateway the IPAM plugin left open is the subnet's first address (upstream: CalcGatewayIP)."""
    ips = tuple(ip if ip.gateway else replace(ip, gateway=first(ip.address)) for ip in result.ips)
    return replace(result, ips=ips)


def first(address: str) -> str:
    return str(parsed.interface(address).network.network_address + 1)


def subnets(ips: Sequence[IP]) -> list[str]:
    return [str(parsed.interface(ip.address).network) for ip in ips]


def chosen_dns(config: Mapping[str, Any], found: Result) -> DNS:
    """The network's own `dns` section when it says anything, else what IPAM answered."""
    own = DNS.from_json(config.get("dns") or {})
    return found.dns if own == DNS() else own


def enable_forwarding(proc: str, ips: Sequence[IP]) -> None:
    for version in sorted({parsed.interface(ip.address).version for ip in ips}):
        name = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
        switch = f"{proc}/sys/net/{name}"
        # Writing even the same value makes the kernel walk all devices, so look first.
        now = os.open(switch, os.O_RDONLY | os.O_CLOEXEC)
        try:
            on = os.read(now, 16).strip() == b"1"
        finally:
            os.close(now)
        if not on:
            with open(switch, "w") as new:
                new.write("1")


# --- making and removing -------------------------------------------------------------------------


def require_free(request: Request, netns: int, inside: Netlink) -> None:
    """Refuse the host's own namespace and an interface name that is taken (SPEC section 4, ADD)."""
    if is_own(netns):
        raise InvalidConfig(f"Could not wire {request.netns}: it is the host's own namespace")
    # Asked first: a pair that fails is removed by its name, which may be that of the interface there.
    if inside.link(request.ifname) is not None:
        raise NetlinkError(f"add interface {request.ifname} to the container", EEXIST)


def create(host: Netlink, near: str, messages: Sequence[Message]) -> None:
    """Run the batch that makes the pair; a leftover of the same name is removed first."""
    try:
        host.batch(messages)
    except NetlinkError as error:
        # The address is ours now, so a link with its name belongs to a pod that is gone.
        if error.errno != EEXIST or host.link(near) is None:
            raise
        host.delete_link(near)
        host.batch(messages)


@contextlib.contextmanager
def removed_on_failure(host: Netlink, near: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(NetlinkError):
            host.delete_link(near)
        raise


def route_message(route: Route, index: int, ips: Sequence[IP]) -> Message:
    """A route of the result inside the container; without `gw` by the gateway of its family's address."""
    version = parsed.network(route.dst).version
    gateways = [ip.gateway for ip in ips if ip.gateway]
    same = [gw for gw in gateways if parsed.address(gw).version == version]
    extra = route.extra
    return new_route(
        route.dst,
        index=index,
        gw=route.gw or (same[0] if same else ""),
        metric=extra.get("priority", 0),
        mtu=extra.get("mtu", 0),
        advmss=extra.get("advmss", 0),
        table=extra.get("table", 254),
        scope=extra.get("scope"),
    )


def delete_inside(request: Request) -> None:
    """Remove the container's end, and so the pair, if it is the container's own."""
    if not request.netns:
        return
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


def check_inside(request: Request, previous: Result, inside: Netlink, *, up: bool = True) -> Link:
    """The container's end. Raises PluginFailure when it, its addresses or routes are not as in the result."""
    link = inside.link(request.ifname)
    if link is None or (up and not link.up):
        raise PluginFailure(f"Could not find {request.ifname} up in the container")
    expected = next((i for i in previous.interfaces if i.sandbox and i.name == request.ifname), None)
    if expected is not None and expected.mac and expected.mac != link.mac:
        raise PluginFailure(f"Could not match {request.ifname}: MAC {link.mac}, expected {expected.mac}")
    present = {a.address for a in inside.addresses(link.index)}
    for ip in previous.ips:
        if ip.address not in present:
            raise PluginFailure(f"Could not find address {ip.address} on {request.ifname}")
    for family, version in ((AF_INET, 4), (AF_INET6, 6)):
        wanted = [r for r in previous.routes if parsed.network(r.dst).version == version]
        there = {(r.dst, r.table) for r in inside.routes(None, family)} if wanted else set()
        for route in wanted:
            if (route.dst, route.extra.get("table", 254)) not in there:
                raise PluginFailure(f"Could not find route {route.dst} in the container")
    return link
