"""VLANs of a bridge's ports: an access port (`vlan`), a trunk (`vlanTrunk`), and the gateway of a VLAN.

A bridge with VLAN filtering gives each port a set of VLANs. One of them is the port's own (PVID): what comes
in without a tag is in it, and of an untagged one frames leave without a tag. New ports get the bridge's
default VLAN, 1. A bridge's own address would be in that; so the gateway of another VLAN is a veth pair, whose
one end is a port in that VLAN, and whose other end, `<bridge>.<vlan>`, has the address (as upstream's plugin
makes it). The messages are RTM_SETLINK and RTM_DELLINK of the family AF_BRIDGE (uapi linux/if_bridge.h).
"""

from __future__ import annotations

import errno
import struct

from cni import veth
from cni.errors import InvalidConfig, NetlinkError, UnsupportedField
from cni.frozen import frozen
from cni.netns import opened
from cni.rtnetlink import (
    IFLA_INFO_BR_FILTERING,
    IFLA_LINKINFO,
    INFO_DATA,
    INFO_KIND,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    RTM_SETLINK,
    Message,
    attribute,
    ifinfo,
    new_veth,
    set_link,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from cni.netlink import Netlink
    from cni.rtnetlink import Link

AF_BRIDGE = 7
IFLA_AF_SPEC, IFLA_EXT_MASK = 26, 29
RTEXT_FILTER_BRVLAN = 2
BRIDGE_FLAGS, BRIDGE_VLAN_INFO = 0, 2
MASTER = 1
PVID, UNTAGGED, RANGE_BEGIN, RANGE_END = 2, 4, 8, 16
MOST = 4094
_LONGEST_NAME = 15


@frozen
class PortVlans:
    """What a pod's port is to have: `access` is its own VLAN (0: the bridge's default), `tagged` the trunk's;
    `default_kept` says whether it stays in the bridge's default VLAN, too."""

    access: int = 0
    tagged: tuple[int, ...] = ()
    default_kept: bool = True

    @staticmethod
    def parse(config: Mapping[str, Any]) -> PortVlans:
        """`vlan`, `vlanTrunk` and `preserveDefaultVlan`. Raises InvalidConfig."""
        access = config.get("vlan") or 0
        if isinstance(access, bool) or not isinstance(access, int) or not 0 <= access <= MOST:
            raise InvalidConfig(f"Could not accept vlan {access!r} (a number from 1 to {MOST})")
        trunk = config.get("vlanTrunk")
        tagged = tuple(sorted(set(_numbers(trunk)))) if trunk is not None else ()
        if access and tagged:
            raise InvalidConfig("Could not set vlan and vlanTrunk at the same time")
        kept = config.get("preserveDefaultVlan", True)
        if not isinstance(kept, bool):
            raise InvalidConfig(f"Could not accept preserveDefaultVlan {kept!r} (true or false)")
        return PortVlans(access, tagged, kept)

    @property
    def wanted(self) -> dict[int, int]:
        """VLAN → flags, without the default one."""
        return {**dict.fromkeys(self.tagged, 0), **({self.access: PVID | UNTAGGED} if self.access else {})}

    # acts

    def filter(self, netlink: Netlink, bridge: Link) -> None:
        """Switch the bridge's filtering on. Raises UnsupportedField where the kernel has none."""
        if not bridge.filtering:
            _ask(netlink, filter_vlans(bridge.index))

    def set_port(self, netlink: Netlink, index: int) -> None:
        """Raises UnsupportedField where the kernel's bridges know no VLANs."""
        if not self.wanted:
            return
        stray = [] if self.default_kept else sorted(set(of_port(netlink, index)) - set(self.wanted))
        messages = [remove_vlans(index, stray)] if stray else []
        _ask(netlink, *messages, add_vlans(index, self.wanted))

    def problem(self, netlink: Netlink, index: int) -> str:
        """What a port has not that it should have, "" where all is well (for CHECK)."""
        present, wanted = of_port(netlink, index), self.wanted
        lacking = sorted(number for number, flags in wanted.items() if present.get(number) != flags)
        if lacking:
            return f"VLAN {', '.join(map(str, lacking))}"
        if wanted and not self.default_kept and set(present) != set(wanted):
            return f"only VLAN {', '.join(map(str, sorted(wanted)))}"
        return ""

    def gateway(self, netlink: Netlink, bridge: Link, address: str) -> Link:
        """The interface that bears the VLAN's gateway addresses, up; made where it is not there."""
        name = gateway_name(bridge.name, self.access)
        found = netlink.link(name)
        if found is None:
            return self._new_gateway(netlink, bridge, name, veth.mac_for(address))
        if found.kind != "veth":
            kind = found.kind or "device"
            raise InvalidConfig(f"Could not use {name} as the gateway of a VLAN: it is a {kind}")
        port = netlink.link(found.peer) if found.peer else None
        if port is not None and port.master != bridge.index:  # the bridge was deleted and made again
            netlink.batch([set_link(port.index, up=True, master=bridge.index)])
        if port is not None and self.problem(netlink, port.index):
            self.set_port(netlink, port.index)
        if not found.up:
            netlink.batch([set_link(found.index, up=True)])
        return found

    def _new_gateway(self, netlink: Netlink, bridge: Link, name: str, mac: str) -> Link:
        near = f"vlan{_digest(name)}"
        netlink.delete_link(near)
        with opened("/proc/thread-self/ns/net") as here:
            pair = new_veth(
                near, peer=name, peer_netns=here, master=bridge.index, mtu=bridge.mtu, peer_mac=mac
            )
            netlink.batch([pair])
        with veth.removed_on_failure(netlink, near):
            self.set_port(netlink, netlink.require(near).index)
            netlink.batch([set_link(netlink.require(name).index, up=True)])
            return netlink.require(name)

    def remove_gateway(self, netlink: Netlink, bridge: str) -> None:
        if not self.access:
            return
        found = netlink.link(gateway_name(bridge, self.access))
        if found is not None and found.kind == "veth":
            netlink.delete_link(found.name)


def _numbers(trunk: Any) -> Iterator[int]:
    if not isinstance(trunk, list):
        raise InvalidConfig(f"Could not accept vlanTrunk {trunk!r} (a list)")
    for entry in trunk:
        if not isinstance(entry, dict):
            raise InvalidConfig(f"Could not accept {entry!r} in vlanTrunk (id, or minID and maxID)")
        if ("minID" in entry) != ("maxID" in entry):
            raise InvalidConfig(f"Could not accept {entry!r} in vlanTrunk: minID and maxID belong together")
        if "minID" in entry:
            low, high = _number(entry, "minID"), _number(entry, "maxID")
            if low > high:
                raise InvalidConfig(f"Could not accept {entry!r} in vlanTrunk: minID is above maxID")
            yield from range(low, high + 1)
        if "id" in entry:
            yield _number(entry, "id")


def _number(entry: Mapping[str, Any], key: str) -> int:
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST:
        raise InvalidConfig(f"Could not accept {key} {value!r} in vlanTrunk (a number from 1 to {MOST})")
    return value


# --- messages ------------------------------------------------------------------------------------


def filter_vlans(index: int) -> Message:
    data = attribute(IFLA_INFO_BR_FILTERING, b"\1")
    info = text(INFO_KIND, "bridge") + attribute(INFO_DATA, data)
    body = ifinfo(index=index) + attribute(IFLA_LINKINFO, info)
    return Message(f"switch VLAN filtering on, bridge {index}", RTM_NEWLINK, 0, body)


def add_vlans(index: int, wanted: Mapping[int, int]) -> Message:
    return Message(f"set VLANs of port {index}", RTM_SETLINK, 0, _body(index, wanted))


def remove_vlans(index: int, numbers: Iterable[int]) -> Message:
    return Message(f"remove VLANs of port {index}", RTM_DELLINK, 0, _body(index, dict.fromkeys(numbers, 0)))


def _body(index: int, wanted: Mapping[int, int]) -> bytes:
    spec = attribute(BRIDGE_FLAGS, struct.pack("=H", MASTER))
    for first, last, flags in _ranges(wanted):
        if first == last:
            spec += attribute(BRIDGE_VLAN_INFO, struct.pack("=HH", flags, first))
        else:
            spec += attribute(BRIDGE_VLAN_INFO, struct.pack("=HH", flags | RANGE_BEGIN, first))
            spec += attribute(BRIDGE_VLAN_INFO, struct.pack("=HH", flags | RANGE_END, last))
    head = struct.pack("=BxHiII", AF_BRIDGE, 0, index, 0, 0)
    return head + attribute(IFLA_AF_SPEC, spec)


def _ranges(wanted: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """First, last and flags of neighbours with the same flags; no range may have a PVID."""
    found: list[tuple[int, int, int]] = []
    for number in sorted(wanted):
        flags = wanted[number]
        if found and not flags & PVID and (found[-1][1], found[-1][2]) == (number - 1, flags):
            found[-1] = (found[-1][0], number, flags)
        else:
            found.append((number, number, flags))
    return found


def read_vlans(payload: bytes) -> tuple[int, dict[int, int]]:
    """A port's index and its VLANs with their flags, from a dump of the family AF_BRIDGE."""
    index = struct.unpack_from("=i", payload, 4)[0]
    found: dict[int, int] = {}
    for kind, value in _each(payload, 16):
        if kind == IFLA_AF_SPEC:
            for inner, info in _each(value, 0):
                if inner == BRIDGE_VLAN_INFO:
                    flags, number = struct.unpack_from("=HH", info)
                    found[number] = flags & (PVID | UNTAGGED)
    return index, found


def _each(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    """Attributes one by one: here several have one number."""
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


# --- acts ----------------------------------------------------------------------------------------


def of_port(netlink: Netlink, index: int) -> dict[int, int]:
    """The VLANs that a port has now."""
    question = struct.pack("=BxHiII", AF_BRIDGE, 0, 0, 0, 0) + u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN)
    found: dict[int, int] = {}
    for payload in netlink.dump(RTM_GETLINK, question):
        port, vlans = read_vlans(payload)
        if port == index:
            found |= vlans
    return found


def gateway_name(bridge: str, vlan: int) -> str:
    """Raises InvalidConfig where the kernel takes no name of that length."""
    name = f"{bridge}.{vlan}"
    if len(name) > _LONGEST_NAME:
        raise InvalidConfig(f"Could not name the gateway of VLAN {vlan} {name}: over {_LONGEST_NAME} letters")
    return name


def _digest(name: str) -> str:
    import hashlib

    return hashlib.sha256(name.encode()).hexdigest()[:8]


def _ask(netlink: Netlink, *messages: Message) -> None:
    try:
        netlink.batch(messages)
    except NetlinkError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise UnsupportedField(
            "Could not accept 'vlan' or 'vlanTrunk' of the bridge plugin: this kernel's bridges have no VLAN "
            "filtering (CONFIG_BRIDGE_VLAN_FILTERING)",
            str(error),
        ) from error
