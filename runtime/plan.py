"""A container's start as data: an ordered list of operations and what they share while they run.

An operation is a frozen value that can say what it does (`describe`) and do it (`run`). Those before the
spawn act on the calling thread; those that concern the new process alone add steps to `context.steps`, which
the last operation hands to the kernel in one go. The same list is executed, printed, recorded by a fake
kernel and made to fail at any step.
"""

from __future__ import annotations

from runtime.kernel import Kernel, Step
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ClassVar, Protocol

    class Attend(Protocol):
        """Called on the side that started a launch, with the host's paths, while the new process waits: for
        "hooks", and for a "listener", which is the descriptor `number` of process `pid`."""

        def __call__(self, what: str, pid: int, number: int) -> None: ...


NO_STDIO = (-1, -1, -1)


class Refused(Exception):
    """An operation found something it must not go along with (a symlink where /proc belongs …)."""


class Context:
    """What operations hand to those after them. Lives for one launch, in one thread.

    `root`: O_PATH descriptor of the container's root. `host_proc`: the host's /proc, opened before anything
    changed. `null`: a verified /dev/null. `cgroup_namespace`: the one that the child joins. `steps`: the
    child's system calls, each with the number of its operation. `procs`: (destination, reserved descriptor)
    of each procfs the child will mount. `console`: the master side of a terminal made inside the container,
    handed to the caller, or -1. `ask`: has the caller do what this process may not (see apart.py). `held`:
    our capabilities, where they are not those we started with. `prepared`: mounts opened before the
    namespaces, by destination. `attend`: has the side that started all this do something while the child
    waits (`Attend`). `listener_step`: the child's step whose result is a seccomp listener. `early`: the child
    is there already (see early.py), and `flush` has it do its steps so far before the next operation;
    `operations` are those of the whole plan. `sibling`: the child is to be our parent's.
    """

    __slots__ = (
        "ask", "attend", "cgroup_fd", "cgroup_namespace", "console", "early", "executable", "flush", "held",
        "host_proc", "listener_step", "null", "number", "opened", "operations", "prepared", "process",
        "procs", "ready", "root", "sibling", "stdio", "steps", "task_fds", "terminal", "user_namespace",
        "warnings",
    )  # fmt: skip

    def __init__(self, stdio: tuple[int, int, int], terminal: bool) -> None:
        self.stdio = stdio
        self.terminal = terminal
        self.root = -1
        self.host_proc = -1
        self.null = -1
        self.cgroup_fd = -1
        self.cgroup_namespace = -1
        self.task_fds: list[int] = []
        self.console = -1
        self.ready: tuple[int, int] | None = None
        self.procs: list[tuple[str, int]] = []
        self.executable = ""
        self.number = 0
        self.steps: list[tuple[Step, int]] = []
        self.warnings: list[str] = []
        self.ask: Callable[[str], None] | None = None
        self.attend: Attend | None = None
        self.listener_step = -1
        self.sibling = False
        self.early = False
        self.flush = False
        self.operations: tuple[Operation, ...] = ()
        self.held: tuple[int, int] | None = None
        self.prepared: dict[str, int] = {}
        self.user_namespace = False
        self.opened: list[int] = []
        self.process: tuple[int, int] = (-1, -1)

    def keep(self, fd: int) -> int:
        """Remembers a descriptor, to be closed when the launch is over."""
        self.opened.append(fd)
        return fd

    def reserve(self, kernel: Kernel) -> int:
        """A descriptor number that nobody else will get, for the child to put something into."""
        return self.keep(kernel.duplicate(self.host_proc))

    def users(self, kernel: Kernel, mappings: tuple[str, str]) -> int:
        """A user namespace with these texts of uid_map and gid_map, by which mounts are idmapped; made when
        first asked for, since it takes a process."""
        name = f"users {mappings}"
        if name not in self.prepared:
            self.prepared[name] = self.keep(kernel.user_namespace(*mappings))
        return self.prepared[name]

    def ready_pipe(self, kernel: Kernel) -> int:
        """The end of the child's pipe to us that it writes to; made when first asked for."""
        if self.ready is None:
            reader, writer = kernel.pipe()
            self.ready = (self.keep(reader), self.keep(writer))
        return self.ready[1]

    def listen(self, pid: int, result_of: Callable[[int], int]) -> None:
        """The child is about to have a seccomp listener."""
        number = result_of(self.listener_step)
        if number > 0 and self.attend is not None:
            self.attend("listener", pid, number)

    def fail(self, index: int) -> None:
        """The child's step `index` has failed: its operation is the one to name."""
        if index >= 0:
            self.number = self.steps[index][1]

    def child(self, *steps: Step) -> None:
        """Adds system calls of the child, in the name of the operation that is running."""
        self.steps.extend((step, self.number) for step in steps)

    def close(self, kernel: Kernel) -> None:
        """Closes everything kept, newest first."""
        while self.opened:
            kernel.close(self.opened.pop())


class Operation(Record):
    """Base of all operations. `together`: a child that is there already must have done all steps before."""

    together: ClassVar[bool] = False

    def describe(self) -> str:
        """A verb and its object, as it follows "Could not …"."""
        raise NotImplementedError

    def run(self, kernel: Kernel, context: Context) -> None:
        """Does it, on the calling thread, or adds the child's steps. Raises OSError or Refused."""
        raise NotImplementedError


class Plan(Record):
    """Operations in order; `late` are (path, value) writes on the host right after the spawn (cpu limits).
    `apart`: it needs a process of its own, for which the texts of uid_map and gid_map (`mappings`) and
    timens_offsets are written from outside. `notes`: what the configuration asks for and this host does not
    know, for whoever reads warnings."""

    operations: tuple[Operation, ...]
    late: tuple[tuple[str, str], ...] = ()
    apart: bool = False
    mappings: tuple[str, str] = ("", "")
    time_offsets: str = ""
    notes: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """One line for each operation."""
        return [operation.describe() for operation in self.operations]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)
