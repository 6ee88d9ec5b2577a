"""A cable that takes its time: frames between a machine's veth and the switch's bridge, held back for a
while.

The kernel's own tool for that is sch_netem, which many kernels of VMs lack. So a process stands in the cable:
it takes frames from the switch's end of the veth by a packet socket, and from the bridge by a tap device that
is the machine's port meanwhile. Both speak virtio's header, in which the kernel says what it has left undone
(a checksum, the splitting of a large TCP segment): handed on, it is done by whoever needs it. Fifo, as a line
is.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x2, 0x1000, 0x4000
OFFLOADS = 0x1 | 0x2 | 0x4  # checksums, TCP segments of IPv4 and IPv6
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_OUTGOING = 263, 15, 4
HEADER = 10  # bytes of struct virtio_net_hdr
LARGEST = HEADER + 65536 + 64
MOST_BYTES = 32 * 1024 * 1024  # held back at a time, each way; more is lost, as in a full queue
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


def make_tap(name: str) -> int:
    """The tap device `name` in this network namespace; it goes with the descriptor. Raises OSError."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


def open_wire(interface: str) -> socket.socket:
    """A packet socket on the interface, with virtio's headers. Raises OSError."""
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * 1024 * 1024)
    wire.bind((interface, ETH_P_ALL))
    return wire


def run(wire: socket.socket, tap: int, delay: float, clock: Callable[[], float] = time.monotonic) -> None:
    """Relay until the wire is gone. `delay` in seconds."""

    def from_wire() -> bytes | None:
        frame, sender = wire.recvfrom(LARGEST)
        return None if sender[2] == PACKET_OUTGOING else frame  # what we sent comes by, too

    lines = (
        Line(from_wire, lambda frame: os.write(tap, frame), delay),
        Line(lambda: os.read(tap, LARGEST), wire.send, delay),
    )
    poll = select.poll()
    for fd in (wire.fileno(), tap):
        poll.register(fd, select.POLLIN)
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
