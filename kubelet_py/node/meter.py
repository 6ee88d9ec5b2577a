"""Reads what node, pods and containers use: cgroups of whichever driver, /proc, statvfs, folders on disk.

The machine as a whole is read from /proc, because the root of a v2 tree counts no memory and the root of a v1
tree may not be the machine's. Traffic of a pod is read by a thread inside its network namespace: /proc/net
belongs to the reading thread. Folders are walked at most once a minute (as upstream's fs handler), since that
is what costs; CPU and memory are read anew each time. What ends while it is read is left out.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cni import netns
from cni.errors import CniError
from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.node.proc_files import boot_time, cpu_ns, default_interface, fields, interfaces, own_load
from kubelet_py.node.status import Machine
from kubelet_py.node.usage import ContainerUsage, Disk, Interface, Load, NodeUsage, PodUsage, VolumeUsage
from kubelet_py.paths import NodePaths
from kubelet_py.pods.model import ContainerView, PodView, SandboxView, epoch, host_network
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.resources import KUBEPODS
from kubelet_py.volumes.disk_usage import Used, used
from kubelet_py.volumes.plugin import kind_of
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError

WALK_SECONDS = 60.0
RATE_SECONDS = 1.0  # readings nearer to each other say little about a rate
CLAIMS = ("persistentVolumeClaim", "ephemeral")


class Rates:
    """CPU time per second between two readings of the same thing. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, int, int | None]] = {}

    def rate(self, key: str, at: float, total_ns: int) -> int | None:
        """In billionths of a core; None at the first reading."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and 0 <= at - known[0] < RATE_SECONDS:
                return known[2]
            # A counter that went back is another cgroup of the same name.
            new = None
            if known is not None and total_ns >= known[1] and at > known[0]:
                new = int((total_ns - known[1]) / (at - known[0]))
            self._known[key] = (at, total_ns, new)
            return new

    def keep(self, keys: Iterable[str]) -> None:
        """Forget all others."""
        wanted = set(keys)
        with self._lock:
            for key in self._known.keys() - wanted:
                del self._known[key]


class Walks:
    """Sizes of folders, at most WALK_SECONDS old."""

    def __init__(self, clock: Callable[[], float], walk: Callable[[Path], Used] = used) -> None:
        self._clock, self._walk = clock, walk
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[float, Used]] = {}

    def size(self, folder: Path, spent: Callable[[float], None] | None = None) -> Used:
        """`spent` gets the seconds that a walk took, where there had to be one."""
        now = self._clock()
        with self._lock:
            known = self._known.get(folder)
        if known is not None and now - known[0] < WALK_SECONDS:
            return known[1]
        found = self._walk(folder)
        if spent is not None:
            spent(self._clock() - now)
        with self._lock:
            self._known[folder] = (now, found)
            for old in [f for f, (at, _) in self._known.items() if now - at > 2 * WALK_SECONDS]:
                del self._known[old]
        return found


class Meter:
    """`measure` is one look at everything."""

    def __init__(
        self,
        *,
        name: str,
        paths: NodePaths,
        machine: Machine,
        cgroups: CgroupDriver,
        records: Callable[[], Iterable[PodRecord]],
        view: Callable[[str], PodView],
        clock: Callable[[], float] = time.time,
        proc: Path = Path("/proc"),
    ) -> None:
        self._name, self._paths, self._machine, self._cgroups = name, paths, machine, cgroups
        self._records, self._view, self._clock, self._proc = records, view, clock, proc
        self._rates = Rates()
        self._walks = Walks(time.monotonic)
        self._volume_times = Histogram(
            "kubelet_volume_metric_collection_duration_seconds",
            "Duration in seconds to calculate volume stats",
            "metric_source",
        )
        self.instruments: tuple[Instrument, ...] = (self._volume_times,)
        self._booted_at = boot_time(proc)

    def measure(self, *, disks: bool = False, network: bool = False, detail: bool = False) -> NodeUsage:
        """CPU and memory of everything; the rest where it is asked for."""
        at = self._clock()
        table = fields(self._proc / "meminfo")
        pods = tuple(
            found
            for record in self._records()
            if (found := self._pod(record, disks=disks, network=network, detail=detail)) is not None
        )
        system: dict[str, tuple[float, Load]] = {"kubelet": own_load(at, self._booted_at)}
        kubepods = self._load(self._cgroups.names.group(self._paths.cgroup_root, KUBEPODS), detail)
        if kubepods is not None:
            system["pods"] = (self._booted_at, kubepods)
        keys = ["", *(pod.cgroup for pod in pods), *(c.cgroup for pod in pods for c in pod.containers)]
        self._rates.keep([*keys, self._cgroups.names.group(self._paths.cgroup_root, KUBEPODS)])
        return NodeUsage(
            name=self._name,
            booted_at=self._booted_at,
            cores=self._machine.cpus,
            memory_total=self._machine.memory,
            load=self._machine_load(at, table),
            pods=pods,
            system=system,
            interfaces=interfaces(self._proc / "self/net/dev") if network else (),
            default_interface=default_interface(self._proc / "self/net/route") if network else "",
            node_fs=disk_of(self._paths.state) if disks else None,
            image_fs=self._part(self._paths.images) if disks else None,
            container_fs=self._part(self._paths.containers) if disks else None,
            processes=int((self._proc / "loadavg").read_text().split()[3].partition("/")[2]),
            max_pids=self._machine.max_pids,
            swap_total=table.get("SwapTotal", 0),
            machine={key: getattr(self._machine, key) for key in ("boot_id", "machine_id", "system_uuid")},
        )

    def _machine_load(self, at: float, table: dict[str, int]) -> Load:
        """As the root cgroup of a v2 tree is counted upstream: what is not free, less idle file pages."""
        faults = fields(self._proc / "vmstat", scale=1)
        total_ns = cpu_ns(self._proc / "stat")
        memory = table["MemTotal"] - table["MemFree"]
        return Load(
            at=at,
            cpu_ns=total_ns,
            rate=self._rates.rate("", at, total_ns),
            memory=memory,
            working_set=max(0, memory - table.get("Inactive(file)", 0)),
            rss=table.get("AnonPages", 0),
            faults=faults.get("pgfault", 0),
            major_faults=faults.get("pgmajfault", 0),
            limit=table["MemTotal"],
            swap=table.get("SwapTotal", 0) - table.get("SwapFree", 0),
        )

    def _load(self, path: str, detail: bool = False) -> Load | None:
        """None when the cgroup is gone."""
        try:
            if not self._cgroups.exists(path):
                return None
            cgroup = self._cgroups.open(path)
            stats = cgroup.stats()
            more: dict[str, Any] = {}
            if detail:
                more = {"detail": cgroup.report(), "limits": cgroup.limits(), "tasks": len(cgroup.pids())}
        except (CgroupError, OSError):
            return None  # ended meanwhile
        at = self._clock()
        return Load(
            at=at,
            cpu_ns=stats.cpu_usage_ns,
            rate=self._rates.rate(path, at, stats.cpu_usage_ns),
            memory=stats.memory_usage,
            working_set=stats.memory_working_set,
            rss=stats.memory_rss,
            faults=stats.memory_page_faults,
            major_faults=stats.memory_major_page_faults,
            limit=stats.memory_limit,
            swap=stats.memory_swap,
            processes=stats.pids,
            oom_kills=stats.oom_kills,
            **more,
        )

    def _pod(self, record: PodRecord, *, disks: bool, network: bool, detail: bool) -> PodUsage | None:
        view = self._view(record.uid)
        sandbox = view.sandbox
        if sandbox is None or not sandbox.ready:
            return None
        path = self._cgroups.names.group_of(sandbox.cgroup)
        load = self._load(path, detail)
        if load is None:
            return None
        metadata = record.pod["metadata"]
        started = (record.status or record.pod.get("status") or {}).get("startTime")
        running = [container for container in view.running() if container.state == "RUNNING"]
        measured = [self._container(record, sandbox, container, disks, detail) for container in running]
        return PodUsage(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=record.uid,
            sandbox=sandbox.id,
            cgroup=path,
            started_at=epoch(started) if started else sandbox.created_at,
            load=load,
            containers=tuple(container for container in measured if container is not None),
            interfaces=inside(sandbox.netns) if network and not host_network(record.pod) else (),
            volumes=tuple(self._volumes(record)) if disks else (),
        )

    def _container(
        self, record: PodRecord, sandbox: SandboxView, container: ContainerView, disks: bool, detail: bool
    ) -> ContainerUsage | None:
        path = f"{sandbox.cgroup}/{container.id}"
        load = self._load(path, detail)
        if load is None:
            return None
        metadata = record.pod["metadata"]
        logs = self._paths.pod_logs / f"{metadata['namespace']}_{metadata['name']}_{metadata['uid']}"
        return ContainerUsage(
            name=container.name,
            id=container.id,
            image=container.image,
            cgroup=path,
            started_at=container.started_at or container.created_at,
            load=load,
            rootfs=self._walks.size(self._paths.containers / container.id / "upper") if disks else None,
            logs=self._walks.size(logs / container.name) if disks else None,
        )

    def _volumes(self, record: PodRecord) -> Iterable[VolumeUsage]:
        """A place of its own is asked by statvfs, a folder of the node's disk is walked; of a hostPath nobody
        can say what belongs to the pod (upstream measures none either)."""
        ready = record.volumes or {}
        for volume in record.pod["spec"].get("volumes") or ():
            kind, name = kind_of(volume), volume["name"]
            if name not in ready or kind in ("hostPath", "image"):
                continue
            folder = ready[name].path
            disk = self._volume(folder)
            if disk is None:
                continue
            claim = ""
            if kind in CLAIMS:
                generated = f"{record.pod['metadata']['name']}-{name}"
                claim = (volume.get("persistentVolumeClaim") or {}).get("claimName", generated)
            own = kind == "emptyDir" and not (volume.get("emptyDir") or {}).get("medium")
            yield VolumeUsage(name, claim, disk, own)

    def _volume(self, folder: Path) -> Disk | None:
        if _is_own_mount(folder):
            with self._volume_times.timed("statfs"):
                return disk_of(folder)
        return self._part(folder, lambda seconds: self._volume_times.observe(seconds, "du"))

    def _part(self, folder: Path, spent: Callable[[float], None] | None = None) -> Disk | None:
        """The folder's part of the file system that it is on."""
        whole = disk_of(folder)
        if whole is None:
            return None
        part = self._walks.size(folder, spent)
        return Disk(whole.available, whole.capacity, part.bytes, whole.inodes, whole.inodes_free, part.inodes)


def disk_of(folder: Path) -> Disk | None:
    """The whole file system that `folder` is on; None when there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return Disk(
        available=found.f_bavail * found.f_frsize,
        capacity=found.f_blocks * found.f_frsize,
        used=(found.f_blocks - found.f_bfree) * found.f_frsize,
        inodes=found.f_files,
        inodes_free=found.f_ffree,
        inodes_used=found.f_files - found.f_ffree,
    )


def inside(path: str) -> tuple[Interface, ...]:
    """The interfaces of another network namespace; none when it is gone."""
    try:
        with netns.opened(path) as descriptor:
            return netns.in_namespace(descriptor, lambda: interfaces(Path("/proc/thread-self/net/dev")))
    except (CniError, OSError):
        return ()


def _is_own_mount(folder: Path) -> bool:
    try:
        return os.lstat(folder).st_dev != os.lstat(folder.parent).st_dev
    except OSError:
        return False
