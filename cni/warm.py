"""The agent's side of `knock`: our plugins, imported once, at the service of their own programs.

Another runtime on the node (podman, containerd) runs our plugins as programs; while the agent lives they need
not import anything. The socket lies beside the programs, is root's alone, and whoever asks is looked at
(SO_PEERCRED): a caller in other network, mount or PID namespaces than ours means other things by the paths it
names, is refused, and does its work by itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import threading
from pathlib import Path

from cni import skeleton
from cni.errors import CniError
from cni.knock import ACCEPTED, REFUSED, SOCKET
from cni.types import LATEST

log = logging.getLogger(__name__)

_NAMESPACES = ("net", "mnt", "pid", "user")
_LONGEST = 1 << 16


class WarmPlugins:
    """Serves the programs of `folder` from `start` to `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Begin to serve; calling it again does nothing. A path too long for a socket is only logged: the
        programs work without."""
        if self._socket is not None:
            return
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = self._folder / SOCKET
        try:
            path.unlink(missing_ok=True)  # a killed agent's
            made.bind(str(path))
            path.chmod(0o600)
            made.listen(64)
        except OSError as error:
            made.close()
            log.warning("Went on without serving the plugin programs socket=%s error=%s", path, error)
            return
        self._socket = made
        threading.Thread(target=self._accept, args=(made,), name="cni-warm", daemon=True).start()

    def stop(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
            self._socket.close()
            self._socket = None
            (self._folder / SOCKET).unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(caller,), name="cni-program", daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):  # a caller that went away
            caller.settimeout(10)  # for its one message
            message, streams, _flags, _address = socket.recv_fds(caller, _LONGEST, 2)
            try:
                if len(streams) != 2 or not message or not _one_of_us(caller):
                    caller.send(REFUSED)
                    return
                caller.send(ACCEPTED)
                caller.send(bytes([self._work(message, *streams)]))
            finally:
                for stream in streams:
                    os.close(stream)

    def _work(self, message: bytes, stdin: int, stdout: int) -> int:
        kind, *pairs = message.decode(errors="surrogateescape").split("\0")
        environ = dict(pair.split("=", 1) for pair in pairs)
        with open(stdin, "rb", closefd=False) as given, open(stdout, "w", closefd=False) as answer:
            try:
                return skeleton.main(kind, str(self._folder), environ=environ, stdin=given, stdout=answer)
            except Exception as error:  # what would be a traceback and status 1 in a program of its own
                log.exception("Failed to run plugin kind=%s command=%s", kind, environ.get("CNI_COMMAND"))
                failure = CniError(f"Could not run {kind}: {type(error).__name__}", str(error))
                print(json.dumps(failure.to_json(LATEST)), file=answer)
                return 1


def _one_of_us(caller: socket.socket) -> bool:
    size = struct.calcsize("3i")
    pid, uid, _gid = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != 0:
        return False
    theirs, ours = f"/proc/{pid}/ns", "/proc/thread-self/ns"
    return all(os.readlink(f"{theirs}/{name}") == os.readlink(f"{ours}/{name}") for name in _NAMESPACES)
