"""Limits hold for real, whichever cgroup version the host has."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from runtime.cgroups.files import weight_of_shares
from runtime.cgroups.hybrid import HybridDriver
from runtime.cgroups.v2 import UnifiedDriver
from runtime.errors import CgroupError

pytestmark = pytest.mark.privileged

MIB = 1 << 20


def limited(**resources: Any) -> dict[str, Any]:
    return {"resources": resources}


def test_memory_beyond_the_limit_ends_in_137(box: Any) -> None:
    running = box.start("tail /dev/zero", linux=limited(memory={"limit": 16 * MIB, "swap": 16 * MIB}))
    code, _ = running.wait(30)
    assert code == 137
    assert running.cgroup.stats().oom_kills >= 1
    assert running.cgroup.stats().memory_limit == 16 * MIB


def test_memory_in_a_tmpfs_counts_too(box: Any) -> None:
    code, _ = box.run(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=48",
        linux=limited(memory={"limit": 16 * MIB, "swap": 16 * MIB}),
    )
    assert code == 137


def test_forks_beyond_the_limit_fail(box: Any) -> None:
    script = "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all; kill -9 -1"
    _, text = box.start(script, linux=limited(pids={"limit": 8})).wait()
    assert "can't fork" in text and "all" not in text


def test_a_cpu_quota_is_kept(box: Any) -> None:
    running = box.start("while :; do :; done", linux=limited(cpu={"quota": 20000, "period": 100000}))
    begin, used = time.monotonic(), running.cgroup.stats().cpu_usage_ns
    os.waitid(os.P_PIDFD, running.process.pidfd, os.WEXITED | os.WNOHANG)
    # On a busy machine it may take a while until there is a period in which it wants more than its share.
    while time.monotonic() - begin < 1.0 or not running.cgroup.stats().cpu_throttled_periods:
        running.cgroup.pids()
        time.sleep(0.05)
    share = (running.cgroup.stats().cpu_usage_ns - used) / 1e9 / (time.monotonic() - begin)
    assert share < 0.35


def test_limits_can_be_changed_while_it_runs(box: Any) -> None:
    running = box.start("echo up; sleep 60", linux=limited(memory={"limit": 16 * MIB}))
    running.read_until("up")
    for limit in (64 * MIB, 32 * MIB):
        running.cgroup.update({"memory": {"limit": limit}, "cpu": {"shares": 100}, "pids": {"limit": 9}})
        assert running.cgroup.stats().memory_limit == limit


def test_everything_is_killed_through_the_cgroup(box: Any) -> None:
    running = box.start("trap '' TERM; sleep 60 & (sleep 60 &) ; echo up; sleep 60")
    running.read_until("up")
    assert len(running.cgroup.pids()) >= 3
    running.cgroup.kill()
    assert running.wait()[0] == 137


def test_freeze_stops_and_thaw_continues(box: Any) -> None:
    running = box.start("echo up; while :; do :; done")
    running.read_until("up")
    running.cgroup.freeze()
    time.sleep(0.05)
    first = running.cgroup.stats().cpu_usage_ns
    time.sleep(0.15)
    assert running.cgroup.stats().cpu_usage_ns - first < 20_000_000
    running.cgroup.thaw()
    deadline = time.monotonic() + 60
    while running.cgroup.stats().cpu_usage_ns <= first + 20_000_000:
        assert time.monotonic() < deadline, "it stays as if it were frozen"
        time.sleep(0.05)


def test_an_exec_is_limited_like_its_container(box: Any) -> None:
    running = box.start("echo up; sleep 60", linux=limited(memory={"limit": 16 * MIB, "swap": 16 * MIB}))
    running.read_until("up")
    assert box.exec(running, "tail /dev/zero").wait(30)[0] == 137


def test_a_cgroup_is_removed_everywhere(box: Any) -> None:
    path = f"{box.base}/gone"
    box.driver.create(path, {"cpu": {"cpus": "0", "shares": 5}, "devices": [{"allow": False}]})
    assert box.driver.exists(path)
    box.driver.remove(path)
    assert not box.driver.exists(path)
    box.driver.remove(path)
    roots = (
        [box.driver.unified, *box.driver.controllers.values()]
        if box.driver.name == "hybrid"
        else [box.driver.root]
    )
    assert not any(os.path.exists(f"{root}/{path}") for root in roots)


def test_a_limit_the_host_refuses_leaves_no_cgroup(box: Any) -> None:
    from runtime.errors import CgroupError

    with pytest.raises(CgroupError):
        box.driver.create(f"{box.base}/bad", {"cpu": {"cpus": "900"}})
    assert not box.driver.exists(f"{box.base}/bad")


def test_the_v2_driver_holds_processes_by_its_tree(box: Any) -> None:
    """On a hybrid host the v2 tree has no controllers; being born into it, kill and freeze are v2's own."""
    root = getattr(box.driver, "unified", None) or box.driver.root
    driver = UnifiedDriver(root)
    path = f"{box.base}/unified"
    cgroup = driver.create(path)
    assert cgroup.join().unified == f"{root}/{path}" and cgroup.join().tasks == ()
    spec = box.spec("sleep 60 & echo up; sleep 60")
    running = box.launch(spec, cgroup)
    running.read_until("up")
    assert len(cgroup.pids()) >= 2 and running.pid in cgroup.pids()
    cgroup.freeze()
    cgroup.thaw()
    assert cgroup.stats().cpu_usage_ns > 0
    cgroup.kill()
    assert running.wait()[0] == 137
    driver.remove(path)
    assert not driver.exists(path)


