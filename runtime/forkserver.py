"""The forkserver: a lean, single-threaded process whose only work is to fork shims.

A threaded agent must not fork (locks held by threads that don't exist in the child), and a shim forked
from a process with a large heap would own a copy of every page it touches. So the agent starts this
process by exec'ing a fresh interpreter with few imports; each shim shares nearly all its pages with it.
It ends when the agent's socket closes; the shims, sessions of their own, go on and are adopted by init.

Protocol (SOCK_SEQPACKET): one message per shim, JSON `{"directory": …, "containers": …}` with two
descriptors: the shim's listening socket and its first client. The answer comes from the shim, on that
first client; if the fork fails the descriptors are closed, which the agent sees as the end of it.
"""

from __future__ import annotations

import _thread
import gc
import json
import os
import signal
import socket
import sys

from runtime import cgroups, shim
from runtime.capabilities import DEFAULT
from runtime.linux import LinuxKernel
from runtime.machine import this_machine
from runtime.seccomp.filter import compiled
from runtime.seccomp.profile import runtime_default

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import CgroupDriver

THREAD_STACK = 256 * 1024
LARGEST_REQUEST = 16384


def main(descriptor: int) -> None:
    """Serve the agent on the socket `descriptor` until it is gone."""
    kernel, driver = settle(descriptor)
    with socket.socket(fileno=descriptor) as agent:
        while True:
            message, descriptors, _, _ = socket.recv_fds(agent, LARGEST_REQUEST, 2)
            if not message:
                return
            if fork() == 0:
                become_shim(json.loads(message), descriptors, agent, kernel, driver)
            for number in descriptors:
                os.close(number)


def settle(descriptor: int) -> tuple[LinuxKernel, CgroupDriver]:
    """What all shims inherit: nothing of the agent's, no readable memory, and what each would make anew."""
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
    kernel = LinuxKernel()
    kernel.dumpable(False)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir("/")
    _thread.stack_size(THREAD_STACK)
    driver = cgroups.detect()
    compiled(runtime_default(DEFAULT, this_machine().name))  # what nearly every container loads
    gc.collect()
    gc.freeze()
    return kernel, driver


def fork() -> int:
    """As os.fork; -1 when the kernel refuses. The closed descriptors tell the agent, stderr says why."""
    try:
        return os.fork()
    except OSError as error:
        os.write(2, f"Could not fork shim: {error.strerror}\n".encode())
        return -1


def become_shim(
    request: dict[str, str],
    descriptors: list[int],
    agent: socket.socket,
    kernel: LinuxKernel,
    driver: CgroupDriver,
) -> None:
    """The child's side: a session of its own, its own log as stderr, then the shim. Does not return."""
    code = 1
    try:
        agent.close()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        directory = request["directory"]
        name_process("kubelet-py-shim")
        log = os.open(f"{directory}/shim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 2)
        os.close(log)
        listener, first = (socket.socket(fileno=number) for number in descriptors)
        shim.Shim(directory, request["containers"], listener, kernel=kernel, driver=driver).run(first)
        code = 0
    except BaseException as error:
        # Whatever it was, this process may not fall back into the forkserver's loop.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def name_process(name: str) -> None:
    """What ps and top show; at most 15 bytes."""
    descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(descriptor, name.encode())
    os.close(descriptor)
