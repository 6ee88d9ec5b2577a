"""Opening a pidfd by a number that was written down, and may by now be somebody else's."""

from __future__ import annotations

import errno
import os

# What pidfd_open(2) says of the number of a thread that leads no process, by kernel: EINVAL up to 6.15.
GONE = (errno.ESRCH, errno.ENOENT, errno.EINVAL)


def open_process(pid: int) -> int | None:
    """A pidfd of the process `pid`, or None where there is none: the kernel gives threads numbers of the same
    row, so the number of a process that has ended may be a thread's. Raises OSError for all else."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
