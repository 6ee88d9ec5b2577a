"""A launch whose seccomp listener is handed over before the program starts.

The filter's listener is the new process's own descriptor until its execve closes it. So the process waits
once more when the filter is loaded, in a FIFO, and is let go when the agent has its copy; an agent that
cannot be reached undoes the launch. So does a process that does not go on then: its filter may forbid that,
or leave it to an agent that does not answer.
"""

from __future__ import annotations

import os

from runtime.early import WaitForStart, let_go, make_fifo
from runtime.errors import SeccompError, SpecError
from runtime.seccomp.filter import listener
from runtime.seccomp.listener import hand_over

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from runtime.launch import Process
    from runtime.plan import Attend, Operation, Plan


def launch_attended(
    fifo: str,
    profile: Mapping[str, Any],
    state: Mapping[str, Any],
    plan: Callable[[Operation], Plan],
    launch: Callable[[Plan, Attend], Process],
    seconds: float = 10.0,
) -> Process:
    """Launches `plan(how to wait)`. `fifo`: a path that is free; `state`: the container's (runtime.md,
    "State"). Raises RuntimeFailure, with nothing left."""
    heard = listener(profile)

    def attend(what: str, pid: int, number: int) -> None:
        if what != "listener":
            raise SpecError("hooks", "nobody runs them here")
        if heard is not None:
            hand_over(heard, state, pid, number)

    waits = make_fifo(fifo)
    try:
        process = launch(plan(WaitForStart(waits)), attend)
        if not let_go(fifo, process.pidfd, seconds):
            _end(process)
            raise SeccompError(
                "Could not start the process: it does not go on behind its seccomp filter (does the filter "
                "allow openat, write and execve, and does the agent answer?)"
            )
        return process
    finally:
        os.close(waits)
        os.unlink(fifo)


def _end(process: Process) -> None:
    """Kills it, and waits for its end: whoever is told of the failure finds nothing left."""
    import select
    import signal

    try:
        signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended, and somebody has reaped it
    ended = select.poll()
    ended.register(process.pidfd, select.POLLIN)
    ended.poll()
    try:
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
    except ChildProcessError:
        pass  # a sibling is its parent's to reap
    for fd in (process.pidfd, process.console):
        if fd >= 0:
            os.close(fd)
