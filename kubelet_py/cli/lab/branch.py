"""The lab's cgroups: in every hierarchy one folder for the lab, and in that one for each machine.

They are the handle on all that a machine runs, whoever started it: `cgroup.kill` and `cgroup.freeze` of the
v2 tree take everything below along (Linux 5.14). A machine sees its own folder as the root of each hierarchy.
On a hybrid host the v1 hierarchies carry the limits, and the v2 tree kill and freeze.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from kubelet_py.cli.lab.errors import LabError
from runtime.cgroups import files

CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids", "rdma", "misc")
NO_CONTROLLERS = ("rw", "ro", "xattr", "clone_children")
FREEZE_SECONDS = 5.0
END_SECONDS = 20.0


def hierarchies(mountinfo: str) -> tuple[str, dict[str, str]]:
    """PURE. Where cgroup v2 is mounted, and each v1 hierarchy: its mount point by its controllers' names."""
    unified = ""
    others: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        folder, (kind, _, options) = left.split()[4], right.split(" ", 2)
        if kind == "cgroup2":
            unified = unified or folder
        elif kind == "cgroup":
            names = [name for name in options.split(",") if name not in NO_CONTROLLERS]
            others.setdefault(",".join(names), folder)
    return unified, others


class Branch:
    """The folder `name` in each hierarchy. Raises CgroupError, OSError."""

    def __init__(self, name: str, unified: str, others: Sequence[str]) -> None:
        self.name = name
        self.unified = unified
        self.others = tuple(others)

    @classmethod
    def of_host(cls, name: str) -> Branch:
        """Raises LabError on a host without a cgroup v2 tree."""
        unified, others = hierarchies(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
        if not unified:
            raise LabError("Could not find a cgroup v2 tree (mount cgroup2 on /sys/fs/cgroup, or below it)")
        return cls(name, unified, tuple(dict.fromkeys(others.values())))

    @property
    def mounts(self) -> tuple[str, ...]:
        """Mount points of all hierarchies, the v2 tree first."""
        return (self.unified, *self.others)

    def folder(self, hierarchy: str, machine: str = "") -> str:
        return f"{hierarchy}/{self.name}" + (f"/{machine}" if machine else "")

    def make(self, machine: str) -> None:
        """The machine's folders, empty; what a machine of that name left before goes first."""
        self.remove(machine)
        self._pass_on(self.unified)
        for hierarchy in self.mounts:
            for folder in (self.folder(hierarchy), self.folder(hierarchy, machine)):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
                    self._inherit_cpus(folder)
            if hierarchy == self.unified:
                self._pass_on(self.folder(hierarchy))
                os.mkdir(f"{self.folder(hierarchy, machine)}/init")

    def _inherit_cpus(self, folder: str) -> None:
        """A v1 cpuset begins without CPUs, and then takes no process."""
        for name in ("cpuset.cpus", "cpuset.mems"):
            file = f"{folder}/{name}"
            if os.path.exists(file) and not files.read(file).strip():
                files.write(file, files.read(f"{os.path.dirname(folder)}/{name}").strip())

    def _pass_on(self, folder: str) -> None:
        """Give the folders below all controllers that are here; a hybrid host's v2 tree has none."""
        there = files.read(f"{folder}/cgroup.controllers").split()
        on = files.read(f"{folder}/cgroup.subtree_control").split()
        for name in CONTROLLERS:
            if name in there and name not in on:
                files.write(f"{folder}/cgroup.subtree_control", f"+{name}")

    def enter(self, machine: str) -> None:
        """Move this process, which has one thread, to the machine's folders."""
        for hierarchy in self.others:
            files.write(f"{self.folder(hierarchy, machine)}/tasks", "0")
        files.write(f"{self.folder(self.unified, machine)}/cgroup.procs", "0")

    def enter_running(self, machine: str) -> None:
        """The same for one that comes later: its v2 folder may hold no process beside its groups."""
        for hierarchy in self.others:
            files.write(f"{self.folder(hierarchy, machine)}/tasks", "0")
        files.write(f"{self.folder(self.unified, machine)}/init/cgroup.procs", "0")

    def freeze(self, machine: str, on: bool) -> None:
        """Stop every process of the machine where it is, or let them go on. Raises LabError after a while."""
        folder = self.folder(self.unified, machine)
        files.write(f"{folder}/cgroup.freeze", "1" if on else "0")
        deadline = time.monotonic() + FREEZE_SECONDS
        while on and not files.table(f"{folder}/cgroup.events").get("frozen"):
            if time.monotonic() > deadline:
                raise LabError(f"some process of {machine} could not be frozen within {FREEZE_SECONDS:g} s")
            time.sleep(0.005)

    def frozen(self, machine: str) -> bool:
        return files.read(f"{self.folder(self.unified, machine)}/cgroup.freeze") == "1"

    def kill(self, machine: str = "") -> None:
        """SIGKILL for everything of the machine, or of the lab."""
        switch = Path(self.folder(self.unified, machine), "cgroup.kill")
        if switch.exists():
            switch.write_text("1")
            return
        for pid in self.pids(machine):  # Linux before 5.14; with a process 1 all of its machine goes
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_empty(self, machine: str = "") -> None:
        """Until what was killed is gone, to its last thread: cgroup.procs leaves out who is ending, but no
        folder can be removed while cgroup.events counts it. Raises LabError for one that does not end."""
        deadline = time.monotonic() + END_SECONDS
        while files.table(f"{self.folder(self.unified, machine)}/cgroup.events").get("populated"):
            if time.monotonic() > deadline:
                who = f"process {self.pids(machine)[0]}" if self.pids(machine) else "some process"
                raise LabError(f"{who} does not end (is it waiting for a disk?)")
            time.sleep(0.01)

    def exists(self, machine: str = "") -> bool:
        return any(os.path.isdir(self.folder(hierarchy, machine)) for hierarchy in self.mounts)

    def pids(self, machine: str = "") -> list[int]:
        folder = self.folder(self.unified, machine)
        return files.pids_in(folder) if os.path.isdir(folder) else []

    def own_pids(self, machine: str) -> list[int]:
        """Those that are in no pod's group."""
        folder = self.folder(self.unified, machine)
        return [pid for each in (folder, f"{folder}/init") for pid in files.pids_in(each, recursive=False)]

    def remove(self, machine: str = "") -> None:
        """The machine's folders, or the lab's; nothing may run in them."""
        for hierarchy in self.mounts:
            files.remove_folder(self.folder(hierarchy, machine), recursive=True)
