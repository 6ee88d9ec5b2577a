"""Cgroups where systemd owns the tree: what we use is asked of it, as units, and what lies in a scope is
ours.

systemd takes itself for the only one that makes cgroups, limits and moves processes outside of what it has
delegated (systemd.io/CGROUP_DELEGATION). So groups are slices; a container of the OCI command line is in a
cgroup named `container` in a scope with Delegate=yes, as crun's; a pod is a slice with one such scope, its
home, in which pause and the containers have cgroups: one job of systemd's per pod, none per container or
exec, and what the kernel counts there (OOM kills) outlives the container. Never are processes in the scope's
own cgroup: that is systemd's, which writes into its files what it likes (memory.oom.group, for one, at each
reload).

A scope must have a process when it is started and goes when the last one has ended. A `Holder` is that
process until the first of ours is in: `create` and `home` start it, `settle` ends it.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping

from runtime.cgroups import files, v2
from runtime.cgroups.v2 import Unified, UnifiedDriver
from runtime.errors import CgroupError, SystemdError, errno_name
from runtime.records import Record
from runtime.systemd import properties
from runtime.systemd.annotations import of_annotations
from runtime.systemd.bus import Refusal
from runtime.systemd.manager import EXISTS, Manager, is_running
from runtime.systemd.names import CONTAINER, Place, SystemdNames, place_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.systemd.messages import Variant

SHELL = "/bin/sh"
HOLDER = "holder"  # the holder's cgroup in the scope


class Holder:
    """A process that ends when it is told to, and when we end: it reads from a pipe that only we have."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        os.set_inheritable(reader, True)  # it may be 0 itself, which dup2 would leave as it is
        try:
            self.pid = os.posix_spawn(
                SHELL,
                ["kubelet-py-holder", "-c", "read line"],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reader, 0),
                    (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
                ],
                setsigmask=[],
            )
        except OSError as error:
            os.close(self._writer)
            name = errno_name(error.errno or 0)
            text = f"Could not start {SHELL} to hold a scope: {name}"
            raise SystemdError(text, error.errno or 0) from error
        finally:
            os.close(reader)

    def end(self) -> None:
        """End it and wait for its end. Not by the pipe: a process that was started meanwhile, and waits with
        its program, has a copy."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._writer)


class Pending(Record):
    """What `settle` has to do for a scope."""

    holder: Holder
    properties: tuple[tuple[str, Variant], ...]


class UnitCgroup(Unified):
    """The cgroup of a slice, or of a container in its scope: limits go to systemd, too, which would know of
    none otherwise, and in a slice write its own over ours."""

    def __init__(self, root: str, path: str, unit: str, manager: Manager) -> None:
        super().__init__(root, path)
        self._unit = unit
        self._manager = manager

    def update(self, resources: Mapping[str, Any]) -> None:
        """Applies linux.resources now; what is not mentioned stays. Raises CgroupError."""
        resources = self._awake(self.completed(resources))
        changed = properties.of_resources(resources)
        if changed:
            self._manager.set(self._unit, changed)
        super().update(resources)

    def _awake(self, resources: Mapping[str, Any]) -> Mapping[str, Any]:
        """With an end to idleness (cpu.idle) where a weight is asked for, as systemd has it in its cgroup."""
        cpu, unified = files.section(resources, "cpu"), files.section(resources, "unified")
        weighed = bool(cpu.get("shares")) or "cpu.weight" in unified
        said = cpu.get("idle") is not None or "cpu.idle" in unified
        if not weighed or said or files.read(f"{self.folder}/cpu.idle") != "1":
            return resources
        return {**resources, "cpu": {**cpu, "idle": 0}}


class SystemdDriver:
    """CgroupDriver for a host that systemd runs, over the v2 tree."""

    name = "systemd"
    parents_first = True
    names = SystemdNames()

    def __init__(self, tree: UnifiedDriver, manager: Manager | None = None) -> None:
        self.tree = tree
        self.unified = tree.unified
        self._manager = manager or Manager()
        self._pending: dict[str, Pending] = {}  # by the scope's path

    def create(
        self,
        path: str,
        resources: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Unified:
        """Makes a slice, a container's cgroup with its scope (see SystemdNames.container), or a cgroup inside
        a scope, with its limits. Raises CgroupError, with nothing left.

        `annotations` named org.systemd.property.* are further properties of the scope.
        """
        path = files.checked_path(path)
        place = place_of(path)
        if place.unit.endswith(".slice") and not place.inside:
            return self._make_slice(path, place.unit, resources)
        if not place.unit.endswith(".scope") or not place.inside:
            raise SystemdError(f"Could not make cgroup {path}: for systemd it must be a slice or in a scope")
        if place.inside != CONTAINER:
            return self.tree.create(path, resources)
        self._make_scope(place, [*properties.of_resources(resources), *of_annotations(annotations)])
        try:
            return self.tree.create(path, resources)
        except BaseException:
            self.remove(path, recursive=True)
            raise

    def _make_slice(self, path: str, unit: str, resources: Mapping[str, Any] | None) -> Unified:
        """As the v2 driver, without CPU limits: those are for `update`. One that was there before stays when
        something is refused."""
        writes = v2.other_writes(resources)
        limits = properties.of_writes(writes)
        new = self._start_slice(unit, limits)
        made = UnitCgroup(self.tree.root, path, unit, self._manager)
        try:
            self._check(path, unit)
            self.tree.enable(path)
            made.apply(writes)
        except BaseException:
            if new:
                self.remove(path)
            raise
        return made

    def _start_slice(self, unit: str, limits: list[tuple[str, Variant]]) -> bool:
        """Whether it was not there before. Raises Refusal."""
        try:
            self._manager.start(unit, properties.of_slice(f"kubelet-py {unit}", limits))
            return True
        except Refusal as refused:
            if refused.name != EXISTS:
                raise
        if limits:
            self._manager.set(unit, limits)
        return False

    def _check(self, path: str, unit: str) -> None:
        """Another place than ours would be a mistake in names.py, or a tree that is mounted elsewhere."""
        real = self._manager.cgroup(unit)
        if real != path:
            raise SystemdError(f"Could not use {unit}: systemd has it at {real!r}, not at {path!r}")

    def _make_scope(self, place: Place, wanted: list[tuple[str, Variant]]) -> None:
        """Starts a scope that a holder keeps, aside: a folder with processes hands no controllers on."""
        first, later = properties.late(wanted)
        home = place_of(place.path.rpartition("/")[0]).unit or "-.slice"
        description = f"kubelet-py container {place.unit}"
        holder = Holder()
        try:
            asked = properties.of_scope(description, home, holder.pid, first)
            self._manager.start(place.unit, asked)
        except BaseException:
            holder.end()
            raise
        self._pending[place.path] = Pending(holder, tuple(later))
        try:
            self._check(place.path, place.unit)
            files.make_folders(self.tree.root, f"{place.path}/{HOLDER}")
            files.write(f"{self.tree.root}/{place.path}/{HOLDER}/cgroup.procs", str(holder.pid))
        except BaseException:
            self.remove(place.path, recursive=True)
            raise

    def create_bare(self, path: str) -> Unified:
        """One inside a scope that only holds processes together. Raises CgroupError."""
        return self.create(path)

    def home(self, group: str) -> str:
        """A new scope in the slice `group`, in which cgroups can be made; needs `settle` when the first
        process is in one of them. Raises CgroupError."""
        path = f"{group}/kubelet-py-{os.urandom(8).hex()}.scope"
        self._make_scope(place_of(path), [])
        return path

    def settle(self, path: str) -> None:
        """The first process is in: sets what is left of the scope's limits, and lets the holder go."""
        place = place_of(path)
        pending = self._pending.pop(place.path, None)
        if pending is None:
            return
        try:
            if pending.properties:
                self._manager.set(place.unit, pending.properties)
        finally:
            pending.holder.end()
            files.remove_folder(f"{self.tree.root}/{place.path}/{HOLDER}", False)

    def open(self, path: str) -> Unified:
        """An existing cgroup. Raises CgroupError."""
        path = files.checked_path(path)
        place = place_of(path)
        if not place.unit or place.inside not in ("", CONTAINER):
            return self.tree.open(path)
        if not self.exists(path):
            raise CgroupError(f"Could not open cgroup {path}: ENOENT", errno.ENOENT)
        return UnitCgroup(self.tree.root, path, place.unit, self._manager)

    def exists(self, path: str) -> bool:
        """Whether there is such a cgroup."""
        return self.tree.exists(path)

    def remove(self, path: str, recursive: bool = False) -> None:
        """Removes it, a unit by stopping it, a container with its scope; one that is gone is fine.
        `recursive` kills and removes everything below first."""
        path = files.checked_path(path)
        place = place_of(path)
        if not place.unit or place.inside not in ("", CONTAINER):
            self.tree.remove(path, recursive)
            return
        folder = f"{self.tree.root}/{place.path}"
        pending = self._pending.pop(place.path, None)
        if pending is None and place.unit.endswith(".scope") and not self.exists(path):
            # systemd has ended it; an active scope of that name would be somebody else's. One that failed is
            # kept if the container's annotations say so (CollectMode).
            self._manager.forget(place.unit)
            return
        if recursive and os.path.isdir(folder):
            files.kill_tree(folder)
        elif files.pids_in(folder):
            raise CgroupError(f"Could not stop {place.unit}: EBUSY (processes are left in it)", errno.EBUSY)
        if pending is not None:
            pending.holder.end()
        self._manager.stop(place.unit)
        self.tree.remove(place.path, recursive)

    def missing_features(self) -> list[str]:
        """What this host cannot enforce, one sentence each."""
        return self.tree.missing_features()


def driver(tree: object) -> SystemdDriver:
    """The driver for this host; `tree` is the one that detect() found. Raises SystemdError where systemd
    cannot be asked."""
    if not is_running():
        raise SystemdError(
            "Could not use the systemd cgroup driver: systemd does not run this machine (use cgroupfs)"
        )
    if not isinstance(tree, UnifiedDriver):
        raise SystemdError(
            "Could not use the systemd cgroup driver: cgroup v1 controllers are mounted here (use cgroupfs, "
            "or boot with systemd.unified_cgroup_hierarchy=1)"
        )
    return SystemdDriver(tree)
