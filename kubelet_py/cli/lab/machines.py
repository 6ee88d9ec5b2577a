"""Switching a lab's machines on and off, and going into one.

`boot` forks: whoever calls it has one thread. A machine's process 1 is remembered by pid and start time; what
it runs is reached through its cgroup as well, so that nothing is lost when the record is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cni.errors import CniError
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab import disk, init, warm, wires
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.init import Service
from kubelet_py.cli.lab.layout import SWITCH, LabPaths
from kubelet_py.cli.lab.state import Lab, Machine
from kubelet_py.cli.lab.title import set_title
from kubelet_py.cli.processes import ProcessIdentity
from runtime.errors import RuntimeFailure
from runtime.linux import LinuxKernel

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Booting:
    """A machine whose process 1 is about to say that its namespaces are made."""

    name: str
    pipe: int
    child: int


def remember(file: Path, process: ProcessIdentity) -> None:
    """Which process it is, and of which boot: after the next the same numbers may mean another."""
    file.write_text(json.dumps([process.pid, process.start, BOOT_ID.read_text().strip()]))


def recall(file: Path) -> ProcessIdentity | None:
    """The process of the file, while it lives."""
    try:
        pid, start, boot = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    found = ProcessIdentity(pid, start)
    return found if boot == BOOT_ID.read_text().strip() and found.alive() else None


class Machines:
    """The machines of the lab in `paths`."""

    def __init__(self, paths: LabPaths, branch: Branch) -> None:
        self._paths = paths
        self._branch = branch
        self._kernel = LinuxKernel()

    @property
    def command(self) -> str:
        """How a person begins a command about this lab."""
        return self._paths.command

    def identity(self, name: str) -> ProcessIdentity | None:
        """The machine's process 1 while it runs."""
        return recall(self._paths.record(name))

    def state(self, name: str) -> str:
        if self.identity(name) is None:
            return "off"
        return "paused" if self._branch.frozen(name) else "on"

    def boot_switch(self, lab: Lab) -> None:
        host = wires.open_netns(os.getpid())

        def settle() -> None:
            wires.make_switch(lab, self._paths.link, host)

        try:
            self.finish([self._start(SWITCH, settle, None, keep=(host,))])
        finally:
            os.close(host)

    def boot(self, lab: Lab, machine: Machine, service: Service | None) -> Booting:
        """Begin to start a machine, bare without `service`; `finish` waits. Raises LabError, OSError."""
        switch = self.identity(SWITCH)
        if switch is None:
            raise LabError(
                f"the lab's switch is gone (take it away, and make it anew: {self._paths.command} down)"
            )
        name = machine.name
        tree = disk.Tree(
            self._paths.disk(name),
            self._paths.work(name),
            self._paths.mount_point(name),
            tuple((mount, self._branch.folder(mount, name)) for mount in self._branch.mounts),
            disk.program_folders(),
        )
        disk.prepare(tree)
        netns = wires.open_netns(switch.pid)
        addresses = [(each.name, lab.address(each.number)) for each in lab.machines]

        def settle() -> None:
            wires.connect_machine(lab, machine, netns)
            disk.enter(self._kernel, tree)
            disk.name_machine(name, addresses)
            init.settle_cgroup(self._branch.unified)

        try:
            return self._start(name, settle, service, keep=(netns,))
        finally:
            os.close(netns)

    def _start(
        self, name: str, settle: Callable[[], None], service: Service | None, keep: tuple[int, ...]
    ) -> Booting:
        self._branch.make(name)
        log = self._paths.boot_log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        reader, writer = os.pipe()

        def first() -> int:
            pid = init.leave_host(self._kernel, enter=lambda: self._branch.enter(name))
            if pid == 0:
                self._become_first(name, settle, service, writer, keep)
            os.write(writer, f"{pid}\n".encode())
            return 0

        child = warm.fork(first, f"{name}: boot", log, (writer, *keep))
        os.close(writer)
        return Booting(name, reader, child)

    def _become_first(
        self,
        name: str,
        settle: Callable[[], None],
        service: Service | None,
        writer: int,
        keep: tuple[int, ...],
    ) -> NoReturn:
        set_title(f"{name}: init")
        os.setsid()
        self._kernel.sethostname(name)
        try:
            settle()
        except (CniError, CommandError, OSError, RuntimeFailure) as error:
            os.write(writer, f"!{error}\n".encode())
            os._exit(1)
        for fd in keep:
            os.close(fd)
        os.write(writer, b"ready\n")
        os.close(writer)
        init.run(service)

    def finish(self, booting: Sequence[Booting]) -> None:
        """Wait until the machines have their namespaces; remember them. Raises LabError with the reason."""
        for each in booting:
            with os.fdopen(each.pipe, "rb") as pipe:
                lines = pipe.read().decode(errors="replace").split("\n")
            os.waitpid(each.child, 0)
            pids = [int(line) for line in lines if line.isdigit()]
            identity = ProcessIdentity.of(pids[0]) if pids else None
            if "ready" not in lines or identity is None:
                reason = next((line[1:] for line in lines if line.startswith("!")), "")
                raise LabError(f"Could not start {each.name}: {reason or self.last_words(each.name)}")
            remember(self._paths.record(each.name), identity)

    def last_words(self, name: str) -> str:
        """The last line of the machine's boot log, else of its control plane's."""
        for log in (self._paths.boot_log(name), self._paths.node(name).logs / "controlplane.log"):
            try:
                lines = log.read_text(errors="replace").strip().splitlines()
            except FileNotFoundError:
                continue
            if lines:
                return lines[-1]
        return "no message"

    def cut_power(self, name: str) -> None:
        """SIGKILL for everything of the machine, and what only a running machine needs goes."""
        self._branch.kill(name)
        self._branch.wait_empty(name)
        self._branch.remove(name)
        self._paths.record(name).unlink(missing_ok=True)

    def freeze(self, name: str, on: bool) -> None:
        """Stop all processes of the machine where they are, or let them go on."""
        self._branch.freeze(name, on)

    def memory(self, name: str) -> int:
        """PSS in bytes of the machine's processes, its pods' containers not counted."""
        total = 0
        for pid in self._branch.own_pids(name):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    def press_power_button(self, name: str, seconds: float) -> None:
        """SIGTERM for process 1, which stops the machine's supervisor; then whatever is left is cut off."""
        identity = self.identity(name)
        if identity is not None:
            identity.stop(seconds)
        self.cut_power(name)

    def join_cgroup(self, name: str) -> None:
        """Move this process, which has one thread, to the cgroups of a machine that runs."""
        self._branch.enter_running(name)

    def enter(self, name: str, command: Sequence[str]) -> list[str]:
        """Move this process to the machine's cgroups; the command line for `command` in its namespaces."""
        identity = self.identity(name)
        if identity is None:
            raise LabError(f"{name} is off (start it: {self._paths.command} node {name} start)")
        if self._branch.frozen(name):  # the command would stand still as well, deaf to Ctrl-C
            raise LabError(f"{name} is paused (let it go on: {self._paths.command} node {name} start)")
        self._branch.enter_running(name)
        kinds = ["--mount", "--net", "--uts", "--ipc", "--cgroup", "--pid"]
        return ["nsenter", "--target", str(identity.pid), *kinds, "--", *command]