def test_the_v2_driver_limits_devices_by_a_program(box: Any) -> None:
    """S08 on v2: CAP_MKNOD lets a node be made, the program does not let it be opened."""
    driver = UnifiedDriver(getattr(box.driver, "unified", None) or box.driver.root)
    script = "mknod /tmp/tun c 10 200 && echo made; (: < /tmp/tun); head -c 1 /dev/zero | wc -c"
    for allow, refused in ((False, True), (True, False)):
        path = f"{box.base}/devices-{allow}"
        cgroup = driver.create(path, {"devices": [{"allow": allow, "access": "rwm"}]})
        _, text = box.launch(box.spec(script, capabilities=("CAP_MKNOD",)), cgroup).wait()
        assert text.startswith("made\n") and text.endswith("1\n")
        assert ("Operation not permitted" in text) is refused
        driver.remove(path)


NULL = {"type": "c", "major": 1, "minor": 3}


@pytest.mark.parametrize(
    ("rules", "opened"),
    [
        ([{"allow": False}], ["read", "write", "both"]),
        ([{"allow": False}, {"allow": False, **NULL}], []),
        ([{"allow": False}, {"allow": False, **NULL, "access": "w"}], ["read"]),
        ([{"allow": True}, {"allow": False, **NULL, "access": "w"}], ["read"]),
        (
            [{"allow": False}, {"allow": False, **NULL}]
            + [{"allow": True, **NULL, "access": letter} for letter in "rw"],
            ["read", "write", "both"],
        ),
        ([{"allow": False, **NULL, "access": "r"}, {"allow": True}], ["read", "write", "both"]),
    ],
)
def test_rules_of_one_device_say_the_same_on_both_versions(box: Any, rules: Any, opened: list[str]) -> None:
    """What is denied to a writer is denied to who opens for both, and letters of two rules add up."""
    script = (
        "(: < /dev/null) && echo read; (: > /dev/null) && echo write; (: <> /dev/null) && echo both; true"
    )
    for driver in (box.driver, UnifiedDriver(getattr(box.driver, "unified", None) or box.driver.root)):
        path = f"{box.base}/null-{driver.name}"
        cgroup = driver.create(path, {"devices": rules})
        _, text = box.launch(box.spec(script), cgroup).wait(60)
        assert [line for line in text.splitlines() if line in ("read", "write", "both")] == opened, text
        driver.remove(path)


def test_limits_are_read_back_as_they_are_set(box: Any) -> None:
    """What a resized container's status shows; cgroup v2 keeps a weight, which several shares have."""
    running = box.start("echo up; sleep 60", linux=limited(memory={"limit": 16 * MIB}))
    running.read_until("up")
    free = running.cgroup.limits()
    assert (free.quota, free.memory) == (-1, 16 * MIB)
    running.cgroup.update(
        {"cpu": {"shares": 307, "quota": 50000, "period": 100000}, "memory": {"limit": 32 * MIB}}
    )
    found = running.cgroup.limits()
    assert (found.quota, found.period, found.memory, found.memory_known) == (50000, 100000, 32 * MIB, True)
    assert weight_of_shares(found.shares) == weight_of_shares(307)
    assert found.by_weight or found.shares == 307
    running.cgroup.update({"cpu": {"quota": -1}})
    assert running.cgroup.limits().quota == -1
    running.cgroup.kill()


def test_processors_hold_for_who_runs_already_and_below_a_folder_made_this_moment(box: Any) -> None:
    """On v1 a cpuset is empty when it is made: another thread may be between that and filling it."""
    running = box.start("sleep 60 & echo up; wait")
    running.read_until("up")
    driver = getattr(running.cgroup, "_driver", None)  # on v2 a cgroup is a folder, and has none
    if not isinstance(driver, HybridDriver) or "cpuset" not in driver.controllers:
        pytest.skip("this host has no v1 cpuset")
    folder = driver.folder("cpuset", running.cgroup.path)
    assert not os.path.exists(folder)
    parent = os.path.dirname(folder)
    os.makedirs(parent, exist_ok=True)
    running.cgroup.update({"cpu": {"cpus": "0"}})
    pids = running.cgroup.pids()
    assert len(pids) == 2
    assert [os.sched_getaffinity(pid) for pid in pids] == [{0}, {0}]


def test_an_update_holds_for_who_runs_already_in_controllers_that_had_no_limit(box: Any) -> None:
    """On v1 such a controller has no folder for the container until a limit asks for it, and an update that
    was refused may have made one."""
    running = box.start("sleep 60 & echo up; wait")
    running.read_until("up")
    driver = getattr(running.cgroup, "_driver", None)
    if not isinstance(driver, HybridDriver) or not {"blkio", "cpuset"} <= set(driver.controllers):
        pytest.skip("this host has no v1 blkio and cpuset")
    with pytest.raises(CgroupError, match="4095"):
        running.cgroup.update({"cpu": {"cpus": "4095"}})
    running.cgroup.update({"cpu": {"cpus": "0"}, "blockIO": {"weight": 300}})
    for controller in ("cpuset", "blkio"):
        procs = os.path.join(driver.folder(controller, running.cgroup.path), "cgroup.procs")
        with open(procs) as file:
            assert sorted(map(int, file.read().split())) == sorted(running.cgroup.pids()), controller


def test_swap_below_the_limit_of_memory_changes_nothing(box: Any) -> None:
    running = box.start("echo up; sleep 60")
    running.read_until("up")
    before = running.cgroup.limits()
    with pytest.raises(CgroupError, match="counts memory"):
        running.cgroup.update({"memory": {"limit": 64 << 20, "swap": 32 << 20}})
    assert running.cgroup.limits() == before
