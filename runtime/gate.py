"""A gate: where a process that is set up waits until its pod is ready for its program (held.py).

It is a pipe of the agent's. A byte opens it, its end does not. `Gate` is the agent's side, `open_gate` the
shim's, and KeepGate and PassGate are what a plan makes the process itself do.
"""

from __future__ import annotations

import errno
import os

from runtime.kernel import Kernel, Step
from runtime.plan import Context, Operation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.spec import Spec

PR_SET_PDEATHSIG, SIGKILL = 1, 9


class Gate:
    """`name` is for another process of root's, see gate_of. Raises OSError."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.name = gate_of(self._reader)

    def open(self) -> None:
        os.write(self._writer, b"1")

    def close(self) -> None:
        """Who waits, or comes later, waits in vain; who has been let go is."""
        if self._reader >= 0:
            try:
                os.read(self._reader, 1)
            except BlockingIOError:
                pass  # nobody has opened it, or somebody has passed
        for descriptor in (self._writer, self._reader):
            if descriptor >= 0:
                os.close(descriptor)
        self._reader = self._writer = -1


def gate_of(reader: int) -> str:
    """What others are told of a gate, a pipe of ours: where it is, and which it is."""
    path = f"/proc/{os.getpid()}/fd/{reader}"
    return f"{path} {os.readlink(path)}"


def open_gate(gate: str) -> int:
    """Reading from it waits. Raises OSError when it is gone: its number may be another gate's by now, and who
    waited there would be let go in place of another."""
    path, _, name = gate.partition(" ")
    # that of one who has just gone has no writer
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{reader}") != name:
        os.close(reader)
        raise OSError(errno.EPIPE, "no gate")
    os.set_blocking(reader, True)
    return reader


class KeepGate(Operation):
    """The child takes the gate with it as descriptor `as_fd`, when all others are closed."""

    fd: int
    as_fd: int

    def describe(self) -> str:
        return "hold on to the gate"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(Step("dup3", (self.fd, self.as_fd, os.O_CLOEXEC)))


class PassGate(Operation):
    """The child waits until there is a byte to read from `fd`. A gate that was closed is not passed: who made
    it has gone, or does not want the process any more. Should its parent end meanwhile, so does the child."""

    fd: int

    def describe(self) -> str:
        return "wait at the gate"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.child(
            Step("prctl", (PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)),
            Step("read", (self.fd, b"\0", 1), expected=1),
            Step("prctl", (PR_SET_PDEATHSIG, 0, 0, 0, 0)),
        )


def placed(
    gate: int, spec: Spec, first: int
) -> tuple[list[Operation], list[Operation], list[Operation], int]:
    """What is done in a plan for the gate before descriptors are closed, when all but it are, and before the
    execve; and the first descriptor to be closed, `first` if it is up to that."""
    if spec.linux.seccomp:
        from runtime.seccomp.profile import allows

        if not all(allows(spec.linux.seccomp, name) for name in ("prctl", "read")):
            return [PassGate(gate)], [], [], first
    # A pipe is neither a folder nor a program, so no link to it leads anywhere.
    return [], [KeepGate(gate, first)], [PassGate(first)], first + 1
