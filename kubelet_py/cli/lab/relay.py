"""A cable that takes its time: frames between a machine's veth and the switch's bridge, held back for a
while.

The kernel's own tool for that is sch_netem, which many kernels of VMs lack. So a process stands in the cable:
it takes frames by packet sockets, from the switch's end of the machine's veth and from the far end of
another pair, whose near end is the machine's port meanwhile. Both speak virtio's header, in which the kernel
says what it has left undone (a checksum, the splitting of a large TCP segment): handed on, it is done by
whoever needs it. A tap would do in the pair's place, but takes no more than 64 kB at a time, and what is
larger would be cut to the MTU before it. Fifo, as a line is.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cni.netlink import Netlink
from cni.rtnetlink import new_veth, set_link
from cni.veth import GSO_LARGE, GSO_MOST
from runtime.kernel import Kernel
from runtime.namespaces import flags_of

FAR = "far"  # the other end of the machine's port, alone in its network namespace
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
HEADER = 10  # bytes of struct virtio_net_hdr
LARGEST = HEADER + GSO_MOST + 64
MOST_BYTES = 32 * 1024 * 1024  # held back at a time, each way; more is lost, as in a full queue
KERNELS_BYTES = 8 * 1024 * 1024  # waiting for this process
AT_ONCE = 64


class Line:
    """One way of the cable."""

    def __init__(
        self, receive: Callable[[], bytes | None], send: Callable[[bytes], object], delay: float
    ) -> None:
        self._receive = receive
        self._send = send
        self._delay = delay
        self._held: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def take(self, now: float) -> None:
        """Take what has arrived. Frames beyond what a line holds are lost."""
        for _ in range(AT_ONCE):
            try:
                frame = self._receive()
            except BlockingIOError:
                return
            if frame is not None and self._bytes < MOST_BYTES:
                self._held.append((now + self._delay, frame))
                self._bytes += len(frame)

    def give(self, now: float) -> float | None:
        """Hand over what was held back long enough; the seconds until the next is due, None for none."""
        while self._held and self._held[0][0] <= now:
            _, frame = self._held.popleft()
            self._bytes -= len(frame)
            try:
                self._send(frame)
            except (BlockingIOError, OSError):
                continue  # the far side takes no more, or does not like it: lost, as on any line
        return self._held[0][0] - now if self._held else None


class Plug:
    """One end of the relay: what arrives by an interface, and what is to leave by it."""

    def __init__(self, interface: str) -> None:
        """In the calling thread's network namespace. Raises OSError."""
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        for option in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            self._socket.setsockopt(socket.SOL_SOCKET, option, KERNELS_BYTES)
        self._socket.bind((interface, ETH_P_ALL))
        self._space = bytearray(LARGEST)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        """A frame; None for what we sent, which comes by, too. Raises BlockingIOError where there is none."""
        length, sender = self._socket.recvfrom_into(self._space)
        return None if sender[2] == PACKET_OUTGOING else bytes(memoryview(self._space)[:length])

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def close(self) -> None:
        self._socket.close()


def make_port(name: str, kernel: Kernel) -> Plug:
    """The interface `name` in this network namespace, and what it is given. Its other end is in a namespace
    that lasts as long as the plug, so both go with that; and nobody there answers. Raises OSError, CniError.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    network = flags_of(("network",))
    try:
        kernel.unshare(network)
        try:
            own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            with Netlink(home) as there, Netlink() as here:
                there.delete_link(name)  # of an earlier relay, which the kernel may not have cleared away yet
                there.batch([new_veth(name, peer=FAR, peer_netns=own, gso=GSO_LARGE)])
                os.close(own)
                quiet = Path("/proc/sys/net/ipv6/conf", FAR, "disable_ipv6")
                if quiet.exists():
                    quiet.write_text("1")
                here.batch([set_link(here.require(FAR).index, up=True)])
            return Plug(FAR)
        finally:
            kernel.setns(home, network)
    finally:
        os.close(home)


def run(wire: Plug, port: Plug, delay: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Relay until one of them is gone. `delay` in seconds."""
    lines = (Line(wire.receive, port.send, delay), Line(port.receive, wire.send, delay))
    poll = select.poll()
    for plug in (wire, port):
        poll.register(plug, select.POLLIN)
    timeout: float | None = None
    while True:
        events = poll.poll(None if timeout is None else max(0.0, timeout * 1000))
        now = clock()
        if any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in events):
            return
        for line in lines:
            line.take(now)
        waits = [wait for line in lines if (wait := line.give(clock())) is not None]
        timeout = min(waits, default=None)
