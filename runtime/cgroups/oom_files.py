"""How the kernel tells of a cgroup that is out of memory: which files say so, and how they are asked.

Apart from the drivers because a shim opens them for a container that was started ahead (prepared.py), and
each line of Python that a shim runs for the first time costs its pod memory.
"""

from __future__ import annotations

import os

from runtime.records import Record

EPOLLIN, EPOLLPRI = 1, 2  # importing select costs each shim
EVENTS_BYTES = 4096


class OomFiles(Record):
    """`events`: memory.events of v2, or memory.oom_control of v1, whose events are asked for by writing to
    `control`. Both "" without a memory controller."""

    events: str = ""
    control: str = ""


def watch(files: OomFiles) -> tuple[int, int]:
    """A descriptor and the poll event by which it tells; (-1, 0) when there is nothing to watch. Raises
    OSError. On v2 reading it makes it ready to tell again; on v1 the kernel is about to kill, and the counter
    follows."""
    if not files.events:
        return -1, 0
    try:
        events = os.open(files.events, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1, 0
    if not files.control:
        os.pread(events, EVENTS_BYTES, 0)
        return events, EPOLLPRI
    watched = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(files.control, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, f"{watched} {events}".encode())
        finally:
            os.close(control)
    except OSError:
        os.close(watched)
        raise
    finally:
        os.close(events)
    return watched, EPOLLIN
