"""Links, addresses and routes by raw rtnetlink messages, several per system call.

Wiring a pod takes about 1.6 ms this way and 4–15 ms with pyroute2 or the `ip` command (see the
project's baseline); importing pyroute2 alone would cost each plugin executable 120 ms and 25 MB.
Facts relied on (rtnetlink(7), netlink(7), net/netlink/af_netlink.c):
- a netlink socket acts on the network namespace its *creating thread* was in, for ever; so a thread is in
  the namespace only while it makes the socket;
- one datagram may carry many requests; the kernel runs them in order, tells of each that failed and goes on;
  only the last is asked for an acknowledgement, for each is a datagram to be read;
- the kernel answers inside sendmsg, so reading never waits.
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket

from cni.errors import NetlinkError
from cni.netns import visited
from cni.rtnetlink import (
    F_ACK,
    F_DUMP,
    F_REQUEST,
    IFLA_EXT_MASK,
    IFLA_IFNAME,
    MAIN_TABLE,
    NLMSG_DONE,
    NLMSG_ERROR,
    PROTO_STATIC,
    RTEXT_FILTER_SKIP_STATS,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWLINK,
    Address,
    Link,
    Message,
    RouteEntry,
    del_route,
    delete_link,
    explanation,
    header,
    ifinfo,
    new_route,
    parse,
    read_address,
    read_link,
    read_route,
    rtmsg,
    text,
    u32,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 270, 10, 11, 12


class Netlink:
    """A routing socket in one network namespace: the caller's own, or that of a descriptor.

    `protocol` makes it one of another netlink family (NETLINK_NETFILTER), for `batch` and `dump` only. Not
    for use by several threads at once; making one costs some 10 µs (30 µs in another namespace).
    """

    def __init__(self, netns_fd: int | None = None, protocol: int = 0) -> None:
        if netns_fd is None:
            self._socket = _open(protocol)
        else:
            with visited(netns_fd):
                self._socket = _open(protocol)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def batch(self, messages: Sequence[Message]) -> None:
        """Send all requests in one system call; raise NetlinkError for the first that failed.

        The kernel runs the later ones even so: what a batch made before or after a failure is the
        caller's to undo.
        """
        if not messages:
            return
        first = self._sequence + 1
        last = self._sequence = self._sequence + len(messages)
        requests = [
            header(m.kind, m.flags | F_REQUEST, first + i, m.body) for i, m in enumerate(messages[:-1])
        ]
        final = messages[-1]
        requests.append(header(final.kind, final.flags | F_REQUEST | F_ACK, last, final.body))
        self._socket.send(b"".join(requests))
        failed: NetlinkError | None = None
        sequence = 0
        while sequence != last:
            for kind, flags, sequence, payload in parse(self._socket.recv(65536)):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                number = -struct.unpack_from("=i", payload)[0]
                if number and failed is None:
                    action = messages[sequence - first].action
                    failed = NetlinkError(action, number, explanation(flags, payload))
        if failed is not None:
            raise failed

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Payloads of all objects the kernel lists; repeated when the list changed underneath (EINTR)."""
        while True:
            self._sequence += 1
            self._socket.send(header(kind, F_REQUEST | F_DUMP, self._sequence, body))
            found, interrupted = self._collect(self._sequence)
            if not interrupted:
                return found

    def _collect(self, wanted: int) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, payload in parse(self._socket.recv(65536)):
                if sequence != wanted:
                    continue
                interrupted |= bool(flags & 0x10)  # NLM_F_DUMP_INTR
                if kind == NLMSG_DONE:
                    return found, interrupted
                if kind == NLMSG_ERROR:
                    raise NetlinkError("list kernel objects", -struct.unpack_from("=i", payload)[0])
                found.append(payload)

    # --- links -----------------------------------------------------------------------------------

    def links(self) -> list[Link]:
        return [read_link(p) for p in self.dump(RTM_GETLINK, ifinfo())]

    def link(self, name: str | int) -> Link | None:
        """The link of that name or index, None when there is none."""
        body = ifinfo(index=name) if isinstance(name, int) else ifinfo() + text(IFLA_IFNAME, name)
        # Counters of traffic are most of an answer otherwise, and the kernel has to add them up.
        body += u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
        self._sequence += 1
        self._socket.send(header(RTM_GETLINK, F_REQUEST, self._sequence, body))
        while True:
            for kind, _flags, sequence, payload in parse(self._socket.recv(65536)):
                if sequence != self._sequence:
                    continue
                if kind == RTM_NEWLINK:
                    return read_link(payload)
                number = -struct.unpack_from("=i", payload)[0]
                if number in (errno.ENODEV, errno.ENOENT):
                    return None
                raise NetlinkError(f"look up interface {name}", number)

    def require(self, name: str) -> Link:
        found = self.link(name)
        if found is None:
            raise NetlinkError(f"find interface {name}", errno.ENODEV)
        return found

    def delete_link(self, name: str) -> bool:
        """Remove the link; False when it is gone already. Waits for the kernel's RCU (20 ms and more)."""
        try:
            self.batch([delete_link(name)])
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    # --- addresses and routes --------------------------------------------------------------------

    def addresses(self, index: int | None = None) -> list[Address]:
        """IPv4 and IPv6 addresses, of one link or of all."""
        body = struct.pack("=BBBBi", 0, 0, 0, 0, index or 0)
        try:
            found = self.dump(RTM_GETADDR, body) if index is None else self._dump_strictly(RTM_GETADDR, body)
        except NetlinkError as error:
            if index is None or error.errno != errno.ENODEV:
                raise
            return []  # the link has gone, and its addresses with it
        # A node has a link-local address for each pod, which older kernels list in any case.
        wanted = found if index is None else [p for p in found if struct.unpack_from("=i", p, 4)[0] == index]
        return [read_address(payload) for payload in wanted]

    def _dump_strictly(self, kind: int, body: bytes) -> list[bytes]:
        """As `dump`, but of what the request names, where the kernel can tell it (since 4.20)."""
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return self.dump(kind, body)
        try:
            return self.dump(kind, body)
        finally:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 0)

    def routes(self, table: int | None = MAIN_TABLE, family: int = AF_INET) -> list[RouteEntry]:
        found = [read_route(p) for p in self.dump(RTM_GETROUTE, rtmsg(family))]
        return [r for r in found if table is None or r.table == table]

    def add_route(
        self,
        dst: str,
        *,
        dev: str | int | None = None,
        gw: str = "",
        kind: str = "unicast",
        metric: int = 0,
        table: int = MAIN_TABLE,
        protocol: int = PROTO_STATIC,
        replace: bool = True,
    ) -> None:
        """Add a route (replace one of same prefix and metric). `kind` "unreachable" takes no device."""
        index = self.require(dev).index if isinstance(dev, str) else dev or 0
        self.batch(
            [
                new_route(
                    dst,
                    index=index,
                    gw=gw,
                    kind=kind,
                    metric=metric,
                    table=table,
                    protocol=protocol,
                    replace=replace,
                )
            ]
        )

    def delete_route(
        self,
        dst: str,
        *,
        dev: str | int | None = None,
        kind: str = "unicast",
        metric: int = 0,
        table: int = MAIN_TABLE,
        protocol: int = 0,
    ) -> bool:
        """Remove a route that has all the given properties; False when there is none."""
        index = 0
        if isinstance(dev, str):
            link = self.link(dev)
            if link is None:
                return False
            index = link.index
        elif dev is not None:
            index = dev
        try:
            self.batch(
                [del_route(dst, index=index, kind=kind, metric=metric, table=table, protocol=protocol)]
            )
        except NetlinkError as error:
            if error.errno in (errno.ESRCH, errno.ENODEV):
                return False
            raise
        return True


def _open(protocol: int) -> socket:
    channel = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol)
    channel.bind((0, 0))
    channel.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    channel.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    return channel
