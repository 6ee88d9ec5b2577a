"""A child born before its container's root is finished, as OCI's create has it.

Three things of the specification need the container's first process early. Mounts are made in the listed
order, and only that process can mount the PID namespace's procfs (see procfs.py). Hooks of create want to
know its pid, and find its namespaces before the change of root. And a hook may bring the program that is
looked up afterwards. So the child is made when namespaces and root are there, shares our descriptors, and
waits between the batches of steps that the operations after its birth give it. It costs two switches between
processes per batch; a shim's warm start does without.
"""

from __future__ import annotations

import os

from runtime.kernel import PAUSE, READY, Kernel, Meeting, Step
from runtime.plan import Context, Operation, Refused
from runtime.process import start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import ClassVar

CLONE_FILES = 0x400
PR_SET_PDEATHSIG, SIGKILL = 1, 9


def make_fifo(path: str) -> int:
    """An O_PATH descriptor of a new FIFO, for WaitForStart."""
    os.mkfifo(path, 0o622)
    os.chmod(path, 0o622)  # whatever our umask: mapped roots open it, too
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def let_go(path: str, pidfd: int = -1, seconds: float = 10.0) -> bool:
    """Reads from a FIFO that a process waits in; whether it has said that it goes on. With its `pidfd` its
    end is noticed at once."""
    import select  # only here and for hooks: `run` does without

    fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # The process's own open ends when ours is there; the byte it writes says that it went on.
        select.select([fifo] if pidfd < 0 else [fifo, pidfd], [], [], seconds)
        return os.read(fifo, 1) == b"1"
    except BlockingIOError:  # it has opened the FIFO and says nothing
        return False
    finally:
        os.close(fifo)


class BearChild(Operation):
    """Makes the child now, and sees to the operations that follow."""

    def describe(self) -> str:
        return "make the process"

    def run(self, kernel: Kernel, context: Context) -> None:
        ready = context.ready_pipe(kernel)
        reader, writer = (context.keep(fd) for fd in kernel.pipe())
        context.early = True
        pause = (Step("write", (ready, PAUSE, 1)), Step("read", (reader, b"\0", 1)))
        batches = _batches(kernel, context, pause)
        # Should we be killed, it must not wait for ever.
        context.child(Step("prctl", (PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)), *pause)

        def more(pid: int) -> Sequence[Step]:
            context.process = (pid, -1)
            return next(batches)

        assert context.ready is not None
        start(kernel, context, Meeting(context.ready, context.listen, writer, more))


def _batches(kernel: Kernel, context: Context, pause: tuple[Step, ...]) -> Iterator[Sequence[Step]]:
    """The steps that operations add: up to each at which the child has to keep pace, and the last ones, which
    begin with descriptors of its own."""
    sent = len(context.steps)
    for number in range(context.number + 1, len(context.operations)):
        operation = context.operations[number]
        if (context.flush or operation.together) and len(context.steps) > sent:
            context.child(*pause)
            yield [step for step, _ in context.steps[sent:]]
            sent = len(context.steps)
        context.flush, context.number = False, number
        operation.run(kernel, context)
    separate = (Step("unshare", (CLONE_FILES,)), Step("prctl", (PR_SET_PDEATHSIG, 0, 0, 0, 0)))
    context.steps[sent:sent] = [(step, context.number) for step in separate]
    if context.listener_step >= 0:
        context.listener_step += len(separate)
    yield [step for step, _ in context.steps[sent:]]


class RunHooks(Operation):
    """Has prestart, createRuntime and createContainer hooks run, before the change of root."""

    together: ClassVar[bool] = True

    def describe(self) -> str:
        return "run hooks"

    def run(self, kernel: Kernel, context: Context) -> None:
        if context.attend is None:
            raise Refused("nobody is there to run prestart, createRuntime and createContainer hooks")
        context.attend("hooks", context.process[0], 0)


class FollowRoot(Operation):
    """The child goes where the thread is by now: the container's root, and its working directory."""

    def describe(self) -> str:
        return "have the process follow into the root"

    def run(self, kernel: Kernel, context: Context) -> None:
        here = context.keep(kernel.open(".", os.O_PATH | os.O_DIRECTORY))
        context.child(Step("fchdir", (context.root,)), Step("chroot", (".",)), Step("fchdir", (here,)))


class WaitForStart(Operation):
    """The child says that it is ready, then opens the FIFO `fd` (O_PATH) and so waits for its reader: OCI's
    create and start. The FIFO is reached through the host's /proc, because the container's root is in place
    by now."""

    fd: int

    def describe(self) -> str:
        return "wait for the start"

    def run(self, kernel: Kernel, context: Context) -> None:
        writer = context.ready_pipe(kernel)
        if context.listener_step < 0:  # else it has said so, before the filter that may forbid it
            context.child(Step("write", (writer, READY, 1)), Step("close", (writer,)))
        path = f"self/fd/{self.fd}"
        context.child(
            Step("openat", (context.host_proc, path, os.O_WRONLY | os.O_CLOEXEC, 0), pass_result=True),
            Step("write", (0, b"1", 1)),
        )
