"""A plan, executed: in a thread made for it and thrown away afterwards.

unshare and setns act on one thread, so a thread can go into a container's namespaces and root, start the
process there and end; Python itself is never forked, whatever its size. When something fails, the thread's
end takes the half-made namespaces and mounts with it: nothing is left. That is why nothing in this path may
import modules late: in the middle of a plan, paths mean the container's files.
"""

from __future__ import annotations

import _thread
import os

from runtime.errors import ExecutableError, LaunchError, errno_name
from runtime.kernel import Kernel
from runtime.plan import Context, Operation, Plan, Refused
from runtime.process import Execute, FindExecutable
from runtime.records import Record
from runtime.stopped import LOOK_SECONDS, kill_stopped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from runtime.plan import Attend

    class Launch(Protocol):
        """`launch`, or what stands in for it."""

        def __call__(
            self,
            kernel: Kernel,
            plan: Plan,
            stdio: tuple[int, int, int],
            *,
            terminal: bool = False,
            attend: Attend | None = None,
            sibling: bool = False,
        ) -> Process: ...


class Process(Record):
    """A started process. `start_time_ticks` since boot tells it from a later one with the same pid (0: it has
    ended and been reaped already). `pidfd`
    is the caller's to close, and so is `console`, the master side of a terminal made inside (-1: none).
    `warnings` says what the kernel did not allow and could be gone without. `oom`, not set by `launch`: the
    descriptor that tells of OOM kills, the caller's, too, and its poll event (-1: none).
    """

    pid: int
    start_time_ticks: int
    pidfd: int
    console: int = -1
    warnings: tuple[str, ...] = ()
    oom: tuple[int, int] = (-1, 0)


def launch(
    kernel: Kernel,
    plan: Plan,
    stdio: tuple[int, int, int],
    *,
    terminal: bool = False,
    attend: Attend | None = None,
    sibling: bool = False,
) -> Process:
    """Executes the plan; returns once the program has replaced the child.

    `stdio`: descriptors that become 0, 1 and 2; they stay the caller's. With `terminal` the first of them is
    the slave side of a pseudo terminal and becomes the controlling one; with (-1, -1, -1) a terminal is made
    from the container's own devpts and its master side returned as `Process.console`. `attend` is called on
    this thread for hooks and seccomp listeners; what it raises undoes the launch and is raised here. A
    `sibling` becomes our parent's child and its to reap (not by a plan that needs a process of its own).

    Raises LaunchError (ExecutableError if it was the program) with nothing left behind.
    """
    context = Context(stdio, terminal)
    context.sibling = sibling
    if plan.apart:
        from runtime.apart import execute_apart

        failure = execute_apart(_execute, kernel, plan, context, attend)
        if failure is not None:
            raise failure
        return _finish(kernel, plan, context)
    outcome: list[BaseException | None] = []
    done = _thread.allocate_lock()
    done.acquire()
    line = _Line(attend, done) if attend else None
    context.attend = line.ask if line else None

    def work() -> None:
        try:
            outcome.append(_execute(kernel, plan, context))
        finally:
            done.release()

    makers = (os.getpid(), *([os.getppid()] if sibling else []))
    _thread.start_new_thread(work, ())
    _wait(done, makers)
    while line and line.answer():
        _wait(done, makers)
    failure = outcome[0] if outcome else LaunchError(0, "run the set-up thread", 0, "it ended early")
    if failure is not None:
        raise failure
    return _finish(kernel, plan, context)


def _wait(done: _thread.LockType, makers: tuple[int, ...]) -> None:
    while not done.acquire(True, LOOK_SECONDS):
        kill_stopped(*makers)


class _Line:
    """Between the set-up thread, which asks, and the thread that waits for it, which attends."""

    def __init__(self, attend: Attend, rung: _thread.LockType) -> None:
        self._attend = attend
        self._rung = rung
        self._answered = _thread.allocate_lock()
        self._answered.acquire()
        self._asked: list[tuple[str, int, int]] = []
        self._problems: list[BaseException] = []

    def ask(self, what: str, pid: int, number: int) -> None:
        """On the set-up thread: returns when it has been done, or raises what went wrong."""
        self._asked.append((what, pid, number))
        self._rung.release()
        self._answered.acquire()
        if self._problems:
            raise self._problems.pop()

    def answer(self) -> bool:
        """On the other: does what was asked for; False if the bell was for the end."""
        if not self._asked:
            return False
        try:
            self._attend(*self._asked.pop())
        except BaseException as error:  # carried to the asking thread, and back as the launch's failure
            self._problems.append(error)
        self._answered.release()
        return True


def _execute(kernel: Kernel, plan: Plan, context: Context) -> BaseException | None:
    """Runs the operations; returns what went wrong, for the caller's thread to raise."""
    operations = plan.operations
    failure: BaseException | None = None
    try:
        context.operations = operations
        for context.number, operation in enumerate(operations):
            operation.run(kernel, context)
            if context.early:
                break  # the child's birth has seen to the rest
    except OSError as error:
        failure = _failed(operations, context, error)
    except Refused as error:
        failure = LaunchError(context.number, operations[context.number].describe(), 0, str(error))
    except BaseException as error:  # carried to the caller's thread, raised there
        failure = error
    finally:
        if failure is None and context.console >= 0:
            context.opened.remove(context.console)
        try:
            context.close(kernel)
        except OSError as error:
            failure = failure or LaunchError(context.number, "close descriptors", error.errno or 0)
    return failure


def _failed(operations: tuple[Operation, ...], context: Context, error: OSError) -> LaunchError:
    operation = operations[context.number]
    number = error.errno or 0
    if isinstance(operation, FindExecutable):
        reason = "permission denied" if number == 13 else "executable file not found in $PATH"
        text = f'exec: "{operation.name}": {reason}'
        return ExecutableError(context.number, operation.describe(), number, text)
    if isinstance(operation, Execute):
        reason = os.strerror(number).lower()
        name = operation.args[0]
        text = f'exec: "{name}": stat {name}: {reason}' if number == 2 else f'exec: "{name}": {reason}'
        return ExecutableError(context.number, operation.describe(), number, text)
    return LaunchError(context.number, operation.describe(), number, error.strerror or str(error))


def _finish(kernel: Kernel, plan: Plan, context: Context) -> Process:
    pid, pidfd = context.process
    warnings = (*plan.notes, *(_warning(plan, entry) for entry in context.warnings))
    return finish(kernel, pid, pidfd, warnings, plan.late, context.console)


def finish(
    kernel: Kernel,
    pid: int,
    pidfd: int,
    warnings: tuple[str, ...],
    late: tuple[tuple[str, str], ...],
    console: int = -1,
) -> Process:
    """Late limits, and what tells the process apart. The process runs: problems become warnings."""
    problems = list(warnings)
    for path, value in late:
        try:
            fd = kernel.open(path, os.O_WRONLY)
            try:
                kernel.write(fd, value.encode())
            finally:
                kernel.close(fd)
        except OSError as error:
            problems.append(f"Could not set {path} to {value}: {errno_name(error.errno or 0)}")
    try:
        started = kernel.start_time(pid)
    except (FileNotFoundError, ProcessLookupError):
        # It has ended, and somebody in this process collects children faster than we look.
        started = 0
    return Process(pid, started, pidfd, console, tuple(problems))


def _warning(plan: Plan, entry: str) -> str:
    number, _, reason = entry.partition(":")
    return f"Could not {plan.operations[int(number)].describe()}: {reason}"
