"""Pseudo terminals for containers and execs.

A process that is given a tty from the host's devpts cannot find its name (`tty`, `screen`, `sudo` ask),
since that devpts is not mounted where it lives. So an exec gets a pair out of the container's own devpts:
the master is opened through /proc/<pid>/root and the slave is asked of the master itself (TIOCGPTPEER,
Linux 4.13), which never walks a path that the container controls.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import termios

TIOCSPTLCK = 0x40045431
TIOCGPTPEER = 0x5441
PTMX = os.makedev(5, 2)
STEP = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def open_pair() -> tuple[int, int]:
    """(master, slave) from the host's devpts: a container's first process has no devpts of its own yet."""
    return os.openpty()


def open_pair_inside(init_pid: int) -> tuple[int, int]:
    """(master, slave) from the devpts that process `init_pid` sees; from the host's when it has none.

    Every step refuses symlinks and the node must be the ptmx device, because the container may have put
    anything there.
    """
    try:
        master = open_master(f"/proc/{init_pid}/root")
    except OSError:
        return open_pair()
    try:
        fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        os.close(master)
        return open_pair()
    return master, slave


def open_master(root: str) -> int:
    """Open <root>/dev/pts/ptmx without following any link. Raises OSError when it isn't what it should be."""
    held = [os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        for name in ("dev", "pts"):
            held.append(os.open(name, STEP, dir_fd=held[-1]))
        held.append(os.open("ptmx", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held[-1]))
        node = os.fstat(held[-1])
        if not stat.S_ISCHR(node.st_mode) or node.st_rdev != PTMX:
            raise OSError(0, "not the ptmx device")
        return os.open(f"/proc/self/fd/{held[-1]}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    finally:
        for descriptor in held:
            os.close(descriptor)


def resize(master: int, width: int, height: int) -> None:
    """Tell the terminal its size in characters; the foreground processes get SIGWINCH."""
    size = struct.pack("HHHH", min(max(height, 0), 65535), min(max(width, 0), 65535), 0, 0)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)
