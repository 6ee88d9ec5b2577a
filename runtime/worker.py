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
MOST_DESCRIPTORS = 2
NO_PROCESS = Process(0, 0, -1)


class Starter:
    """Starts the shim's processes and reaps them; it knows its children, so that it notices strangers."""

    def __init__(self, kernel: LinuxKernel) -> None:
        self._kernel = kernel
        self._children: set[int] = set()

    def start(self, work: Callable[[], Process]) -> Process:
        """Run `work`, which launches one process, in a fork; the process is then our child.

        Raises StartError with the text of what `work` raised, OSError when the fork is refused.
        """
        started = self._finish(work)
        return Process(
            started.pid,
            started.start_time_ticks,
            os.pidfd_open(started.pid),
            started.console,
            started.warnings,
            started.oom,
        )

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` in a fork and wait for it. Raises as `start`."""

        def worked() -> Process:
            work()
            return NO_PROCESS

        self._finish(worked)

    def _finish(self, work: Callable[[], Process]) -> Process:
        message, descriptors = self._fork(work)
        if not message:
            raise StartError("the worker that should start the process ended early (see shim.log)")
        text, pid, start_time, warnings, has_console, oom_event = marshal.loads(message)
        if not text and pid:
            self._children.add(pid)
        self._reap_strangers()
        if text:
            raise StartError(text)
        console = descriptors.pop(0) if has_console else -1
        oom = descriptors.pop() if oom_event else -1
        return Process(pid, start_time, -1, console, warnings, (oom, oom_event))

    def reap(self, process: Process) -> int:
        """The exit code of a process whose pidfd is readable, or 128 + the signal that killed it."""
        ended = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)
        self._children.discard(process.pid)
        if ended is None:
            raise ChildProcessError(f"process {process.pid} has ended but cannot be reaped")
        return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status

    def _fork(self, work: Callable[[], Process]) -> tuple[bytes, list[int]]:
        """What the worker answered, and what it has opened for us: a terminal, a watch for OOM kills."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.child_subreaper(True)
        try:
            child = os.fork()
            if child == 0:
                be_worker(work, theirs)
            theirs.close()
            message, descriptors, _, _ = socket.recv_fds(ours, LARGEST_RESULT, MOST_DESCRIPTORS)
            os.waitpid(child, 0)  # from here on what it started has us for a parent
        finally:
            ours.close()
            theirs.close()
            self._kernel.child_subreaper(False)
        return message, descriptors

    def _reap_strangers(self) -> None:
        """Orphans of a container in the host's PID namespace that came to us while we were a subreaper."""
        try:
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in self._children:
                    return
                os.waitpid(ended.si_pid, 0)
        except ChildProcessError:
            return


def be_worker(work: Callable[[], Process], answer: socket.socket) -> None:
    """The fork's side. Does not return."""
    try:
        result, descriptors = attempt(work)
        socket.send_fds(answer, [marshal.dumps(result)], descriptors)
    except BaseException as error:
        # Nothing may get back into the shim's loop from here; shim.log has it.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def attempt(
    work: Callable[[], Process],
) -> tuple[tuple[str, int, int, tuple[str, ...], bool, int], list[int]]:
    """What `work` came to, as values that marshal knows: (error text or "", pid, start time, warnings,
    whether there is a console, poll event of the watch for OOM kills or 0); and those two descriptors."""
    try:
        process = work()
    except (RuntimeFailure, OSError, ValueError, KeyError) as error:
        return (str(error)[: LARGEST_RESULT // 8] or type(error).__name__, 0, 0, (), False, 0), []
    oom, event = process.oom
    descriptors = [opened for opened in (process.console, oom) if opened >= 0]
    values = process.pid, process.start_time_ticks, process.warnings, process.console >= 0, event
    return ("", *values), descriptors
