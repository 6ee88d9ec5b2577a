"""Compiles the exec of a name in a running container (see exec_program.py), in a worker of its shim.

The plan is the one that is executed otherwise, and its operations are run against a recorder (recorder.py).
Foreseen is less than for a start: the container's root is there to be looked at. What differs from run to run
becomes a value that the program is given.
"""

from __future__ import annotations

from runtime.ahead import record
from runtime.exec_program import ARGUMENTS, CGROUP, INIT
from runtime.foresight import FOLDER, Unforeseen
from runtime.kernel import Kernel, Meeting, Spawned, Step
from runtime.machine import Machine
from runtime.namespaces import FLAGS
from runtime.recorder import Recorder, Seen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.plan import Plan


def compile_exec(kernel: Kernel, plan: Plan, path: str, *, root: str, cgroup: str, owner: int) -> bool:
    """Writes the program of a plan of exec_plan's to `path`, if it can be foreseen. `root`: where we see the
    container's; `cgroup`: the folder that the plan has for it; `owner`: whose the pipes become."""
    recording = record(ExecRecorder(kernel, root, cgroup), plan, owner)
    try:
        return recording is not None and recording.write(path, None, plan.late)
    except OSError:
        return False  # no room for it: the next one is executed, too


class ExecRecorder(Recorder):
    """For a plan that joins a running process."""

    def __init__(self, kernel: Kernel, root: str, cgroup: str, machine: Machine | None = None) -> None:
        super().__init__(kernel, (root,), machine)
        self._cgroup = cgroup

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        if path == self._cgroup and dir_fd is None:
            self._seen[CGROUP] = Seen(path, False, FOLDER)
            return CGROUP
        return super().open(path, flags, dir_fd=dir_fd)

    def pidfd_open(self, pid: int) -> int:
        """Of the container's first process: nothing else is joined."""
        return INIT

    def start_time(self, pid: int) -> int:
        """What it is now. A pidfd need not be asked again."""
        return self._kernel.start_time(pid)

    def setns(self, fd: int, flags: int) -> None:
        super().setns(fd, flags)
        if flags & FLAGS["mount"]:
            self._roots.add("/")

    def spawn(
        self,
        steps: Sequence[Step],
        *,
        cgroup_fd: int = -1,
        meeting: Meeting | None = None,
        sibling: bool = False,
    ) -> Spawned:
        *before, last = steps
        if last.call != "execve":
            raise Unforeseen("a program that is no file")
        executable, _, env = last.arguments
        last = Step(last.call, (executable, ARGUMENTS, env))
        return super().spawn([*before, last], cgroup_fd=cgroup_fd, meeting=meeting, sibling=sibling)
