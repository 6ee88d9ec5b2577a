"""The command line's Python, executed once more from a read-only mount, where it was not from the beginning.

The launcher's program does that at once (oci_start.py). An entry point of pip's has the kernel execute Python
by its path, and a container that gets hold of /proc/<pid>/exe of what starts it could overwrite that file for
the whole machine (CVE-2019-5736). So a command that starts something in a container begins again, as runc
does with a copy of itself; that costs a second start of the interpreter. Whoever may not make mounts, or has
a kernel that cannot (before 5.12), goes on as it is; see oci_start.py.
"""

from __future__ import annotations

import os
import sys

from runtime.linux import LinuxKernel
from runtime.mounting import read_only

MARK = "kubelet-py-again"  # an option of the second one's (-X), which Python does not look at


def name_process() -> None:
    """Executed by its descriptor, the process is called after that."""
    with open("/proc/self/comm", "wb", 0) as file:
        file.write(os.fsencode(os.path.basename(sys.argv[0])))


def begin_again() -> None:
    """Execute this command from a read-only mount of its Python. Returns where that cannot be."""
    own = os.path.realpath("/proc/self/exe")
    try:
        python = read_only(LinuxKernel(), own)
    except OSError:
        return
    try:
        with open(own, "rb") as file:
            # Its loader would look for its library beside /proc/self/exe, which in that mount is "/".
            if b"$ORIGIN" not in file.read():
                first, *others = sys.orig_argv
                os.execv(f"/proc/self/fd/{python}", [first, "-X", MARK, *others])
    except OSError:
        return
    finally:
        os.close(python)
