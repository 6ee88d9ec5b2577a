"""How fast a pod may receive and send: a token bucket on each way through the host's end of its veth pair.

    ingress (to the pod)    what leaves the host's end:   tbf on vethXXXXXXXX
    egress (from the pod)   what arrives at it:           redirected to an ifb device bwp…, tbf there

Chained behind a plugin that made a veth pair. Keys are upstream's: ingressRate, egressRate in bits per
second with ingressBurst, egressBurst in bits, in the configuration or, stronger, in
runtimeConfig.bandwidth. Its newer shapedSubnets and unshapedSubnets are refused with code 2. A pod with
limits sends pieces of TCP of 64 kB at the most (gsoIPv4MaxSize counts for others): a queue for a slow line
holds few larger ones.
Source: containernetworking/plugins, plugins/meta/bandwidth.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import sys
from _socket import if_nametoindex

from cni import resizing, shaping
from cni.errors import InvalidConfig, NetlinkError, PluginFailure, UnsupportedField
from cni.frozen import frozen
from cni.netlink import Netlink
from cni.netns import opened
from cni.rtnetlink import Link, set_link
from cni.shaping import Rate
from cni.types import Interface, Request, Result, folded, valid_attachments
from cni.veth import GSO_USUAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_REFUSED = ("shapedSubnets", "unshapedSubnets")
_KEYS = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
_MAX_BURST = 0xFFFFFFFF * 8  # the kernel counts it in 32 bits of bytes


@frozen
class Limits:
    """What is limited; None is no limit."""

    ingress: Rate | None
    egress: Rate | None

    @staticmethod
    def parse(config: Mapping[str, Any]) -> Limits:
        """Read the plugin's section. Raises UnsupportedField, InvalidConfig."""
        runtime = (config.get("runtimeConfig") or {}).get("bandwidth")
        given = folded(config if runtime is None else runtime, (*_REFUSED, *_KEYS))
        for key in _REFUSED:
            if given.get(key):
                raise UnsupportedField(f"Could not accept {key!r} of the bandwidth plugin: not implemented")
        return Limits(_rate(given, "ingress"), _rate(given, "egress"))

    def __bool__(self) -> bool:
        return self.ingress is not None or self.egress is not None


class Bandwidth:
    """The plugin."""

    def add(self, request: Request) -> Result:
        """Limit the pod's traffic. On a failure queues and ifb device are gone again."""
        limits = Limits.parse(request.config)
        previous = request.prev_result
        if previous is None:
            raise InvalidConfig("Could not limit bandwidth: prevResult is missing (it must be chained)")
        if not limits:
            return previous
        with Netlink() as host:
            near = _host_end(request, previous, host)
            if near.gso > GSO_USUAL:
                resizing.resize(host, request.netns, request.ifname, near=near.gso, far=GSO_USUAL)
            try:
                middle = _limit(request, limits, near, host)
            except BaseException:
                with contextlib.suppress(NetlinkError):  # the first failure is the one to report
                    shaping.clear(host, near.index)
                    host.delete_link(device_name(request.network, request.container_id, request.ifname))
                raise
        if middle is None:
            return previous
        extra = Interface(middle.name, middle.mac, mtu=middle.mtu)
        return _with_interface(previous, extra)

    def delete(self, request: Request) -> None:
        """Remove the ifb device, if there is one; the queues go with the host's end of the pair."""
        name = device_name(request.network, request.container_id, request.ifname)
        try:
            if_nametoindex(name)  # asked first: it takes no lock that all the links of the host share
        except OSError:
            return
        with Netlink() as host:
            host.delete_link(name)

    def check(self, request: Request) -> None:
        """Raise PluginFailure when a limit is not in the kernel as configured."""
        limits = Limits.parse(request.config)
        previous = request.prev_result
        if previous is None:
            raise InvalidConfig("Could not check: prevResult is missing")
        if not limits:
            return
        with Netlink() as host:
            near = _host_end(request, previous, host)
            if limits.ingress is not None:
                _check_rate(host, near, limits.ingress)
            if limits.egress is not None:
                name = device_name(request.network, request.container_id, request.ifname)
                middle = host.link(name)
                if middle is None or not middle.up:
                    raise PluginFailure(f"Could not find {name} up")
                _check_rate(host, middle, limits.egress)
                if not any(queue.kind == "ingress" for queue in shaping.queues(host, near.index)):
                    raise PluginFailure(f"Could not find the ingress queue of {near.name}")

    def gc(self, request: Request) -> None:
        """Remove the ifb devices of this network whose pod is not among the valid attachments."""
        valid = {
            _mark(request.network) + f"{a.get('containerID')}:{a.get('ifname')}"
            for a in valid_attachments(request.config)
        }
        with Netlink() as host:
            for link in host.links():
                if link.alias.startswith(_mark(request.network)) and link.alias not in valid:
                    host.delete_link(link.name)

    def status(self, request: Request) -> None:
        """Ready whenever the configuration makes sense; ADD says what the kernel lacks."""
        Limits.parse(request.config)


