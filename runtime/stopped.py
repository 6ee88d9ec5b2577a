"""Children that were stopped on their way into a container.

From the moment that a child is in a container's PID namespace, what runs there as root may send it signals:
`kill -STOP -1` in a loop meets each exec before the execve. The thread that made the child waits in vfork(2)
for that execve, and cannot be woken but by being killed. So somebody else looks now and then, and kills what
is stopped: the process has then ended as any other that was killed.
"""

from __future__ import annotations

import os

from runtime.signals import SIGKILL
from runtime.state import read_file, stat_of

LOOK_SECONDS = 0.1  # starts take a few milliseconds


def kill_stopped(*makers: int) -> None:
    """Kills children of the processes `makers` that are stopped and still run our own program. Raises
    nothing: who waits for a start must not take it for failed because a look has, for want of a descriptor;
    the next one is soon."""
    for maker in makers:
        for pid in _children(maker):
            try:
                if _is_stopped(pid):
                    os.kill(pid, SIGKILL)  # it keeps its number: who would collect it is waiting for us
            except OSError:
                continue


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        lists = (read_file(f"/proc/{pid}/task/{thread}/children") for thread in threads)
        return [int(number) for found in lists for number in found.split()]
    except OSError:
        return []


def _is_stopped(pid: int) -> bool:
    found = stat_of(pid)
    return found is not None and found[0] == "T" and _program(pid) == _program(os.getpid())


def _program(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/exe")
