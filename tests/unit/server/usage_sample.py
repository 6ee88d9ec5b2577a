"""One node with one pod, as plain values: what the tests of /stats and /metrics show in every form."""

from __future__ import annotations

from kubelet_py.node.usage import ContainerUsage, Disk, Interface, Load, NodeUsage, PodUsage, VolumeUsage
from kubelet_py.volumes.disk_usage import Used
from runtime.cgroups.files import CgroupLimits

AT = 1_800_000_000.5
REPORT = {
    "cpu": {
        "usage": {"total": 2_500_000_000, "user": 1_500_000_000, "kernel": 1_000_000_000},
        "throttling": {"periods": 10, "throttledPeriods": 4, "throttledTime": 250_000_000},
        "psi": {"some": {"avg10": 0.5, "total": 1_500_000}, "full": {"avg10": 0.0, "total": 250_000}},
    },
    "memory": {"usage": {"limit": 1000, "usage": 700, "max": 900, "failcnt": 3}, "raw": {"total_cache": 77}},
    "pids": {"current": 5, "limit": 9},
    "blkio": {
        "ioServiceBytesRecursive": [
            {"major": 999, "minor": 7, "op": "Read", "value": 512},
            {"major": 999, "minor": 7, "op": "Write", "value": 4096},
        ],
        "ioServicedRecursive": [{"major": 999, "minor": 7, "op": "Read", "value": 1}],
    },
}
LIMITED = {"limits": CgroupLimits(shares=102, quota=50_000, period=100_000), "tasks": 3}
DISK = Disk(available=600, capacity=1000, used=400, inodes=50, inodes_free=30, inodes_used=20)
ETH0 = Interface("eth0", 11, 12, 13, 14, 21, 22, 23, 24)


def load(**more: object) -> Load:
    values = {"cpu_ns": 2_500_000_000, "rate": 5_000_000, "memory": 700, "working_set": 600, "rss": 500}
    values |= {"faults": 8, "major_faults": 2, "limit": 1000, "swap": 40, "processes": 5, "oom_kills": 1}
    return Load(at=AT, **(values | more))  # type: ignore[arg-type]


def node(*, disks: bool = True, network: bool = True, detail: bool = True) -> NodeUsage:
    report = REPORT if detail else {}
    container = ContainerUsage(
        name="main",
        id="c1",
        image="registry/app:1",
        cgroup="kubepods/podu1/c1",
        started_at=1_799_999_900.0,
        load=load(detail=report, **LIMITED if detail else {}),
        rootfs=Used(100, 3) if disks else None,
        logs=Used(20, 1) if disks else None,
    )
    volumes = (
        VolumeUsage("scratch", "", Disk(600, 1000, 5, 50, 30, 2), own=True),
        VolumeUsage("data", "claim", Disk(60, 100, 40, 5, 3, 2)),
    )
    pod = PodUsage(
        name="web",
        namespace="default",
        uid="u1",
        sandbox="s1",
        cgroup="kubepods/podu1",
        started_at=1_799_999_800.0,
        load=load(limit=None, rate=None, detail=report),
        containers=(container,),
        interfaces=(ETH0,) if network else (),
        volumes=volumes if disks else (),
    )
    return NodeUsage(
        name="n1",
        booted_at=1_799_000_000.0,
        cores=2,
        memory_total=4000,
        load=load(limit=4000, swap=100),
        pods=(pod,),
        system={"kubelet": (1_799_000_100.0, load(limit=None))},
        interfaces=(ETH0,) if network else (),
        default_interface="eth0" if network else "",
        node_fs=DISK if disks else None,
        image_fs=DISK if disks else None,
        container_fs=DISK if disks else None,
        processes=99,
        max_pids=1000,
        swap_total=300,
        machine={"boot_id": "b", "machine_id": "m", "system_uuid": "s"},
    )