def device_name(network: str, container_id: str, ifname: str) -> str:
    """bwp and eleven hex digits, the form of upstream's names; one per attachment."""
    return "bwp" + hashlib.sha256(f"{network}\0{container_id}\0{ifname}".encode()).hexdigest()[:11]


def _mark(network: str) -> str:
    return f"cni-bandwidth:{network}:"


def _rate(given: Mapping[str, Any], way: str) -> Rate | None:
    bits, burst = given.get(f"{way}Rate") or 0, given.get(f"{way}Burst") or 0
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (bits, burst)):
        raise InvalidConfig(f"Could not accept {way}Rate {bits!r} and {way}Burst {burst!r}: whole numbers")
    if not bits and not burst:
        return None
    if bits < 8:
        raise InvalidConfig(f"Could not accept {way}Rate {bits}: at least 8 bits per second")
    if not burst:
        raise InvalidConfig(f"Could not limit {way}: {way}Burst is missing")
    if burst > _MAX_BURST:
        raise InvalidConfig(f"Could not accept {way}Burst {burst}: more than 4 GB")
    return Rate(bits, burst)


def _host_end(request: Request, previous: Result, host: Netlink) -> Link:
    """The link on the host that is the other end of the container's interface."""
    with opened(request.netns) as netns, Netlink(netns) as inside:
        far = inside.require(request.ifname)
    near = host.link(far.peer) if far.kind == "veth" and far.peer else None
    known = {i.name for i in previous.interfaces if not i.sandbox}
    if near is None or near.name not in known:
        text = f"Could not limit {request.ifname}: it is not one end of a veth pair of prevResult"
        raise InvalidConfig(text, f"kind {far.kind or 'device'}")
    return near


def _limit(request: Request, limits: Limits, near: Link, host: Netlink) -> Link | None:
    if limits.ingress is not None:
        host.batch([shaping.token_bucket(near.index, limits.ingress)])
    if limits.egress is None:
        return None
    name = device_name(request.network, request.container_id, request.ifname)
    made = shaping.intermediate(name, near.mtu)
    try:
        host.batch([made])
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        host.delete_link(name)  # the name is this attachment's: an ADD that was killed left it
        host.batch([made])
    middle = host.require(name)
    alias = _mark(request.network) + f"{request.container_id}:{request.ifname}"
    host.batch(
        [
            set_link(middle.index, alias=alias),
            shaping.ingress(near.index),
            shaping.redirect(near.index, middle.index),
            shaping.token_bucket(middle.index, limits.egress),
        ]
    )
    return middle


def _with_interface(result: Result, extra: Interface) -> Result:
    return Result((*result.interfaces, extra), result.ips, result.routes, result.dns)


def _check_rate(host: Netlink, link: Link, wanted: Rate) -> None:
    root = next((q for q in shaping.queues(host, link.index) if q.parent == shaping.ROOT), None)
    if root is None or root.kind != "tbf" or root.bits != wanted.bits // 8 * 8:
        found = f"{root.bits} bit/s" if root is not None and root.kind == "tbf" else "none"
        raise PluginFailure(f"Could not find the limit {wanted.bits} bit/s on {link.name}", f"found {found}")


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("bandwidth"))
