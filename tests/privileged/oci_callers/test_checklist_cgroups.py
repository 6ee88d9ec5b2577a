"""The OCI checklist, one test per row, named after it: cgroups. Each with an absolute and a relative path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups

pytestmark = pytest.mark.privileged

TREE = Path("/sys/fs/cgroup")


class Limits:
    """A container with `resources`, and its cgroup's files."""

    def __init__(self, bundle: Bundle, path: str) -> None:
        self.bundle = bundle
        self.name = path.strip("/")
        self._path = path

    def given(self, **resources: Any) -> None:
        self.bundle.change(lambda config: config["linux"].update(cgroupsPath=self._path, resources=resources))

    def start(self, **resources: Any) -> None:
        self.given(**resources)
        self.bundle.start("sleep", "1000")

    def file(self, controller: str, v1: str, v2: str) -> str:
        """What a file says, on whichever kind of host this is."""
        if has(controller):
            return (TREE / controller / self.name / v1).read_text().strip()
        return (TREE / self.name / v2).read_text().strip()


def has(controller: str) -> bool:
    return (TREE / controller / "cgroup.procs").exists()


def needs(controller: str, v2: str = "") -> None:
    """On cgroup v2 the file must be there for children of the root; on hybrid hosts the v1 controller."""
    listed = (TREE / "cgroup.controllers").read_text() if (TREE / "cgroup.controllers").exists() else ""
    if not has(controller) and (v2 or controller) not in listed.split():
        pytest.skip(f"the cgroup controller {controller} is missing")


@pytest.fixture(params=["absolute", "relative"])
def limits(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Limits]:
    name = f"kubelet-py-cgrouptest-{os.getpid()}/inner"
    yield Limits(bundle, f"/{name}" if request.param == "absolute" else name)
    bundle("delete", "--force", bundle.identity)
    cgroups.detect().remove(name.partition("/")[0], recursive=True)


def disk() -> tuple[int, int]:
    """A disk that the kernel throttles."""
    for entry in sorted(Path("/sys/block").iterdir()):
        if not entry.name.startswith(("loop", "ram")):
            major, minor = (entry / "dev").read_text().strip().split(":")
            return int(major), int(minor)
    pytest.skip("a disk is missing")


def test_linux_cgroups_blkio(limits: Limits) -> None:
    needs("blkio", "io")
    major, minor = disk()
    rate = {"major": major, "minor": minor, "rate": 102400}
    limits.start(
        blockIO={"throttleReadBpsDevice": [rate], "throttleWriteIOPSDevice": [{**rate, "rate": 300}]}
    )
    assert f"{major}:{minor}" in limits.file("blkio", "blkio.throttle.read_bps_device", "io.max")
    assert "300" in limits.file("blkio", "blkio.throttle.write_iops_device", "io.max")


def test_linux_cgroups_cpus(limits: Limits) -> None:
    needs("cpu")
    limits.start(cpu={"shares": 1024, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"})
    assert limits.file("cpu", "cpu.shares", "cpu.weight") in ("1024", "39")
    assert limits.file("cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "20000"
    assert limits.file("cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
    assert os.sched_getaffinity(limits.bundle.pid()) == {0}


def test_linux_cgroups_devices(limits: Limits) -> None:
    """The last rule that matches decides: the kernel agrees."""
    if not Path("/dev/fuse").exists():
        pytest.skip("/dev/fuse is missing")
    limits.given(
        devices=[
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"},
        ]
    )
    nodes = [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o666}]
    limits.bundle.change(lambda config: config["linux"].update(devices=nodes))
    done = limits.bundle.run(
        "for f in fuse null; do (: < /dev/$f) && echo $f; done; (: > /dev/fuse) || echo read only"
    )
    assert done.stdout.split() == ["fuse", "null", "read", "only"], done.stderr


def test_linux_cgroups_hugetlb(limits: Limits) -> None:
    sizes = sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-2048kB"))
    limits.given(hugepageLimits=[{"pageSize": "2MB", "limit": 4 << 20}])
    limits.bundle.args("sleep", "1000")
    if limits.bundle.create().returncode:
        # Never dropped without a word.
        assert "hugetlb.2MB" in limits.bundle.output()
        return
    assert sizes and limits.file("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max") == str(4 << 20)


def test_linux_cgroups_memory(limits: Limits) -> None:
    needs("memory")
    size = 64 << 20
    tcp = {"kernelTCP": size // 4} if has("memory") else {}  # cgroup v2 has no file for it
    limits.start(memory={"limit": size, "reservation": size // 2, **tcp})
    if tcp:
        assert limits.file("memory", "memory.kmem.tcp.limit_in_bytes", "") == str(size // 4)
    assert limits.file("memory", "memory.limit_in_bytes", "memory.max") == str(size)
    assert limits.file("memory", "memory.soft_limit_in_bytes", "memory.low") == str(size // 2)


def test_linux_cgroups_network(limits: Limits) -> None:
    limits.given(network={"classID": 255, "priorities": [{"name": "lo", "priority": 10}]})
    limits.bundle.args("sleep", "1000")
    if limits.bundle.create().returncode:
        assert "net_cls" in limits.bundle.output() or "classID" in limits.bundle.output()
        return
    assert limits.file("net_cls", "net_cls.classid", "") == "255"
    assert "lo 10" in limits.file("net_prio", "net_prio.ifpriomap", "")


def test_linux_cgroups_pids(limits: Limits) -> None:
    needs("pids")
    limits.start(pids={"limit": 50})
    assert limits.file("pids", "pids.max", "pids.max") == "50"
