"""Starting a process in a fork of the shim that ends at once.

A shim shares its memory with the forkserver until it writes to a page, and running Python code writes
(reference counts, inline caches): parsing a spec, planning and launching would leave each shim 2 MB of
its own for ever. So a short-lived worker does that, takes those pages with it, and what it started
becomes the shim's child: for that moment the shim is a child subreaper (prctl(2)). It costs about a
millisecond per start.
"""

from __future__ import annotations

import marshal
import os
import socket
import sys

from runtime.errors import RuntimeFailure, StartError
from runtime.launch import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.linux import LinuxKernel

LARGEST_RESULT = 65536


def start_in_worker(kernel: LinuxKernel, work: Callable[[], Process]) -> Process:
    """Run `work`, which launches one process, in a fork; the process is then our child.

    Raises StartError with the text of what `work` raised.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.child_subreaper(True)
    try:
        child = os.fork()
        if child == 0:
            be_worker(work, theirs)
        theirs.close()
        message, descriptors, _, _ = socket.recv_fds(ours, LARGEST_RESULT, 1)
        os.waitpid(child, 0)  # from here on what it started has us for a parent
    finally:
        ours.close()
        theirs.close()
        kernel.child_subreaper(False)
    if not message:
        raise StartError("the worker that should start the process ended early (see shim.log)")
    text, pid, start_time, warnings = marshal.loads(message)
    if text:
        raise StartError(text)
    console = descriptors[0] if descriptors else -1
    return Process(pid, start_time, os.pidfd_open(pid), console, warnings)


def be_worker(work: Callable[[], Process], answer: socket.socket) -> None:
    """The fork's side. Does not return."""
    try:
        result, consoles = attempt(work)
        socket.send_fds(answer, [marshal.dumps(result)], consoles)
    except BaseException as error:
        # Nothing may get back into the shim's loop from here; shim.log has it.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def attempt(work: Callable[[], Process]) -> tuple[tuple[str, int, int, tuple[str, ...]], list[int]]:
    """What `work` came to, as values that marshal knows: (error text or "", pid, start time, warnings)."""
    try:
        process = work()
    except (RuntimeFailure, OSError, ValueError, KeyError) as error:
        return (str(error)[: LARGEST_RESULT // 8] or type(error).__name__, 0, 0, ()), []
    consoles = [process.console] if process.console >= 0 else []
    return ("", process.pid, process.start_time_ticks, process.warnings), consoles
