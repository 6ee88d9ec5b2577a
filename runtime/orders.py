"""What the agent asks of the forkserver, from the message to the running shim.

Protocol (SOCK_SEQPACKET): one message per shim, JSON `{"directory": …, "containers": …}` with two
descriptors: the shim's listening socket and its first client. Apart from the forkserver because the
rehearsal takes the same way.
"""

from __future__ import annotations

import socket

from runtime import json_text
from runtime.records import Record
from runtime.shim import Shim

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import CgroupDriver
    from runtime.launch import Launch
    from runtime.linux import LinuxKernel
    from runtime.pages import Pages

LARGEST_REQUEST = 16384
DESCRIPTORS = 2
INT_BYTES = 4


class Order(Record):
    """A shim to be made: its folder, the folder of all containers, its listener and its first client."""

    directory: str
    containers: str
    listener: int
    first: int


class Cast(Record):
    """What a shim works with; in a rehearsal others stand in. `agent`: the pid of who has it made, 0 for
    itself."""

    driver: CgroupDriver
    pages: Pages
    launch: Launch
    agent: int


def take(line: socket.socket) -> tuple[bytes, list[int]]:
    """The next message, unread, and its descriptors; b"" when the other side is gone."""
    space = socket.CMSG_SPACE(DESCRIPTORS * INT_BYTES)
    message, ancillary, _, _ = line.recvmsg(LARGEST_REQUEST, space, socket.MSG_CMSG_CLOEXEC)
    return message, list(memoryview(ancillary[0][2]).cast("i")) if ancillary else []


def receive(line: socket.socket) -> Order | None:
    """The next order; None when the other side is gone. Raises ValueError for what is none."""
    message, numbers = take(line)
    return read(message, numbers) if message else None


def read(message: bytes, numbers: list[int]) -> Order:
    """What a message says. Raises ValueError."""
    request = json_text.loads(message.decode())
    listener, first = numbers
    return Order(request["directory"], request["containers"], listener, first)


def serve(order: Order, kernel: LinuxKernel, cast: Cast) -> Shim:
    """The shim, before it has started anything."""
    return Shim(
        order.directory,
        order.containers,
        socket.socket(fileno=order.listener),
        kernel=kernel,
        driver=cast.driver,
        pages=cast.pages,
        launch=cast.launch,
    )
