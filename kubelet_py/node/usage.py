"""What the node, its pods and their containers use, as plain frozen values; meter.py reads them.

Bytes, nanoseconds and epoch seconds. Everything that is shown of it (/stats/summary, /metrics/resource,
/metrics/cadvisor) is made from these values and nothing else, so that it can be tested without a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubelet_py.volumes.disk_usage import Used
from runtime.cgroups.files import CgroupLimits


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system as statvfs tells; `used` and `inodes_used` are the part that is meant."""

    available: int
    capacity: int
    used: int
    inodes: int = 0
    inodes_free: int = 0
    inodes_used: int = 0


@dataclass(frozen=True, slots=True)
class Interface:
    """One line of /proc/net/dev."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


@dataclass(frozen=True, slots=True)
class Load:
    """CPU and memory of one cgroup, or of the machine, at one moment.

    `rate` is in billionths of a core since the reading before; None when there was none. `detail` is the
    cgroup's own report (runtime/cgroups/report.py), `limits` what is set and `tasks` how many processes are
    in the very cgroup, only where it was asked for.
    """

    at: float
    cpu_ns: int
    rate: int | None = None
    memory: int = 0
    working_set: int = 0
    rss: int = 0
    faults: int = 0
    major_faults: int = 0
    limit: int | None = None
    swap: int = 0
    processes: int = 0
    oom_kills: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    limits: CgroupLimits | None = None
    tasks: int | None = None


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """A running container. `rootfs` is its writable layer; None where disks were not asked for."""

    name: str
    id: str
    image: str
    cgroup: str
    started_at: float
    load: Load
    rootfs: Used | None = None
    logs: Used | None = None


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    """`claim` is the name of its PersistentVolumeClaim, "" for other kinds; `own`: its bytes are on the
    node's disk and count as the pod's."""

    name: str
    claim: str
    disk: Disk
    own: bool = False


@dataclass(frozen=True, slots=True)
class PodUsage:
    """A pod with a running sandbox; `interfaces` is empty on the host's network."""

    name: str
    namespace: str
    uid: str
    sandbox: str
    cgroup: str
    started_at: float
    load: Load
    containers: tuple[ContainerUsage, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    volumes: tuple[VolumeUsage, ...] = ()

    def own_disk(self) -> Used:
        """What it takes of the node's disk: writable layers, logs, emptyDirs."""
        total = Used()
        for container in self.containers:
            for part in (container.rootfs, container.logs):
                total += part or Used()
        for volume in self.volumes:
            if volume.own:
                total += Used(volume.disk.used, volume.disk.inodes_used)
        return total


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """Everything at one moment. The three disks are None where they were not asked for, or do not exist."""

    name: str
    booted_at: float
    cores: int
    memory_total: int
    load: Load
    pods: tuple[PodUsage, ...]
    system: Mapping[str, tuple[float, Load]]  # "pods", "kubelet" → since when, how much
    interfaces: tuple[Interface, ...] = ()
    default_interface: str = ""
    node_fs: Disk | None = None
    image_fs: Disk | None = None
    container_fs: Disk | None = None
    processes: int = 0
    max_pids: int = 0
    swap_total: int = 0
    machine: Mapping[str, str] = field(default_factory=dict)  # boot_id, machine_id, system_uuid
