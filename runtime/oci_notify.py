"""sd_notify(3) out of a container, as runc and crun pass it on (`podman run --sdnotify=container`).

Who calls us may have a NOTIFY_SOCKET of systemd's. The container gets a socket of ours in its place, in a
folder that is bound to /run/notify. Whoever starts the container listens there until it says that it is
ready; that goes on to systemd, with the container's first process as MAINPID. Nothing else does: a container
tells no more of its unit than that.
"""

from __future__ import annotations

import os
import select
import socket

from runtime.oci_state import NOTIFY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VARIABLE, READY = "NOTIFY_SOCKET", b"READY="
NAME, INSIDE = "notify.sock", "/run/notify"
LARGEST = 4096
LOOK_SECONDS = 0.1
BARRIER_SECONDS = 30.0


def told(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """The configuration of a container with the state folder `folder`, with the socket in it. What is
    malformed stays so, for who parses it."""
    process, mounts = config.get("process"), config.get("mounts") or []
    if not isinstance(process, dict) or not isinstance(mounts, list):
        return config
    options = ["bind", "nosuid", "noexec", "nodev", "ro"]
    mount = {"destination": INSIDE, "type": "bind", "source": f"{folder}/{NOTIFY}", "options": options}
    known = process.get("env") or []
    if not isinstance(known, list):
        return config
    env = [entry for entry in known if not str(entry).startswith(f"{VARIABLE}=")]
    process = {**process, "env": [*env, f"{VARIABLE}={INSIDE}/{NAME}"]}
    return {**config, "process": process, "mounts": [*mounts, mount]}


def make(folder: str) -> None:
    """The folder that is bound; others must be able to go through it."""
    os.mkdir(f"{folder}/{NOTIFY}")
    os.chmod(f"{folder}/{NOTIFY}", 0o755)


def exists(folder: str) -> bool:
    return os.path.isdir(f"{folder}/{NOTIFY}")


def remove(folder: str) -> None:
    place = f"{folder}/{NOTIFY}"
    for name in os.listdir(place):
        os.unlink(f"{place}/{name}")
    os.rmdir(place)


class Listener:
    """The container's socket, from before it starts. Raises OSError."""

    def __init__(self, folder: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # By a descriptor: the path of a state folder may be longer than a socket's may be.
        place = os.open(f"{folder}/{NOTIFY}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{place}/{NAME}"
            if os.path.lexists(path):
                os.unlink(path)
            self._socket.bind(path)
            os.chmod(path, 0o777)  # whoever the container's process is
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(place)

    def forward(self, host: str, pid: int, lives: Callable[[], bool]) -> None:
        """Until the container is ready, and systemd knows, or it has ended. Raises OSError when systemd's
        socket `host` cannot be reached."""
        try:
            with self._socket:
                ready = self._ready(lives)
            if ready:
                _tell(host, ready, pid)
        finally:
            self._socket.close()

    def _ready(self, lives: Callable[[], bool]) -> bytes:
        while lives():
            if not select.select([self._socket], [], [], LOOK_SECONDS)[0]:
                continue
            for line in self._socket.recv(LARGEST).split(b"\n"):
                if line.startswith(READY):
                    return line
        return b""


def _tell(host: str, ready: bytes, pid: int) -> None:
    address = "\0" + host[1:] if host.startswith("@") else host
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
        systemd.connect(address)
        systemd.send(ready)
        systemd.send(b"MAINPID=%d" % pid)
        # It has to know who says so before we are gone: the other end is closed when it has come to that.
        here, there = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                socket.send_fds(systemd, [b"BARRIER=1"], [there])
            finally:
                os.close(there)
            select.select([here], [], [], BARRIER_SECONDS)
        finally:
            os.close(here)
