"""What eviction sees (the kernel's files, a pod's folders), and what the node tells of itself."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.config import from_document
from kubelet_py.node import thresholds
from kubelet_py.node.enforcement import MAKE_IT, Enforcement, rules_of
from kubelet_py.node.events import NodeEvents
from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import ContainerUsage, Usage
from kubelet_py.node.signals import Signals
from kubelet_py.node.status import Machine
from kubelet_py.paths import NodePaths
from kubelet_py.pods.model import ContainerView, PodView, SandboxView
from runtime.cgroups.files import CgroupStats
from runtime.errors import CgroupError

MI = 1 << 20
MACHINE = Machine(
    cpus=4, memory=1024 * MI, disk=1, hostname="h", machine_id="m", system_uuid="u", boot_id="b",
    kernel="6", os_image="o", architecture="amd64", max_pids=32768, huge_pages=((2 * MI, 0),),
)  # fmt: skip
MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nInactive(file): 50 kB\nCached: 400 kB\n"
POD: dict[str, Any] = {"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {}}


class Driver:
    """Cgroups with given readings; any other is not there. `name` as of the real drivers."""

    def __init__(self, name: str = "hybrid", **stats: CgroupStats) -> None:
        self.name, self.stats_of = name, stats
        self.names = self
        self.written: list[tuple[str, Any]] = []

    def group(self, *names: str) -> str:
        return names[-1]

    def group_of(self, home: str) -> str:
        return home

    def open(self, path: str) -> Cgroup:
        key = path.replace("/", "_")
        if key not in self.stats_of:
            raise CgroupError(f"Could not open cgroup {path}: ENOENT", errno.ENOENT)
        return Cgroup(self, key)


class Cgroup:
    def __init__(self, driver: Driver, key: str) -> None:
        self.driver, self.key = driver, key

    def stats(self) -> CgroupStats:
        return self.driver.stats_of[self.key]

    def update(self, values: Any) -> None:
        self.driver.written.append((self.key, values))


def signals(tmp_path: Path, driver: Any) -> Signals:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "loadavg").write_text("0.5 0.4 0.3 2/768 12345\n")
    return Signals(NodePaths(tmp_path), driver, MACHINE, proc=proc)


def test_the_nodes_signals(tmp_path: Path) -> None:
    driver = Driver(kubepods=CgroupStats(memory_limit=700 * MI, memory_working_set=100 * MI))
    seen = signals(tmp_path, driver).observe()
    assert seen[thresholds.MEMORY] == Observation(150 * 1024, 1000 * 1024)
    assert seen[thresholds.PIDS] == Observation(32000, 32768)
    assert seen[thresholds.ALLOCATABLE_MEMORY] == Observation(600 * MI, 700 * MI)
    assert thresholds.NODE_FS not in seen, "there is no such folder yet"


def test_disks_are_those_of_our_folders(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    for folder in (paths.state, paths.images, paths.containers):
        folder.mkdir(parents=True, exist_ok=True)
    seen = signals(tmp_path, Driver()).observe()
    assert seen[thresholds.NODE_FS].capacity == seen[thresholds.IMAGE_FS].capacity > 0
    assert 0 < seen[thresholds.CONTAINER_FS].available <= seen[thresholds.CONTAINER_FS].capacity
    assert thresholds.ALLOCATABLE_MEMORY not in seen, "kubepods has no limit to be short of"


def view() -> PodView:
    sandbox = SandboxView("s", 0, True, cgroup="home")
    running = ContainerView("one", "c", "s", 1, "RUNNING")
    ended = ContainerView("zero", "c", "s", 0, "EXITED")
    return PodView("u", (sandbox,), (running, ended))


def test_a_pods_memory_and_processes(tmp_path: Path) -> None:
    driver = Driver(
        home=CgroupStats(memory_working_set=30 * MI, pids=7), home_one=CgroupStats(memory_working_set=20 * MI)
    )
    reader = signals(tmp_path, driver)
    containers = {"c": ContainerUsage(memory=20 * MI)}
    assert reader.usage(POD, view(), "memory") == Usage(memory=30 * MI, pids=7, containers=containers)
    assert reader.usage(POD, PodView("u"), "memory") == Usage(), "nothing is known of it"


def test_a_pods_disk_is_its_layers_its_logs_and_its_volumes(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    written = {
        paths.containers / "one/upper/file": 64 * 1024,
        paths.containers / "zero/upper/file": 32 * 1024,
        paths.containers / "other/upper/file": 999 * 1024,
        paths.pod_logs / "d_p_u/c/0.log": 16 * 1024,
        paths.pods / "u/volumes/kubernetes.io~empty-dir/v/file": 128 * 1024,
    }
    for file, size in written.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    found = signals(tmp_path, Driver()).usage(POD, view(), "ephemeral-storage")
    own = found.containers["c"].disk
    assert own is not None and found.disk is not None and found.inodes is not None
    folders = 32 * 1024  # what the few folders may take, by file system
    assert 112 * 1024 <= own <= 112 * 1024 + folders
    assert 240 * 1024 <= found.disk <= 240 * 1024 + folders
    assert found.inodes >= 4


class Recorder:
    def __init__(self) -> None:
        self.told: list[str] = []

    def event(self, obj: Any, kind: str, reason: str, message: str) -> None:
        self.told.append(f"{obj['metadata']['name']} {kind} {reason} {message}")


def test_events_of_the_node_wait_for_the_api_server() -> None:
    recorder: Any = Recorder()
    events = NodeEvents(recorder, "n")
    events.tell("Normal", "Starting", "first")
    assert recorder.told == []
    events.release()
    events.tell("Normal", "Second", "later")
    events.release()
    assert recorder.told == ["n Normal Starting first", "n Normal Second later"]
    NodeEvents(None, "alone").tell("Normal", "Starting", "no API server at all")


def test_reserved_cgroups_are_limited_and_a_missing_one_is_told() -> None:
    told: list[str] = []
    config = from_document({
        "enforceNodeAllocatable": ["system-reserved", "kube-reserved"],
        "systemReserved": {"cpu": "500m", "memory": "1Gi"}, "systemReservedCgroup": "/system.slice",
        "kubeReserved": {"cpu": "100m"}, "kubeReservedCgroup": "/kube",
    })  # fmt: skip
    driver: Any = Driver(**{"system.slice": CgroupStats()})
    qos: Any = type("Qos", (), {"enforce": lambda self, limits: told.append(str(limits))})()
    enforcement = Enforcement(
        driver, qos, MACHINE, config, lambda kind, reason, text: told.append(f"{kind} {reason} {text}")
    )
    enforcement.enforce()
    assert driver.written == [("system.slice", {"cpu": {"shares": 512}, "memory": {"limit": 1 << 30}})]
    assert told == [
        "{'memory': {'limit': -1}}",
        'Warning FailedNodeAllocatableEnforcement Failed to enforce Kube Reserved Cgroup Limits on "/kube": '
        f"Could not open cgroup kube: ENOENT ({MAKE_IT})",
        "Normal NodeAllocatableEnforced Updated limits on system reserved cgroup /system.slice",
    ]


@pytest.mark.parametrize(("name", "throttling", "problems"), [("v2", 0.8, 0), ("hybrid", None, 1)])
def test_memory_qos_is_done_on_v2_and_said_on_hybrid(
    name: str, throttling: float | None, problems: int
) -> None:
    config = from_document({"featureGates": {"MemoryQoS": True}, "memoryThrottlingFactor": 0.8})
    driver: Any = Driver(name)
    assert rules_of(config, MACHINE, driver).throttling == throttling
    assert rules_of(config, MACHINE, driver).huge_pages == (), "the host has none"
    none: Any = None
    assert len(Enforcement(driver, none, MACHINE, config, none).problems) == problems
