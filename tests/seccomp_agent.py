"""A seccomp agent: gets listeners on a socket and answers their notifications in the kernel's place."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND
CONTINUE = 1
MKDIR, EXECVE = (83, 59) if os.uname().machine == "x86_64" else (34, 221)
ENOMEDIUM = 123


class Agent:
    """Listens on a socket; answers each notification by `answer(number) -> errno`, 0 for "go on"."""

    def __init__(self, path: Path, answer: Callable[[int], int]) -> None:
        self.path = path
        self.states: list[dict[str, Any]] = []
        self.numbers: list[int] = []
        self._answer = answer
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(4)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._server.accept()
            except OSError:
                return
            with channel:
                data, fds, _, _ = socket.recv_fds(channel, 65536, 1)
            self.states.append(json.loads(data))
            thread = threading.Thread(target=self._serve, args=(fds[0],), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, listener: int) -> None:
        try:
            while True:
                request = ctypes.create_string_buffer(80)
                fcntl.ioctl(listener, RECEIVE, request)
                identity, _pid, _flags, number = struct.unpack_from("=QIIi", request.raw)
                self.numbers.append(number)
                error = self._answer(number)
                reply = struct.pack("=QqiI", identity, 0, -error, 0 if error else CONTINUE)
                fcntl.ioctl(listener, SEND, reply)
        except OSError:  # the last process of the filter has ended
            os.close(listener)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)
