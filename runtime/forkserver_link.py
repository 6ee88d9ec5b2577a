"""The agent's side of the forkserver: started by exec, asked for shims, replaced when it has died."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path

import runtime
from runtime import clibrary
from runtime.mounting import read_only

CHILD_DESCRIPTOR = 3
NAME = "python3 shims"  # executed through a descriptor, it would be called after its number
# One malloc arena: the throwaway threads of a shim would each leave it another, tens of kB per pod.
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"}


class Forkserver:
    """Starts shims without forking this process, which has threads and a heap. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._pid = 0
        self._processors: set[int] = set()
        self._current = clibrary.libc("sched_getcpu", "i")

    def start(self) -> None:
        """Exec a fresh interpreter, without site and environment (-I -S), that finds this package."""
        from runtime.linux import LinuxKernel

        kernel = LinuxKernel()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = str(Path(runtime.__file__).resolve().parent.parent)
        program = (
            f"import sys; sys.path.append({folder!r}); "
            "from runtime.forkserver import main, name_process; "
            f"name_process({NAME!r}); main({CHILD_DESCRIPTOR})"
        )
        python = read_only(kernel, sys.executable)
        null = read_only(kernel, "/dev/null")  # shims give it to containers
        with theirs:
            self._pid = os.posix_spawn(
                f"/proc/self/fd/{python}",
                [sys.executable, "-I", "-S", "-c", program],
                ENVIRONMENT,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, f"/proc/self/fd/{null}", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, self._inheritable(theirs), CHILD_DESCRIPTOR),
                ],
                setsigmask=[],
            )
        os.close(python)
        os.close(null)
        self._socket = ours
        self._processors = os.sched_getaffinity(0)

    def fork_shim(self, directory: str, containers_directory: str, listener: socket.socket) -> socket.socket:
        """Have a shim made for the sandbox in `directory`; returns its first connection. Raises OSError."""
        request = json.dumps({"directory": directory, "containers": containers_directory}).encode()
        ours, theirs = socket.socketpair()
        with theirs:
            descriptors = [listener.fileno(), theirs.fileno()]
            with self._lock:
                try:
                    self._send(request, descriptors)
                except OSError:
                    self._restart()
                    self._send(request, descriptors)
        return ours

    def close(self) -> None:
        """Let it end; the shims stay."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._pid:
            os.waitpid(self._pid, 0)
            self._pid = 0

    def _send(self, request: bytes, descriptors: list[int]) -> None:
        if self._socket is None:
            raise OSError(0, "the forkserver was not started")
        others = self._processors - {self._current()}
        if others:
            with contextlib.suppress(OSError):  # a help, no more; one that has ended is about to be noticed
                os.sched_setaffinity(self._pid, others)
        socket.send_fds(self._socket, [request], descriptors)

    def _restart(self) -> None:
        self.close()
        self.start()

    @staticmethod
    def _inheritable(theirs: socket.socket) -> int:
        # dup2 onto itself would leave close-on-exec set, so the source must be another number.
        if theirs.fileno() == CHILD_DESCRIPTOR:
            raise OSError(0, "descriptor 3 is taken by the socket itself")
        return theirs.fileno()
