"""Whether the kernel's OOM killer was in a container, and what to call its end.

The counter is the cgroup's own (`oom_kill` in memory.events on v2, in memory.oom_control on v1; execs have no
memory cgroups of their own, so theirs count, too). It is read when the container's first process has ended:
the kernel raises it before it sends the SIGKILL, so at that moment it is final.

A container may also go on when one of its processes is killed. The kernel says so by a poll event, on v2
when the counter has changed, on v1 just before it kills; so the counter is read a little later.
"""

from __future__ import annotations

import os

from runtime.cgroups import oom_files
from runtime.errors import CgroupError
from runtime.launch import Process
from runtime.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.cgroups import Cgroup
    from runtime.loop import Loop

OOM_KILLED = "OOMKilled"
COMPLETED = "Completed"
ERROR = "Error"
# The second look is for a victim that took its time to be chosen. What ends the container has its own way.
LOOK_AFTER_SECONDS = (0.1, 1.0)
EVENT_BYTES = 4096
PF_EXITING = 4  # in the flags of /proc/<pid>/stat
SIGKILL_BIT = 1 << 8


class Watch:
    """Calls `look()` after the kernel has run out of memory for this cgroup, or for one above it; `look` says
    whether it found something."""

    __slots__ = ("_descriptor", "_events", "_look", "_loop", "_waiting")

    def __init__(self, loop: Loop, watched: tuple[int, int], look: Callable[[], bool]) -> None:
        """`watched`: what `watch` returned; the descriptor is ours."""
        self._loop = loop
        self._look = look
        self._waiting = False
        self._descriptor, self._events = watched
        if self._descriptor >= 0:
            loop.watch(self._descriptor, self._ready, self._events)

    def close(self) -> None:
        if self._descriptor >= 0:
            self._loop.forget(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _ready(self, mask: int) -> None:
        if self._events == READ:
            os.read(self._descriptor, EVENT_BYTES)
        else:
            os.pread(self._descriptor, EVENT_BYTES, 0)
        if not self._waiting:
            self._waiting = True
            self._loop.call_later(LOOK_AFTER_SECONDS[0], self._first_look)

    def _first_look(self) -> None:
        self._waiting = False
        if self._descriptor >= 0 and not self._look():
            self._loop.call_later(LOOK_AFTER_SECONDS[1], self._second_look)

    def _second_look(self) -> None:
        if self._descriptor >= 0:
            self._look()


def watch(process: Process, open_cgroup: Callable[[], Cgroup]) -> Process:
    """The started process with a watch on its cgroup; with a warning if that cannot be had. For workers:
    opening it in the shim itself would cost each pod 150 kB for ever."""
    try:
        watched, warnings = oom_files.watch(open_cgroup().oom_files()), process.warnings
    except (CgroupError, OSError) as error:
        watched, warnings = (-1, 0), (*process.warnings, f"Could not watch for OOM kills: {error}")
    started = process.pid, process.start_time_ticks, process.pidfd, process.console
    return Process(*started, warnings, watched)


def is_ending(pid: int) -> bool:
    """Whether a process has a SIGKILL before it, is about to exit, or has exited. On a slow machine that
    takes longer than we wait."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            pending = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd:", "ShdPnd:"))]
    except (FileNotFoundError, ProcessLookupError):
        return True
    if fields[0] in (b"Z", b"X") or int(fields[6]) & PF_EXITING:
        return True
    return any(mask & SIGKILL_BIT for mask in pending)


def kills(cgroup: Cgroup) -> int:
    """How many processes of this cgroup the OOM killer has killed; 0 when it has no memory controller."""
    return cgroup.stats().oom_kills


def reason(exit_code: int, oom_kills: int) -> str:
    """The reason in status.containerStatuses[].state.terminated, as containerd and the kubelet word it.

    A container that went on after a child was killed, and then ended well, is Completed.
    """
    if exit_code == 0:
        return COMPLETED
    return OOM_KILLED if oom_kills else ERROR
