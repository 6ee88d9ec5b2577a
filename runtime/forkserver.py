"""The forkserver: a lean, single-threaded process whose only work is to fork shims.

A threaded agent must not fork (locks held by threads that don't exist in the child), and a shim forked
from a process with a large heap would own a copy of every page it touches. So the agent starts this
process by exec'ing a fresh interpreter with few imports; each shim shares nearly all its pages with it.
It ends when the agent's socket closes; the shims, sessions of their own, go on and are adopted by init.

One fork is made before it is asked for: it waits for an order (`be_spare`), so that a pod does not wait for a
fork. The next one is made when the pod that got it has started, unless another pod comes before: who makes a
fork has the processor that the pod needs.

An agent is busy with a pod while its shim is, and some kernels wake what has slept on the processor of who
wakes it, where it then waits. So with each order the agent keeps us off its processor (forkserver_link.py),
we keep the spare off it, and the shim, which runs on another by then, may run where the agent may.

The protocol is in runtime/orders.py. The answer comes from the shim, on the first client; if the fork fails
the descriptors are closed, which the agent sees as the end of it.
"""

from __future__ import annotations

import _thread
import gc
import os
import select
import signal
import socket
import sys

from runtime import cgroups
from runtime.capabilities import DEFAULT
from runtime.errors import RuntimeFailure
from runtime.launch import launch
from runtime.linux import LinuxKernel
from runtime.machine import this_machine
from runtime.orders import Cast, Order, read, receive, serve, take
from runtime.pages import Pages
from runtime.rehearsal import Sitting, rehearse
from runtime.seccomp.filter import compiled
from runtime.seccomp.profile import runtime_default
from runtime.state import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.cgroups import CgroupDriver

THREAD_STACK = 256 * 1024
CALM_SECONDS = 0.03


def main(descriptor: int) -> None:
    """Serve the agent on the socket `descriptor` until it is gone."""
    kernel, driver, pages = settle(descriptor)
    with socket.socket(fileno=descriptor) as agent:
        sitting = prepare_sitting(kernel, pages)
        if sitting is not None:
            take_picture(sitting, agent, kernel)
        sitting = None  # its memory is free again, as in the picture
        serve_orders(agent, (agent,), kernel, Cast(driver, pages, launch, os.getppid()))


def serve_orders(
    line: socket.socket, lines: tuple[socket.socket, ...], kernel: LinuxKernel, cast: Cast
) -> None:
    """Until the other end of `line` is closed. `lines`: what a shim must not keep."""
    come = False
    while True:
        spare = None
        if not come or not has_come(line):
            # Where no pods come, none shall have memory for the next one.
            spare = make_spare(lines, kernel, cast, warm=come)
        message, numbers = take(line)
        try:
            if not message:
                return
            come = True
            if not hand_over(spare, message, numbers) and fork() == 0:
                rest = () if spare is None else (spare[0],)
                become_shim(read(message, numbers), (*lines, *rest), kernel, cast)
        finally:
            if spare is not None:
                spare[0].close()
            for number in numbers:
                os.close(number)


def make_spare(
    lines: tuple[socket.socket, ...], kernel: LinuxKernel, cast: Cast, *, warm: bool
) -> tuple[socket.socket, int] | None:
    """A line to a fork that waits for an order, so that none has to wait for a fork, and its pid; None when
    the kernel refuses. It ends with the line."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = fork()
    if child == 0:
        ours.close()
        be_spare(theirs, lines, kernel, cast, warm=warm)
    theirs.close()
    if child < 0:
        ours.close()
        return None
    return ours, child


def hand_over(spare: tuple[socket.socket, int] | None, message: bytes, numbers: list[int]) -> bool:
    """Whether there was a spare, alive."""
    if spare is None:
        return False
    line, child = spare
    if has_hung_up(line):
        return False  # long ago, maybe: its number may be a stranger's by now
    try:
        os.sched_setaffinity(child, os.sched_getaffinity(0))
        socket.send_fds(line, [message], numbers)
    except OSError:
        return False
    return True


def be_spare(
    line: socket.socket, lines: tuple[socket.socket, ...], kernel: LinuxKernel, cast: Cast, *, warm: bool
) -> None:
    """The child's side. `warm`: it gets what memory it will need. Does not return."""
    try:
        for inherited in lines:
            inherited.close()
        if warm:
            cast.pages.warm()
        order = receive(line)
        if order is None:
            os._exit(0)
        become_shim(order, (line,), kernel, cast)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(1)


