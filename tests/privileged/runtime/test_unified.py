"""What only a host with cgroup v2 alone can show (hack/test --vm boots one): every controller is v2's."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import CgroupError

pytestmark = pytest.mark.privileged

MIB = 1 << 20
CONTROLLERS = {"cpu", "memory", "pids", "cpuset", "io"}


@pytest.fixture
def unified(box: Any) -> Any:
    if box.driver.name != "v2":
        pytest.skip("a host with cgroup v2 alone is missing (sudo ./hack/test --vm)")
    return box


def test_a_container_has_all_controllers_however_deep_it_is(unified: Any) -> None:
    path = f"{unified.base}/burstable/pod/container"
    unified.driver.create(path)
    available = set((Path(unified.driver.root) / path / "cgroup.controllers").read_text().split())
    assert available >= CONTROLLERS


def test_a_process_is_born_into_its_cgroup(unified: Any) -> None:
    """The first line it writes is its own place, seen from a cgroup namespace that is rooted there."""
    running = unified.start("cat /proc/self/cgroup; sleep 60")
    assert running.read_until("\n") == "0::/\n"
    assert Path(f"/proc/{running.pid}/cgroup").read_text() == f"0::/{running.cgroup.path}\n"
    assert running.pid in running.cgroup.pids()


def test_an_exec_has_a_cgroup_below_a_running_container(unified: Any) -> None:
    """The kernel lets no folder with processes hand controllers on; execs count in their container."""
    running = unified.start("echo up; sleep 60", linux={"resources": {"pids": {"limit": 40}}})
    running.read_until("up")
    child = unified.driver.create(f"{running.cgroup.path}/exec-1")
    script = unified.spec("cat /proc/self/cgroup; sleep 60", linux={"resources": {}})
    inside = unified.launch(script, child)
    inside.read_until("\n")
    assert child.pids()[0] == inside.pid and inside.pid in running.cgroup.pids()
    assert running.cgroup.stats().pids >= 2
    unified.driver.remove(child.path, recursive=True)


def test_an_exec_sees_the_container_s_cgroup_as_the_root(unified: Any) -> None:
    """With nsdelegate, as systemd mounts it, nobody inside a namespace may bring a process into a cgroup."""
    running = unified.start("echo up; sleep 60")
    running.read_until("up")
    assert unified.exec(running, "cat /proc/self/cgroup").wait()[1] == "0::/\n"


def test_memory_limit_and_its_kills_are_read_back(unified: Any) -> None:
    limit = {"memory": {"limit": 16 * MIB, "reservation": 8 * MIB, "swap": 16 * MIB}}
    running = unified.start("tail /dev/zero; echo went on; sleep 60", linux={"resources": limit})
    running.read_until("went on")
    stats = running.cgroup.stats()
    assert stats.oom_kills == 1 and stats.memory_limit == 16 * MIB
    assert 0 < stats.memory_rss <= stats.memory_usage <= 16 * MIB
    folder = Path(unified.driver.root) / running.cgroup.path
    assert (folder / "memory.low").read_text() == f"{8 * MIB}\n"


def content(box: Any, cgroup: Any, name: str) -> str:
    return str((Path(box.driver.root) / cgroup.path / name).read_text().strip())


EVERY = {
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "burst": 20000, "cpus": "0", "mems": "0"},
    "memory": {"limit": 64 * MIB, "swap": 80 * MIB, "reservation": 8 * MIB},
    "pids": {"limit": 40},
    "blockIO": {"weight": 500},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}],
    "unified": {"memory.high": str(48 * MIB), "memory.oom.group": "1", "memory.min": str(MIB)},
}
FILES = {
    "cpu.weight": "20", "cpu.max": "50000 100000", "cpu.max.burst": "20000", "cpuset.cpus": "0",
    "cpuset.mems": "0", "memory.max": str(64 * MIB), "memory.swap.max": str(16 * MIB),
    "memory.low": str(8 * MIB), "memory.high": str(48 * MIB), "memory.min": str(MIB),
    "memory.oom.group": "1", "pids.max": "40", "hugetlb.2MB.max": str(2 * MIB),
    "hugetlb.2MB.rsvd.max": str(2 * MIB),
}  # fmt: skip


def test_every_limit_is_in_its_file_at_the_start_and_after_an_update(unified: Any) -> None:
    running = unified.start("echo up; sleep 60", linux={"resources": EVERY})
    running.read_until("up", 60)
    assert {name: content(unified, running.cgroup, name) for name in FILES} == FILES
    weights = Path(unified.driver.root) / running.cgroup.path
    if (weights / "io.weight").exists():  # the kernel's iocost, else the disks' scheduler
        assert (weights / "io.weight").read_text() == "default 4950\n"
    else:
        assert (weights / "io.bfq.weight").read_text() == "default 500\n"
    running.cgroup.update({"memory": {"swap": 96 * MIB}, "cpu": {"idle": 1}, "pids": {"limit": -1}})
    assert content(unified, running.cgroup, "memory.swap.max") == str(32 * MIB)
    assert content(unified, running.cgroup, "cpu.idle") == "1"
    assert content(unified, running.cgroup, "pids.max") == "max"


def test_a_limit_below_what_is_in_use_is_refused_if_asked(unified: Any) -> None:
    running = unified.start("dd if=/dev/zero of=/dev/shm/x bs=1M count=24; echo up; sleep 60")
    running.read_until("up", 60)
    with pytest.raises(CgroupError, match="are in use"):
        running.cgroup.update({"memory": {"limit": 8 * MIB, "checkBeforeUpdate": True}})
    assert content(unified, running.cgroup, "memory.max") == "max"
    running.cgroup.update({"memory": {"limit": 64 * MIB, "checkBeforeUpdate": True}})
    assert content(unified, running.cgroup, "memory.max") == str(64 * MIB)


@pytest.mark.parametrize(("group", "code"), [("0", 0), ("1", 137)])
def test_oom_group_takes_the_whole_container(unified: Any, group: str, code: int) -> None:
    """The victim is a child: without the group the container goes on. Both are in memory.events."""
    limits = {"memory": {"limit": 16 * MIB, "swap": 16 * MIB}, "unified": {"memory.oom.group": group}}
    running = unified.start("tail /dev/zero; echo went on", linux={"resources": limits})
    found, text = running.wait(90)
    assert (found, "went on" in text) == (code, code == 0)
    events = dict(line.split() for line in content(unified, running.cgroup, "memory.events").splitlines())
    # With a group the victim is counted once by itself and once as a member.
    assert (int(events["oom_kill"]) == 1) is (code == 0)
    assert int(events.get("oom_group_kill", group)) == int(group)


HUGE = """
import mmap, os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for pages in (1, 2):
    try:
        mmap.mmap(-1, pages << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000).close()
        print(pages, "mapped")
    except OSError as error:
        print(pages, error.errno)
