"""Tells systemd that the node's processes have been started: sd_notify(3), one datagram to a socket.

The variable is taken out of the environment, as none of our children should speak to systemd for us. Where
nobody gave it, telling does nothing.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, MutableMapping

log = logging.getLogger("supervisor")

Tell = Callable[[str], None]


def take(environment: MutableMapping[str, str]) -> Tell | None:
    """How to tell the service manager something ("READY=1"); None where there is none."""
    address = environment.pop("NOTIFY_SOCKET", "")
    if not address:
        return None
    name = "\0" + address[1:] if address.startswith("@") else address  # abstract sockets
    return lambda message: _send(name, message)


def _send(address: str, message: str) -> None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.sendto(message.encode(), address)
    except OSError as error:
        log.warning("Failed to tell the service manager message=%s error=%s", message, error.strerror)
