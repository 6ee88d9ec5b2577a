"""Which process is meant: a pid alone is not a name, because the kernel uses pids again.

A process is known here by its pid *and* its start time (field 22 of /proc/PID/stat, in clock ticks
since boot), as DESIGN.md asks. Signals go through a pidfd that is checked against both, so that a
recycled pid is never hit.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from runtime.pidfds import open_process


def start_ticks(pid: int) -> int | None:
    """Start time of `pid` in clock ticks since boot, or None where no such process is."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, even after its pid has been used again."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        start = start_ticks(pid)
        return None if start is None else cls(pid, start)

    def alive(self) -> bool:
        """Whether that very process still runs (a zombie does not)."""
        return start_ticks(self.pid) == self.start

    def started(self) -> float:
        """When it was started (epoch seconds): at most a clock tick, usually 0.01 s, too early."""
        boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return boot + self.start / os.sysconf("SC_CLK_TCK")

    def send(self, number: int) -> bool:
        """Send a signal; False where that very process has ended."""
        pidfd = open_process(self.pid)
        if pidfd is None:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(pidfd, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(pidfd)

    def stop(self, grace: float) -> bool:
        """SIGTERM, wait up to `grace` seconds, then SIGKILL; True where it ended by itself.

        Works on processes that are nobody's child of ours. Returns once the process is gone.
        """
        pidfd = open_process(self.pid)
        if pidfd is None:
            return True
        try:
            if not self.alive():
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if select.select([pidfd], [], [], grace)[0]:
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5.0)
            return False
        except ProcessLookupError:
            return True
        finally:
            os.close(pidfd)