"""


def test_huge_pages_beyond_the_limit_are_not_promised(unified: Any) -> None:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    setting.write_text("4")
    try:
        if int(setting.read_text()) < 4:
            pytest.skip("four huge pages of free memory are missing")
        limits = {"hugepageLimits": [{"pageSize": "2MB", "limit": 2 * MIB}]}
        cgroup = unified.driver.create(f"{unified.base}/huge", limits)
        command = [sys.executable, "-S", "-c", HUGE, cgroup.folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines() == ["1 mapped", "2 12"], done.stderr
    finally:
        setting.write_text(before)


def test_a_limit_on_a_device_that_is_not_there_is_refused_by_name(unified: Any) -> None:
    """rdma: the controller is there, a card is not."""
    with pytest.raises(CgroupError, match=r"none0 hca_handle=1.*rdma\.max"):
        unified.driver.create(f"{unified.base}/rdma", {"rdma": {"none0": {"hcaHandles": 1}}})
    assert not unified.driver.exists(f"{unified.base}/rdma")


def test_a_cpuset_is_kept(unified: Any) -> None:
    linux = {"resources": {"cpu": {"cpus": "0"}}}
    running = unified.start("grep Cpus_allowed_list /proc/self/status", linux=linux)
    assert running.wait()[1].split() == ["Cpus_allowed_list:", "0"]


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A folder on a block device: Debian 13's /tmp is in memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def test_writes_to_a_disk_are_throttled(unified: Any, on_disk: Path) -> None:
    """Into a bind mount: a container's own root is a volatile overlay, in which syncing does nothing."""
    bind = {"destination": "/data", "type": "bind", "source": str(on_disk), "options": ["bind"]}
    device = on_disk.stat().st_dev
    slow = {"major": os.major(device), "minor": os.minor(device), "rate": MIB}
    running = unified.start(
        "dd if=/dev/zero of=/data/file bs=64k count=48 conv=fsync",
        mounts=[bind],
        linux={"resources": {"blockIO": {"throttleWriteBpsDevice": [slow]}}},
    )
    begin = time.monotonic()
    code, text = running.wait(120)
    assert code == 0, text
    assert time.monotonic() - begin > 2.0


@pytest.fixture
def swapping(unified: Any, on_disk: Path) -> Iterator[Any]:
    """With 64 MiB of swap, which are the whole machine's: in the tests' own VM alone."""
    if not Path("/etc/kubelet-py-vm").exists():
        pytest.skip("a machine whose swap may be changed is missing (sudo ./hack/test --vm)")
    file = on_disk / "swap"
    with open(file, "wb") as made:
        for _ in range(64):
            made.write(bytes(MIB))
    file.chmod(0o600)
    subprocess.run(["mkswap", str(file)], check=True, capture_output=True)
    subprocess.run(["swapon", str(file)], check=True)
    yield unified
    subprocess.run(["swapoff", str(file)], check=True)