def has_come(line: socket.socket) -> bool:
    """Whether there is an order within CALM_SECONDS. By poll(2): what Python wants for select(2) touches
    three more pages of the stack, which a shim then has for ever."""
    poll = select.poll()
    poll.register(line, select.POLLIN)
    return bool(poll.poll(CALM_SECONDS * 1000))


def has_hung_up(line: socket.socket) -> bool:
    poll = select.poll()
    poll.register(line, 0)
    return bool(poll.poll(0))


def settle(descriptor: int) -> tuple[LinuxKernel, CgroupDriver, Pages]:
    """What all shims inherit: nothing of the agent's, no readable memory, and what each would make anew."""
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
    kernel = LinuxKernel()
    kernel.dumpable(False)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir("/")
    _thread.stack_size(THREAD_STACK)
    driver = cgroups.detect()
    machine = this_machine().name
    compiled(runtime_default(DEFAULT, machine))  # what nearly every container loads
    boot_id()  # read once for all
    pages = Pages(machine)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims are reaped by the kernel
    return kernel, driver, pages


def prepare_sitting(kernel: LinuxKernel, pages: Pages) -> Sitting | None:
    """Rehearse; the sitting that follows, in which our own loop makes shims as it will for the agent."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return rehearse(kernel, pages)
    except (OSError, RuntimeFailure) as error:
        complain(error)
        return None
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def take_picture(sitting: Sitting, agent: socket.socket, kernel: LinuxKernel) -> None:
    """Shims sit for it, made by our own loop."""

    def serve(sitting: Sitting) -> None:
        serve_orders(sitting.line, (sitting.line, agent), kernel, sitting.cast)

    serve(sitting)
    try:
        sitting.finish(serve)
    except (OSError, RuntimeFailure) as error:
        complain(error)


def complain(error: Exception) -> None:
    os.write(2, f"Could not rehearse, shims will need more memory: {error}\n".encode())


def fork() -> int:
    """As os.fork; -1 when the kernel refuses. The closed descriptors tell the agent, stderr says why."""
    try:
        return os.fork()
    except OSError as error:
        os.write(2, f"Could not fork shim: {error.strerror}\n".encode())
        return -1


def become_shim(
    order: Order,
    lines: tuple[socket.socket, ...],
    kernel: LinuxKernel,
    cast: Cast,
) -> None:
    """The child's side: a session of its own, its own log as stderr, then the shim. Does not return."""
    code = 1
    try:
        share_processors(cast.agent)
        for line in lines:
            line.close()
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        name_process("kubelet-py-shim")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(f"{order.directory}/shim.log", flags, 0o600)
        os.dup2(log, 2)
        os.close(log)
        serve(order, kernel, cast).run(socket.socket(fileno=order.first))
        code = 0
    except BaseException as error:
        # Whatever it was, this process may not fall back into the forkserver's loop.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def share_processors(agent: int) -> None:
    """Run where the agent may, which is asked each time: what we and our parent have was narrowed by it,
    maybe before our first instruction, and may have been widened for it since."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(agent))
    except OSError:
        return  # it was killed, or its cpuset is being changed: there is a processor for us, too


def name_process(name: str) -> None:
    """What ps and top show; at most 15 bytes."""
    descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(descriptor, name.encode())
    os.close(descriptor)
