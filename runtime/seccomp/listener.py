"""SCMP_ACT_NOTIFY: a filter whose listener goes to an agent, by the kernel's own interface (seccomp(2),
SECCOMP_FILTER_FLAG_NEW_LISTENER; Linux 5.0), without libseccomp.

The listener is born as a descriptor of the filtered child. Nothing the child does afterwards is certain to be
allowed, so it is not asked to send it: we take a copy from outside (pidfd_getfd, Linux 5.6) and hand it to
the agent's socket with the process's state (config-linux.md, "Seccomp", containerProcessState).
"""

from __future__ import annotations

import json
import os
import socket
import struct

from runtime import clibrary
from runtime.errors import SeccompError, errno_name
from runtime.kernel import LISTENING, Filter, Kernel, Step
from runtime.machine import this_machine
from runtime.plan import Context, Operation, Refused
from runtime.seccomp.filter import Listener

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NEW_LISTENER = 8
PATIENCE = 10.0  # seconds for an agent to take the connection, and the message


class LoadListeningSeccomp(Operation):
    """Loads a filter and has its listener taken. Afterwards the child waits for its start: execve would close
    the listener before it was."""

    program: Filter
    flags: int

    def describe(self) -> str:
        return f"load a seccomp filter of {len(self.program) // 8} instructions with a listener"

    def run(self, kernel: Kernel, context: Context) -> None:
        if context.attend is None:
            raise Refused("nobody is there to hand its listener over")
        writer = context.ready_pipe(kernel)
        context.child(Step("write", (writer, LISTENING, 1)))
        context.listener_step = len(context.steps)
        context.child(Step("seccomp", (1, self.flags | NEW_LISTENER, self.program)))


def hand_over(
    listener: Listener, state: Mapping[str, Any], pid: int, number: int, patience: float = PATIENCE
) -> None:
    """Sends the listener, which is the descriptor `number` of process `pid`, to the agent's socket. `state`
    is the container's. Raises SeccompError."""
    message = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "state": {**state, "pid": state.get("pid") or pid},
        **({"metadata": listener.metadata} if listener.metadata else {}),
    }
    try:
        fd = _copy(pid, number)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
                # Not settimeout(): then connect() fails at once while the agent's queue is full.
                limit = struct.pack("=qq", int(patience), int(patience % 1 * 1e6))
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
                channel.connect(listener.path)
                socket.send_fds(channel, [json.dumps(message).encode()], [fd])
        finally:
            os.close(fd)
    except OSError as error:
        reason = errno_name(error.errno or 0)
        raise SeccompError(
            f"Could not hand the seccomp listener to {listener.path}: {reason} (is the agent running?)"
        ) from error


def _copy(pid: int, number: int) -> int:
    """pidfd_getfd. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        call = clibrary.libc("syscall", "lllll")
        fd = call(this_machine().numbers["pidfd_getfd"], pidfd, number, 0)
        if fd < 0:
            raise OSError(clibrary.errno(), "pidfd_getfd")
        return fd
    finally:
        os.close(pidfd)
