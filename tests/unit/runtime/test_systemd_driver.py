"""What the systemd driver asks for, in which order, and what it undoes: a manager that records, and files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.cgroups.hybrid import HybridDriver
from runtime.cgroups.systemd import SystemdDriver, driver
from runtime.cgroups.v2 import UnifiedDriver
from runtime.errors import CgroupError, SystemdError
from runtime.systemd import manager as systemd_manager
from runtime.systemd.bus import Refusal
from runtime.systemd.manager import EXISTS, Manager

FILES = ("memory.max", "memory.high", "pids.max", "cpu.max", "cpu.weight", "cgroup.procs", "cgroup.kill")


class FakeManager(Manager):
    """Makes a unit's folder as systemd would, and writes down what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[Any, ...]] = []
        self.refused = ""
        self.realise = False
        self.places: dict[str, str] = {}

    def start(self, unit: str, properties: Any) -> None:
        self.asked.append(("start", unit, {name: variant.value for name, variant in properties}))
        if self.refused:
            raise Refusal(f"start {unit}", self.refused, "no")
        if self.realise:
            self.places[unit] = f"a.slice/{unit}"
        if unit in self.places and unit.endswith(".scope"):
            holder = self.root / self.places[unit] / "holder"
            holder.mkdir(parents=True, exist_ok=True)
            (holder / "cgroup.procs").write_text("")

    def set(self, unit: str, properties: Any) -> None:
        self.asked.append(("set", unit, {name: variant.value for name, variant in properties}))
        if self.refused and unit.endswith(".scope"):
            raise Refusal(f"change {unit}", self.refused, "no")

    def stop(self, unit: str) -> None:
        self.asked.append(("stop", unit))
        if unit in self.places:
            shutil.rmtree(self.root / self.places[unit], ignore_errors=True)

    def forget(self, unit: str) -> None:
        self.asked.append(("forget", unit))

    def cgroup(self, unit: str) -> str:
        return self.places[unit]

    def names(self) -> list[str]:
        return [entry[0] for entry in self.asked]


def make(tmp_path: Path, *places: str) -> tuple[SystemdDriver, FakeManager]:
    """A driver over plain files; `places` are the cgroups that systemd makes."""
    manager = FakeManager(tmp_path)
    for place in places:
        (tmp_path / place).mkdir(parents=True)
        manager.places[place.rpartition("/")[2]] = place
        for name in FILES:
            (tmp_path / place / name).write_text("")
    (tmp_path / "cgroup.controllers").write_text("")
    return SystemdDriver(UnifiedDriver(str(tmp_path)), manager), manager


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


SCOPE = "a.slice/x.scope"
LEAF = f"{SCOPE}/container"
LIMITS = {
    "memory": {"limit": 4096},
    "cpu": {"quota": 20000, "period": 100000},
    "pids": {"limit": 5},
    "unified": {"memory.high": "2048"},
}


def text(tmp_path: Path, name: str, place: str = LEAF) -> str:
    return (tmp_path / place / name).read_text()


def test_a_scope_starts_with_what_holds_it_and_gets_the_rest_when_settled(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE, LEAF)
    cgroup = made.create(LEAF, LIMITS)
    action, unit, wanted = manager.asked[0]
    assert (action, unit, wanted["Slice"], wanted["Delegate"]) == ("start", "x.scope", "a.slice", True)
    assert (wanted["MemoryMax"], wanted["MemoryHigh"], wanted["TasksMax"]) == (4096, 2048, 2**64 - 1)
    assert "CPUQuotaPerSecUSec" not in wanted
    (holder,) = wanted["PIDs"]
    assert alive(holder) and text(tmp_path, "holder/cgroup.procs", SCOPE) == str(holder)
    assert (text(tmp_path, "memory.max"), text(tmp_path, "pids.max")) == ("4096", "5")
    assert text(tmp_path, "memory.max", SCOPE) == ""
    assert cgroup.join().unified == f"{tmp_path}/{LEAF}"
    assert cgroup.join().late == ((f"{tmp_path}/{LEAF}/cpu.max", "20000 100000"),)
    (tmp_path / SCOPE / "holder/cgroup.procs").unlink()
    made.settle(LEAF)
    limits = {"TasksMax": 5, "CPUQuotaPerSecUSec": 200_000, "CPUQuotaPeriodUSec": 100_000}
    assert manager.asked[1:] == [("set", "x.scope", limits)]
    assert not alive(holder) and not (tmp_path / SCOPE / "holder").exists()
    made.settle(LEAF)
    assert len(manager.asked) == 2


def test_a_scope_that_systemd_refuses_leaves_no_holder_and_is_not_stopped(tmp_path: Path) -> None:
    """It may be another's."""
    made, manager = make(tmp_path, SCOPE, LEAF)
    manager.refused = EXISTS
    with pytest.raises(Refusal):
        made.create(LEAF, LIMITS)
    assert not alive(manager.asked[0][2]["PIDs"][0]) and manager.names() == ["start"]


def test_a_limit_that_the_kernel_refuses_stops_the_scope(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE)
    with pytest.raises(CgroupError, match=r"container/memory\.max.*ENOENT"):
        made.create(LEAF, LIMITS)
    assert manager.asked[-1] == ("stop", "x.scope") and not alive(manager.asked[0][2]["PIDs"][0])


