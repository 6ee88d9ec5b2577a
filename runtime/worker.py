"""Starting what was not prepared (prepared.py): in a fork of the shim that ends soon.

A shim shares its memory with the forkserver until it writes to a page, and running Python code writes
(reference counts, inline caches): parsing a spec, planning and launching would leave each shim 2 MB of
its own for ever. So a short-lived worker does that, takes those pages with it, and what it started
becomes the shim's child: for that moment the shim is a child subreaper (prctl(2)).

Most of what a worker costs is becoming one: the fork, a copy of each page that it writes to, and its end. So
the one that has started pause stays while the pod's first containers are started (`start_and_stay`, `send`):
it is told what to start by values, not by being a copy, and what it starts is born as the shim's child
(CLONE_PARENT). It is dismissed when the shim rests.
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
    from typing import Any

    from runtime.linux import LinuxKernel

    Child = tuple[int, int, int]
    Serve = Callable[[tuple[Any, ...], Child], Process]

LARGEST_ERRAND = 1 << 17
LARGEST_RESULT = 65536
MOST_DESCRIPTORS = 3
NO_PROCESS = Process(0, 0, -1)


class Starter:
    """Starts the shim's processes and reaps them; it knows its children, so that it notices strangers."""

    def __init__(self, kernel: LinuxKernel) -> None:
        self._kernel = kernel
        self._children: set[int] = set()
        self._waiting: tuple[socket.socket, int] | None = None
        self._stays = False
        self._refused: OSError | None = None

    def start(self, work: Callable[[], Process]) -> Process:
        """Run `work`, which launches one process, in a fork; the process is then our child.

        Raises StartError with the text of what `work` raised, OSError when the fork is refused.
        """
        return held(self._finish(*self._fork(work)))

    def begin(self, work: Callable[[], Process], serve: Serve | None) -> None:
        """Have a fork run `work`, while we do something else until `begun`. With `serve` it stays, and runs
        that with what is sent to it; both launch siblings then.

        Only for a shim that holds no container's stdio yet: the fork has a copy of every descriptor.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.child_subreaper(True)
        try:
            child = os.fork()
        except OSError as error:
            ours.close()
            self._refused = error
        else:
            if child == 0:
                ours.close()
                be_waiting_worker(work, serve, theirs)
            self._waiting = ours, child
            self._stays = serve is not None
        finally:
            theirs.close()

    def adopt(self, process: Process) -> None:
        """A child of ours that no worker has started."""
        self._children.add(process.pid)

    def begun(self) -> Process:
        """What `begin` has started. Raises as `start`."""
        try:
            if self._waiting is None:
                raise self._refused or StartError("there is no worker that should start the process")
            answer = receive(self._waiting[0])
            if not self._stays:
                self.dismiss()
        finally:
            self._kernel.child_subreaper(False)
        try:
            return held(self._finish(*answer))
        except StartError:
            self.dismiss()
            raise

    def send(self, values: tuple[Any, ...], child: Child) -> Process | None:
        """Have the worker that stays start a process with the stdio `child`; None when there is none.

        `values`: what marshal knows. Raises as `start`.
        """
        if self._waiting is None:
            return None
        line, _ = self._waiting
        self._kernel.child_subreaper(True)
        try:
            socket.send_fds(line, [marshal.dumps(values)], [fd for fd in child if fd >= 0])
            answer = receive(line)
        except OSError:
            self.dismiss()  # it was killed before it has read this, or it is more than a message can hold
            return None
        finally:
            self._kernel.child_subreaper(False)
        if not answer[0]:
            self.dismiss()
        return held(self._finish(*answer))

    def dismiss(self) -> None:
        """Nothing more is to be started soon: the worker that stays ends."""
        if self._waiting is not None:
            (line, child), self._waiting = self._waiting, None
            line.close()
            os.waitpid(child, 0)

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` in a fork and wait for it. Raises as `start`."""

        def worked() -> Process:
            work()
            return NO_PROCESS

        self._finish(*self._fork(worked))

    def _finish(self, message: bytes, descriptors: list[int]) -> Process:
        """What a worker's answer means. Raises StartError."""
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
        """What a worker answered that did `work` and ended."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.child_subreaper(True)
        try:
            child = os.fork()
            if child == 0:
                be_worker(work, theirs)
            theirs.close()
            answer = receive(ours)
            os.waitpid(child, 0)  # from here on what it started has us for a parent
        finally:
            ours.close()
            theirs.close()
            self._kernel.child_subreaper(False)
        return answer

    def _reap_strangers(self) -> None:
        """Orphans of a container in the host's PID namespace that came to us while we were a subreaper, and
        what was born as our child but could not become its program."""
        known = {*self._children, self._waiting[1]} if self._waiting else self._children
        try:
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in known:
                    return
                os.waitpid(ended.si_pid, 0)
        except ChildProcessError:
            return


def held(started: Process) -> Process:
    """The process, our child, with a pidfd."""
    return Process(
        started.pid,
        started.start_time_ticks,
        os.pidfd_open(started.pid),
        started.console,
        started.warnings,
        started.oom,
    )


def receive(line: socket.socket) -> tuple[bytes, list[int]]:
    """What a worker answered, and what it has opened for us: a terminal, a watch for OOM kills."""
    message, descriptors, _, _ = socket.recv_fds(line, LARGEST_RESULT, MOST_DESCRIPTORS)
    return message, descriptors


def be_worker(work: Callable[[], Process], line: socket.socket) -> None:
    """The fork's side. Does not return."""
    try:
        answer(line, work)
    except BaseException as error:
        # Nothing may get back into the shim's loop from here; shim.log has it.
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def be_waiting_worker(work: Callable[[], Process], serve: Serve | None, line: socket.socket) -> None:
    """The side of a fork that stays until the other end of `line` is closed. Does not return."""
    try:
        answer(line, work)
        while serve is not None:
            message, fds, _, _ = socket.recv_fds(
                line, LARGEST_ERRAND, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            if not message:
                break
            first, second, third = (*fds, -1, -1, -1)[:3]
            values = marshal.loads(message)
            child = (first, second, third)
            answer(line, lambda serve=serve, values=values, child=child: serve(values, child))  # type: ignore[misc]
            for descriptor in fds:
                os.close(descriptor)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(0)


def answer(line: socket.socket, work: Callable[[], Process]) -> None:
    """Do `work`, send what it came to, and keep nothing of it."""
    result, descriptors = attempt(work)
    socket.send_fds(line, [marshal.dumps(result)], descriptors)
    for descriptor in descriptors:
        os.close(descriptor)


def attempt(
    work: Callable[[], Process],
) -> tuple[tuple[str, int, int, tuple[str, ...], bool, int], list[int]]:
    """What `work` came to, as values that marshal knows: (error text or "", pid, start time, warnings,
    whether there is a console, poll event of the watch for OOM kills or 0); and those two descriptors."""
    try:
        process = work()
    except (RuntimeFailure, OSError, ValueError, KeyError) as error:
        return (str(error)[: LARGEST_RESULT // 8] or type(error).__name__, 0, 0, (), False, 0), []
    if process.pidfd >= 0:
        os.close(process.pidfd)
    oom, event = process.oom
    descriptors = [opened for opened in (process.console, oom) if opened >= 0]
    values = process.pid, process.start_time_ticks, process.warnings, process.console >= 0, event
    return ("", *values), descriptors
