"""What eviction looks at, read from the kernel: /proc, statvfs and the cgroups of the pods.

memory.available is what the kernel could give without swapping: free pages and file pages that nobody used
lately (upstream: capacity − working set of the root cgroup, which is the same sum). Disk is measured with
statvfs; a pod's share of it is counted by walking its folders, which is only done when somebody asks.
"""

from __future__ import annotations

import os
from pathlib import Path

from kubelet_py.node import thresholds
from kubelet_py.node.disks import EVERYTHING, LAYERS, LOGS, VOLUMES, Disks, counted, laid_out
from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import ContainerUsage, Usage
from kubelet_py.node.status import Machine
from kubelet_py.paths import NodePaths
from kubelet_py.pods import resources
from kubelet_py.pods.model import Object, PodView
from kubelet_py.volumes.disk_usage import Used, used
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError


class Signals:
    """`proc` is /proc, or a folder like it in tests."""

    def __init__(
        self, paths: NodePaths, cgroups: CgroupDriver, machine: Machine, *, proc: Path = Path("/proc")
    ) -> None:
        self._paths, self._cgroups, self._machine, self._proc = paths, cgroups, machine, proc

    def observe(self) -> dict[str, Observation]:
        """By signal; a signal that cannot be read now is not in it."""
        answer = {
            thresholds.MEMORY: self._memory(),
            thresholds.PIDS: Observation(self._machine.max_pids - self._processes(), self._machine.max_pids),
        }
        allocatable = self._allocatable_memory()
        if allocatable is not None:
            answer[thresholds.ALLOCATABLE_MEMORY] = allocatable
        for space, inodes, folder in (
            (thresholds.NODE_FS, thresholds.NODE_INODES, self._paths.state),
            (thresholds.IMAGE_FS, thresholds.IMAGE_INODES, self._paths.images),
            (thresholds.CONTAINER_FS, thresholds.CONTAINER_INODES, self._paths.containers),
        ):
            try:
                disk = os.statvfs(folder)
            except OSError:
                continue  # not made yet
            answer[space] = Observation(disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize)
            if disk.f_files:  # btrfs and others do not count inodes
                answer[inodes] = Observation(disk.f_ffree, disk.f_files)
        return answer

    def _memory(self) -> Observation:
        table = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            table[name] = int(value.split()[0]) * 1024
        return Observation(table["MemFree"] + table.get("Inactive(file)", 0), table["MemTotal"])

    def _processes(self) -> int:
        """The kernel's own count of tasks: the fourth field of loadavg, "running/all"."""
        return int((self._proc / "loadavg").read_text().split()[3].partition("/")[2])

    def _allocatable_memory(self) -> Observation | None:
        try:
            pods = self._cgroups.names.group(self._paths.cgroup_root, resources.KUBEPODS)
            stats = self._cgroups.open(pods).stats()
        except CgroupError:
            return None
        if stats.memory_limit is None:
            return None
        return Observation(stats.memory_limit - stats.memory_working_set, stats.memory_limit)

    def disks(self) -> Disks:
        """What shares a file system now; a folder that is not made yet will be on the state's."""
        state = _device(self._paths.state, 0)
        return laid_out(state, _device(self._paths.images, state), _device(self._paths.containers, state))

    def usage(self, pod: Object, view: PodView, resource: str, signal: str = "") -> Usage:
        """What the pod uses of one resource (memory, ephemeral-storage, inodes, pids), now.

        Of a disk, what the `signal` is about; of all disks where there is none.
        """
        if resource in ("ephemeral-storage", "inodes"):
            return self._disk(pod, view, counted(self.disks(), signal) if signal else EVERYTHING)
        home = view.sandbox.cgroup if view.sandbox else ""
        if not home:
            return Usage()
        try:
            stats = self._cgroups.open(self._cgroups.names.group_of(home)).stats()
        except CgroupError:
            return Usage()
        containers = {}
        for container in view.running():
            try:
                own = self._cgroups.open(f"{home}/{container.id}").stats()
            except CgroupError:
                continue  # it has just ended
            containers[container.name] = ContainerUsage(memory=own.memory_working_set)
        return Usage(memory=stats.memory_working_set, pids=stats.pids, containers=containers)

    def _disk(self, pod: Object, view: PodView, parts: frozenset[str]) -> Usage:
        metadata = pod["metadata"]
        logs = self._paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        # Folders of volumes that are mounts of their own are on other file systems, and not counted.
        total = used(self._paths.pods / metadata["uid"]) if VOLUMES in parts else Used()
        own: dict[str, int] = {}
        for container in view.containers:
            layer = used(self._paths.containers / container.id / "upper")
            own[container.name] = own.get(container.name, 0) + layer.bytes
            if LAYERS in parts:
                total += layer
        for name in own:
            written = used(logs / name)
            own[name] += written.bytes
            if LOGS in parts:
                total += written
        containers = {name: ContainerUsage(disk=size) for name, size in own.items()}
        return Usage(disk=total.bytes, inodes=total.inodes, containers=containers)


def _device(folder: Path, missing: int) -> int:
    try:
        return os.stat(folder).st_dev
    except FileNotFoundError:
        return missing
