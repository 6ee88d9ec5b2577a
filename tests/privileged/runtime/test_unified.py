"""What only a host with cgroup v2 alone can show (hack/test --vm boots one): every controller is v2's."""

from __future__ import annotations

import os
import time
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


def test_a_cpuset_is_kept(unified: Any) -> None:
    linux = {"resources": {"cpu": {"cpus": "0"}}}
    running = unified.start("grep Cpus_allowed_list /proc/self/status", linux=linux)
    assert running.wait()[1].split() == ["Cpus_allowed_list:", "0"]


def test_writes_to_a_disk_are_throttled(unified: Any, tmp_path: Path) -> None:
    """Into a bind mount: a container's own root is a volatile overlay, in which syncing does nothing."""
    data = tmp_path / "data"
    data.mkdir()
    bind = {"destination": "/data", "type": "bind", "source": str(data), "options": ["bind"]}
    device = data.stat().st_dev
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


def test_a_limit_written_by_its_v2_name_holds(unified: Any) -> None:
    running = unified.start("echo up; sleep 60", linux={"resources": {"unified": {"memory.high": "8388608"}}})
    running.read_until("up")
    assert (Path(unified.driver.root) / running.cgroup.path / "memory.high").read_text() == "8388608\n"


def test_a_limit_of_v1_alone_is_refused_and_leaves_nothing(unified: Any) -> None:
    with pytest.raises(CgroupError, match="does not have"):
        unified.driver.create(f"{unified.base}/swappy", {"memory": {"swappiness": 10}})
    assert not unified.driver.exists(f"{unified.base}/swappy")