def test_a_limit_that_is_refused_late_lets_the_holder_go(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE, LEAF)
    made.create(LEAF, LIMITS)
    (tmp_path / SCOPE / "holder/cgroup.procs").unlink()
    manager.refused = "org.freedesktop.DBus.Error.AccessDenied"
    with pytest.raises(Refusal):
        made.settle(LEAF)
    assert not alive(manager.asked[0][2]["PIDs"][0])


def test_a_unit_in_another_place_than_expected_is_refused(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE)
    manager.places["x.scope"] = "b.slice/x.scope"
    shutil.rmtree(tmp_path / SCOPE)
    with pytest.raises(SystemdError, match=r"systemd has it at 'b\.slice/x\.scope'"):
        made.create(LEAF)
    assert manager.names() == ["start", "stop"]


def test_a_home_is_a_scope_of_its_own_each_time(tmp_path: Path) -> None:
    made, manager = make(tmp_path, "a.slice")
    manager.realise = True
    first, second = made.home("a.slice"), made.home("a.slice")
    assert first != second and first.startswith("a.slice/kubelet-py-") and first.endswith(".scope")
    made.create(f"{first}/{'0' * 64}")
    assert len(manager.asked) == 2
    for home in (first, second):
        (tmp_path / home / "holder/cgroup.procs").unlink()
        made.settle(home)
    assert len(manager.asked) == 2  # no limits, nothing to set


def test_a_slice_is_made_once_and_limited_again(tmp_path: Path) -> None:
    made, manager = make(tmp_path, "a.slice")
    made.create("a.slice", LIMITS)
    _, unit, wanted = manager.asked[0]
    assert (unit, wanted["MemoryMax"], wanted["TasksMax"]) == ("a.slice", 4096, 5)
    assert "PIDs" not in wanted and "Delegate" not in wanted and "CPUQuotaPerSecUSec" not in wanted
    manager.refused = EXISTS
    made.create("a.slice", {"memory": {"limit": 8192}})
    assert manager.asked[-1] == ("set", "a.slice", {"MemoryMax": 8192})
    manager.refused = "org.freedesktop.DBus.Error.AccessDenied"
    with pytest.raises(Refusal):
        made.create("a.slice")


def test_a_slice_whose_limits_are_refused_is_stopped_if_it_is_new(tmp_path: Path) -> None:
    made, manager = make(tmp_path, "a.slice", "b.slice")
    refused = {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}
    with pytest.raises(CgroupError, match=r"hugetlb\.2MB\.max.*ENOENT"):
        made.create("a.slice", refused)
    assert manager.names() == ["start", "stop"] and not (tmp_path / "a.slice").exists()
    manager.refused = EXISTS
    with pytest.raises(CgroupError, match=r"hugetlb\.2MB\.max.*ENOENT"):
        made.create("b.slice", refused)
    assert manager.names() == ["start", "stop", "start"] and (tmp_path / "b.slice").exists()


def test_an_update_reaches_systemd_and_the_files(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE, LEAF)
    made.open(LEAF).update({"memory": {"limit": 8192}, "cpu": {"shares": 2}})
    assert manager.asked == [("set", "x.scope", {"MemoryMax": 8192, "CPUWeight": 1})]
    assert (text(tmp_path, "memory.max"), text(tmp_path, "cpu.weight")) == ("8192", "1")


def test_below_a_scope_systemd_is_not_asked(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE)
    made.create(f"{SCOPE}/one")
    assert (tmp_path / SCOPE / "one").is_dir()
    made.remove(f"{SCOPE}/one")
    assert not (tmp_path / SCOPE / "one").exists() and manager.asked == []


def test_removing_a_container_stops_its_scope_if_that_is_there(tmp_path: Path) -> None:
    """A scope of that name without the container's cgroup is not ours."""
    made, manager = make(tmp_path, SCOPE, LEAF)
    made.remove(LEAF, recursive=True)
    assert manager.asked == [("stop", "x.scope")]
    made.remove(LEAF, recursive=True)
    assert manager.asked[1:] == [("forget", "x.scope")]


def test_a_unit_with_processes_is_not_removed_by_the_way(tmp_path: Path) -> None:
    made, manager = make(tmp_path, SCOPE)
    (tmp_path / SCOPE / "cgroup.procs").write_text("1\n")
    with pytest.raises(CgroupError, match="EBUSY"):
        made.remove(SCOPE)
    assert manager.asked == []


@pytest.mark.parametrize("path", ["kubepods/pod1", "a.slice/plain"])
def test_what_is_no_unit_and_in_no_scope_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(SystemdError, match="must be a slice or in a scope"):
        make(tmp_path)[0].create(path)


def test_a_host_without_systemd_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd_manager, "RUNNING", str(tmp_path / "none"))
    with pytest.raises(SystemdError, match=r"systemd does not run this machine \(use cgroupfs\)"):
        driver(UnifiedDriver(str(tmp_path)))
    assert cgroups.native() == cgroups.CGROUPFS
    monkeypatch.setattr(systemd_manager, "RUNNING", str(tmp_path))
    with pytest.raises(SystemdError, match="cgroup v1 controllers are mounted here"):
        driver(HybridDriver({}, str(tmp_path)))
    assert driver(UnifiedDriver(str(tmp_path))).name == "systemd"
