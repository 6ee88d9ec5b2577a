"""Starts what was prepared when it was created (ahead.py): one call, without Python between its system calls.

A program that comes upon something unforeseen stops; its processes end, and with them all they had made but
for folders below the container's own. Then the plan is executed as any other (launch.py), which also tells
what is wrong, if something is.

A container of a pod that is still being wired can be started as well, but `held`: its process waits at a gate
when everything but its execve is done. The agent has the gate (gate.py); should it go, the process ends.
"""

from __future__ import annotations

import errno
import os

from runtime.cgroups import oom_files
from runtime.cgroups.oom_files import OomFiles
from runtime.errors import errno_name
from runtime.gate import open_gate
from runtime.launch import Process, finish
from runtime.program import Given, Program, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux import LinuxKernel

    Give = Callable[[int], None]

NAME = "program"

# What a container's program is given beside the three streams: the gate, if it is held, then the namespaces
# of pause that it joins.
GATE, FIRST_JOINED = Given(Given.FIRST + 3), 4


def exists(path: str) -> bool:
    """Whether there is a program to start from."""
    return os.path.exists(path)


def start(
    kernel: LinuxKernel,
    path: str,
    stdio: tuple[int, int, int],
    *,
    pause: int = 0,
    gate: str = "",
    give: Give | None = None,
) -> Process | None:
    """Runs the program in `path`, whose process becomes our child, and removes it: it is good for one start.
    None if there is none, or it has come upon something unforeseen, or its gate was closed. `pause`: the
    process whose namespaces it joins. `gate`: the one at which it waits, as `gate_of` has it; "" if it is not
    held. `give`: gives pipes to a user.
    """
    if not exists(path):
        return None
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.unlink(path)
        program = load(file)
        if program is None or program.held != bool(gate) or min(stdio) <= 2:
            return None
        pid, warnings = _perform_joining(kernel, file, program, stdio, pause, gate, give)
    except OSError:
        return None  # no memory, or none at its place: executing the plan may do without, or says so
    finally:
        os.close(file)
    if pid <= 0:
        return None
    watched = (-1, 0)
    try:
        watched = oom_files.watch(OomFiles(*program.oom))
    except OSError as error:
        warnings.append(f"Could not watch for OOM kills: {errno_name(error.errno or 0)}")
    started = finish(kernel, pid, os.pidfd_open(pid), (*program.notes, *warnings), program.late)
    values = started.pid, started.start_time_ticks, started.pidfd, -1, started.warnings
    return Process(*values, watched)


def _perform_joining(
    kernel: LinuxKernel,
    file: int,
    program: Program,
    stdio: tuple[int, int, int],
    pause: int,
    gate: str,
    give: Give | None,
) -> tuple[int, list[str]]:
    """As `perform`, with what a container's program is given. Raises OSError."""
    opened = []
    try:
        opened.append(open_gate(gate) if gate else -1)
        for name in program.joined:
            opened.append(os.open(f"/proc/{pause}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
        return perform(kernel, file, program, (*stdio, *opened), give)
    finally:
        for descriptor in opened:
            if descriptor >= 0:
                os.close(descriptor)


def perform(
    kernel: LinuxKernel, file: int, program: Program, values: tuple[int, ...], give: Give | None
) -> tuple[int, list[str]]:
    """Runs the program of an open file with the `values` that are Given to it: the pid of our new child, 0
    when it has stopped, and what could not be done. Raises OSError when it cannot be run."""
    if give is not None:
        give(program.owner)
    given = [(offset, values[number]) for number, offset in program.given]
    wanted = (0, program.child, *(offset for offset, _ in program.tolerated))
    failed, pid, *results = kernel.perform(file, program.place, given, wanted)
    if failed:
        _reap(pid)
        return 0, []
    return pid, [
        f"{text}: {errno_name(-result)}"
        for (_, text), result in zip(program.tolerated, results, strict=True)
        if result < 0 and result != -errno.ENOSYS
    ]


def _reap(pid: int) -> None:
    """Collects the child if it was the one that failed; a process-wide reaper may have been faster."""
    if pid > 0:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            return