@pytest.mark.parametrize(("swap", "kept"), [(64, True), (16, False), (24, False)])
def test_swap_is_there_up_to_its_limit(swapping: Any, swap: int, kept: bool) -> None:
    """32 MiB of a tmpfs in 16 MiB of memory: the rest is swapped, if it may."""
    limits = {"memory": {"limit": 16 * MIB, "swap": swap * MIB}}
    running = swapping.start(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=32 && echo kept; sleep 60", linux={"resources": limits}
    )
    if kept:
        running.read_until("kept\n", 120)
        assert running.cgroup.stats().memory_swap > 8 * MIB
        assert running.cgroup.report()["memory"]["swap"]["usage"] > 24 * MIB
    else:
        until_killed(running)
        assert running.cgroup.stats().memory_swap <= (swap - 16) * MIB
    running.cgroup.kill()
    running.wait(60)


def until_killed(running: Any) -> None:
    deadline = time.monotonic() + 120
    while not running.cgroup.stats().oom_kills:
        assert time.monotonic() < deadline, "nothing was killed"
        time.sleep(0.2)


def test_a_limit_written_by_its_v2_name_holds(unified: Any) -> None:
    running = unified.start("echo up; sleep 60", linux={"resources": {"unified": {"memory.high": "8388608"}}})
    running.read_until("up")
    assert (Path(unified.driver.root) / running.cgroup.path / "memory.high").read_text() == "8388608\n"


def test_a_limit_of_v1_alone_is_refused_and_leaves_nothing(unified: Any) -> None:
    with pytest.raises(CgroupError, match="does not have"):
        unified.driver.create(f"{unified.base}/swappy", {"memory": {"swappiness": 10}})
    assert not unified.driver.exists(f"{unified.base}/swappy")


def test_a_cgroup_may_get_its_limits_when_there_is_a_process_below_it(unified: Any) -> None:
    """A refused one stays then, with what it has; a new one does not."""
    driver, path = unified.driver, f"{unified.base}/pod"
    inside = unified.launch(unified.spec("echo up; sleep 60"), driver.create_bare(f"{path}/pause"))
    inside.read_until("up")
    driver.create(path, {"memory": {"limit": 64 * MIB}, "pids": {"limit": 77}})
    folder = Path(driver.root) / path
    assert (folder / "memory.max").read_text() == f"{64 * MIB}\n"
    assert (folder / "pids.max").read_text() == "77\n"
    assert set((folder / "pause/cgroup.controllers").read_text().split()) >= CONTROLLERS
    for place, stays in ((path, True), (f"{path}-new", False)):
        with pytest.raises(CgroupError, match=r"memory\.max: EINVAL"):
            driver.create(place, {"unified": {"memory.max": "much"}})
        assert driver.exists(place) is stays
    assert inside.pid in driver.open(path).pids()
    driver.remove(path, recursive=True)


def stalled(running: Any, part: str) -> int:
    """Microseconds that processes have waited in all, as `events --stats` tells it."""
    return int(running.cgroup.report()[part]["psi"]["some"]["total"])


def stalled_above(least: int, running: Any, part: str, seconds: float = 90) -> int:
    """The same, once it is more than `least`."""
    deadline = time.monotonic() + seconds
    while (total := stalled(running, part)) <= least:
        assert time.monotonic() < deadline, f"{part} pressure stays at {total} µs, not above {least}"
        time.sleep(0.2)
    return total


@pytest.fixture
def pressed(unified: Any) -> Any:
    if not Path("/proc/pressure").exists():
        pytest.skip("a kernel that counts pressure is missing (PSI; boot with psi=1)")
    return unified


def test_a_quota_is_felt_as_processor_pressure(pressed: Any) -> None:
    """Waits for the next period are pressure, of the container that has the quota alone."""
    quota = {"resources": {"cpu": {"quota": 10000, "period": 100000}}}
    running = pressed.start("echo up; while :; do :; done", linux=quota)
    asleep = pressed.start("echo up; exec sleep 600", linux={"resources": {}})
    for one in (running, asleep):
        one.read_until("up", 60)
    before, slept = stalled_above(0, running, "cpu"), stalled(asleep, "cpu")
    after = stalled_above(before + 1_000_000, running, "cpu")
    assert stalled(asleep, "cpu") - slept < after - before


def test_a_memory_limit_is_felt_as_memory_pressure(pressed: Any) -> None:
    """memory.high without swap: pages beyond it cost a search for others to take away, and a rest."""
    limits = {"memory": {"limit": 48 * MIB, "swap": 48 * MIB}, "unified": {"memory.high": str(8 * MIB)}}
    running = pressed.start("echo up; exec tail /dev/zero", linux={"resources": limits})
    running.read_until("up", 60)
    stalled_above(0, running, "memory")
