"""A launch whose seccomp listener is handed over before the program starts.

The filter's listener is the new process's own descriptor until its execve closes it. So the process waits
once more when the filter is loaded, in a FIFO, and is let go when the agent has its copy; an agent that
cannot be reached undoes the launch.
"""

from __future__ import annotations

import os

from runtime.early import WaitForStart, let_go, make_fifo
from runtime.errors import SpecError
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
        let_go(fifo)
        return process
    finally:
        os.close(waits)
        os.unlink(fifo)
