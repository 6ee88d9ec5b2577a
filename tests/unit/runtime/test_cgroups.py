"""linux.resources → files, for v2 and v1, and which tree is where."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups
from runtime.cgroups import CgroupDriver, devices, files, hybrid, v2
from runtime.errors import CgroupError

RESOURCES: dict[str, Any] = {
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0-1"},
    "memory": {"limit": 1 << 20, "swap": 3 << 20, "reservation": 1 << 19},
    "pids": {"limit": 100},
    "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}]},
}

HYBRID_INFO = r"""25 1 0:22 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
30 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


@pytest.mark.parametrize(
    ("mounted", "options"),
    [
        ("rw,nsdelegate,memory_recursiveprot", ("nsdelegate", "memory_recursiveprot")),
        ("ro,memory_localevents", ("memory_localevents",)),
        ("rw", ()),
    ],
)
def test_the_options_of_the_tree_are_those_of_its_superblock(mounted: str, options: tuple[str, ...]) -> None:
    line = f"31 23 0:26 / /sys/fs/cgroup rw,nosuid,relatime shared:9 - cgroup2 cgroup2 {mounted}\n"
    assert cgroups.tree_options("29 25 0:26 / / rw - ext4 /dev/vda rw,discard\n" + line) == options
    assert cgroups.tree_options("") == ()


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000), (1, 1), (10**9, 10000)])
def test_shares_become_weights(shares: int, weight: int) -> None:
    assert files.weight_of_shares(shares) == weight


def test_v2_writes() -> None:
    assert v2.cpu_writes(RESOURCES) == [("cpu.weight", "20"), ("cpu.max", "50000 100000")]
    assert v2.other_writes(RESOURCES) == [
        ("memory.low", "524288"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "2097152"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "100"),
        ("io.max", "8:0 rbps=1000"),
    ]


def test_v1_writes() -> None:
    assert hybrid.cpu_writes(RESOURCES) == [
        ("cpu", "cpu.shares", "512"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
    ]
    assert hybrid.other_writes(RESOURCES) == [
        ("memory", "memory.limit_in_bytes", "1048576"),
        ("memory", "memory.memsw.limit_in_bytes", "3145728"),
        ("memory", "memory.soft_limit_in_bytes", "524288"),
        ("cpuset", "cpuset.cpus", "0-1"),
        ("pids", "pids.max", "100"),
        ("blkio", "blkio.throttle.read_bps_device", "8:0 1000"),
    ]


@pytest.mark.parametrize("resources", [None, {}, {"cpu": {}}, {"memory": None}])
def test_no_limits_no_writes(resources: Any) -> None:
    assert v2.other_writes(resources) == hybrid.other_writes(resources) == []
    assert v2.cpu_writes(resources) == hybrid.cpu_writes(resources) == []


def test_unlimited_is_written_as_each_version_wants_it() -> None:
    unlimited = {"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}}
    assert ("memory.max", "max") in v2.other_writes(unlimited)
    assert ("pids.max", "max") in v2.other_writes(unlimited)
    assert v2.cpu_writes(unlimited) == [("cpu.max", "max 100000")]
    assert ("memory", "memory.limit_in_bytes", "-1") in hybrid.other_writes(unlimited)
    assert hybrid.cpu_writes(unlimited) == [("cpu", "cpu.cfs_quota_us", "-1")]


def test_denying_all_devices_keeps_the_default_ones() -> None:
    rules = {
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 10, "minor": 229},
        ]
    }
    writes = hybrid.other_writes(rules)
    assert writes[0] == ("devices", "devices.deny", "a")
    assert ("devices", "devices.allow", "c 1:3 rwm") in writes
    assert writes[-1] == ("devices", "devices.allow", "c 10:229 rwm")


def verdict(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """eBPF, as far as device programs use it."""
    context = {0: access << 16 | kind, 4: major, 8: minor}
    registers = [0] * 10
    at = 0
    while True:
        code, registers_used, offset, number = struct.unpack_from("=BBhi", program, at * 8)
        target, source = registers_used & 15, registers_used >> 4
        at += 1
        if code == 0x61:
            registers[target] = context[offset]
        elif code == 0xBF:
            registers[target] = registers[source]
        elif code == 0xB7:
            registers[target] = number
        elif code == 0x57:
            registers[target] &= number
        elif code == 0x77:
            registers[target] >>= number
        elif code == 0x56:
            at += offset if registers[target] != number & 0xFFFFFFFF else 0
        elif code == 0x16:
            at += offset if registers[target] == number & 0xFFFFFFFF else 0
        else:
            assert code == 0x95
            return registers[0]


@pytest.mark.parametrize(
    ("kind", "access", "major", "minor", "allowed"),
    [
        (2, 6, 1, 3, 1), (2, 2, 1, 1, 0), (1, 1, 8, 0, 1), (1, 2, 8, 0, 0), (1, 3, 8, 0, 0),
        (2, 6, 136, 77, 1),
        (2, 2, 10, 229, 1), (2, 4, 10, 229, 0), (2, 6, 5, 2, 1), (2, 6, 5, 3, 0),
    ],
)  # fmt: skip
def test_the_device_program_decides_by_the_last_matching_rule(
    kind: int, access: int, major: int, minor: int, allowed: int
) -> None:
    listed = devices.rules(
        {
            "devices": [
                {"allow": False},
                {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"},
            ]
        }
    )
    assert verdict(devices.program(listed), kind, access, major, minor) == allowed


TUN = {"type": "c", "major": 10, "minor": 200}
NONE, ALL = {"allow": False}, {"allow": True}


@pytest.mark.parametrize(
    ("entries", "allowed"),
    [
        # Letters of several rules add up, in either order. (Nodes may be made once all was denied.)
        ([NONE, {"allow": True, **TUN, "access": "r"}, {"allow": True, **TUN, "access": "w"}], "r w rw m rm"),
        ([NONE, {"allow": True, **TUN, "access": "w"}, {"allow": True, **TUN, "access": "r"}], "r w rw m rm"),
        # What is denied is denied to who asks for more, too.
        ([ALL, {"allow": False, **TUN, "access": "w"}], "r m rm"),
        ([NONE, {"allow": True, **TUN}, {"allow": False, **TUN, "access": "w"}], "r m rm"),
        # The later rule has the word, the wider one or the narrower.
        ([NONE, {"allow": True, "type": "c"}, {"allow": False, **TUN}], ""),
        ([NONE, {"allow": False, **TUN}, {"allow": True, "type": "c", "access": "r"}], "r"),
        ([{"allow": True, **TUN}, NONE], "m"),
        ([{"allow": False, **TUN, "access": "r"}, ALL], "r w rw m rm"),
        ([NONE, {"allow": True, "major": 10, "access": "r"}, {"allow": True, **TUN, "access": "w"}],
         "r w rw m rm"),
    ],
)  # fmt: skip
def test_each_access_is_decided_by_the_last_rule_that_names_it(
    entries: list[dict[str, Any]], allowed: str
) -> None:
    program = devices.program(devices.rules({"devices": entries}))
    asked = {"r": 2, "w": 4, "rw": 6, "m": 1, "rm": 3}
    assert {name for name, access in asked.items() if verdict(program, 2, access, 10, 200)} == set(
        allowed.split()
    )


def test_allowing_all_devices_allows_all() -> None:
    assert verdict(devices.program(devices.rules({"devices": [{"allow": True}]})), 1, 7, 8, 0) == 1


@pytest.mark.parametrize("entry", [{"type": "x"}, {"access": "q"}])
def test_a_wrong_device_rule_is_an_error(entry: dict[str, Any]) -> None:
    with pytest.raises(CgroupError):
        devices.rules({"devices": [entry]})


@pytest.mark.parametrize("resources", [{"memory": {"swappiness": 5}}, {"network": {"classID": 1}}])
def test_what_v2_does_not_have_is_an_error(resources: dict[str, Any]) -> None:
    with pytest.raises(CgroupError, match="does not have"):
        v2.other_writes(resources)


def test_a_hybrid_host_is_recognised(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(HYBRID_INFO)
    driver = cgroups.detect(str(info))
    assert isinstance(driver, hybrid.HybridDriver)
    assert driver.unified == "/sys/fs/cgroup/unified"
    assert driver.controllers["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"
    assert "blkio" not in driver.controllers


def test_a_v2_host_is_recognised(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text("30 25 0:27 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n")
    assert isinstance(cgroups.detect(str(info)), v2.UnifiedDriver)


def test_a_tree_below_a_path_with_a_blank_is_found_among_mounts_with_any_name(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_bytes(
        b"29 25 0:26 / /mnt/caf\xe9 rw - ext4 /dev/x rw\n30 25 0:27 / /sys/c\\040g rw - cgroup2 cgroup2 rw\n"
    )
    assert cgroups.detect(str(info)).unified == "/sys/c g"


def test_a_host_without_v2_is_an_error(tmp_path: Path) -> None:
    info = tmp_path / "mountinfo"
    info.write_text(HYBRID_INFO.rpartition("30 25")[0])
    with pytest.raises(CgroupError, match="cgroup2"):
        cgroups.detect(str(info))


@pytest.mark.parametrize("path", ["", "/", "..", "a/../b", "a//b", "./a"])
def test_paths_that_leave_the_tree_are_refused(path: str) -> None:
    with pytest.raises(CgroupError):
        files.checked_path(path)


def test_every_resource_of_v2_has_its_file() -> None:
    resources = {
        "blockIO": {
            "weight": 500,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 9}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
        "rdma": {"mlx5_0": {"hcaHandles": 2, "hcaObjects": 2000}, "mlx5_1": {"hcaObjects": 0}},
        "unified": {"memory.oom.group": "1"},
    }
    assert v2.other_writes(resources) == [
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("io.weight", "default 4950"),
        ("io.weight", "8:0 10000"),
        ("io.max", "8:0 wiops=9"),
        ("rdma.max", "mlx5_0 hca_handle=2 hca_object=2000"),
        ("rdma.max", "mlx5_1 hca_object=0"),
        ("memory.oom.group", "1"),
    ]
    assert ("rdma", "rdma.max", "mlx5_1 hca_object=0") in hybrid.other_writes(resources)
    assert hybrid.other_writes({"cpu": {"realtimeRuntime": 900, "realtimePeriod": 1000}}) == [
        ("cpu", "cpu.rt_period_us", "1000"),
        ("cpu", "cpu.rt_runtime_us", "900"),
    ]
    weights = {"weightDevice": [{"major": 8, "minor": 0, "weight": 20, "leafWeight": 30}], "leafWeight": 40}
    assert hybrid.other_writes({"blockIO": {"weight": 10, **weights}}) == [
        ("blkio", "blkio.bfq.weight", "10"),
        ("blkio", "blkio.bfq.weight_device", "8:0 20"),
        ("blkio", "blkio.leaf_weight", "40"),
        ("blkio", "blkio.leaf_weight_device", "8:0 30"),
    ]
    more = {"cpu": {"burst": 5000, "idle": 1}}
    assert v2.cpu_writes(more) == [("cpu.max.burst", "5000"), ("cpu.idle", "1")]


@pytest.mark.parametrize("weight", [10, 11, 100, 500, 999, 1000])
def test_a_weight_goes_to_the_disks_scheduler_where_that_weighs(tmp_path: Path, weight: int) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/io.bfq.weight").write_text("")
    v2.Unified(str(tmp_path), "c").update({"blockIO": {"weight": weight}})
    assert (tmp_path / "c/io.bfq.weight").read_text() == f"default {weight}"


def test_a_disks_weight_is_its_own_partys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """io.weight refuses a disk that is not weighed by cost, io.bfq.weight one that BFQ does not schedule."""
    cgroup, weighed = v2.Unified(str(tmp_path), "c"), {"io.bfq.weight": ["8:0"], "io.weight": ["8:16"]}
    written = []

    def write(path: str, value: str) -> None:
        name, disk = path.rpartition("/")[2], value.split()[0]
        if disk != "default" and disk not in weighed[name]:
            raise CgroupError(f"Could not write {value} to {path}: EOPNOTSUPP", errno.EOPNOTSUPP)
        written.append((name, value))

    monkeypatch.setattr(files, "write", write)
    disks = [{"major": 8, "minor": minor, "weight": 444} for minor in (0, 16)]
    cgroup.update({"blockIO": {"weight": 333, "weightDevice": disks}})
    assert written == [
        ("io.weight", "default 3263"), ("io.bfq.weight", "default 333"), ("io.bfq.weight", "8:0 444"),
        ("io.weight", "8:16 4384"),
    ]  # fmt: skip
    with pytest.raises(CgroupError, match=r"8:32.*io\.weight: EOPNOTSUPP"):
        cgroup.update({"blockIO": {"weightDevice": [{"major": 8, "minor": 32, "weight": 444}]}})
    assert [v2.bfq_weight(text) for text in ("100", "8:0 default", "")] == ["20", "8:0 default", ""]


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        ({"memory": {"swappiness": 10}}, "swappiness"),
        ({"memory": {"kernelTCP": 10}}, "kernelTCP"),
        ({"cpu": {"realtimeRuntime": 10}}, "realtimeRuntime"),
        ({"blockIO": {"leafWeight": 10}}, "leafWeight"),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 10}]}}, "leafWeight"),
        ({"network": {"classID": 10}}, "classID"),
        ({"memory": {"swap": 10}}, "memory.limit is needed"),
        ({"memory": {"swap": 10, "limit": 20}}, "counts memory, too"),
        ({"blockIO": {"weight": 5}}, "from 10 to 1000"),
        ({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}, "huge pages"),
        ({"unified": {"../cgroup.kill": "1"}}, "CONTROLLER.PARAMETER"),
        ({"unified": {"memory": "1"}}, "CONTROLLER.PARAMETER"),
    ],
)
def test_what_v2_cannot_do_is_refused(resources: dict[str, Any], text: str) -> None:
    with pytest.raises(CgroupError, match=re.escape(text)):
        v2.other_writes(resources)


def test_an_update_of_swap_alone_counts_from_the_limit_there_is(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for name, text in (("memory.max", "4096"), ("memory.swap.max", ""), ("memory.current", "5000")):
        (tmp_path / "c" / name).write_text(text)
    cgroup = v2.Unified(str(tmp_path), "c")
    cgroup.update({"memory": {"swap": 6144}})
    assert (tmp_path / "c/memory.swap.max").read_text() == "2048"
    with pytest.raises(CgroupError, match="5000 bytes are in use"):
        cgroup.update({"memory": {"limit": 4999, "checkBeforeUpdate": True}})
    cgroup.update({"memory": {"limit": 5001, "checkBeforeUpdate": True}})
    assert (tmp_path / "c/memory.max").read_text() == "5001"


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({"quota": 60000}, "60000 90000"),
        ({"quota": -1}, "max 90000"),
        ({"period": 50000}, "40000 50000"),
        ({"quota": 10000, "period": 20000}, "10000 20000"),
    ],
)
def test_a_quota_or_period_that_is_not_mentioned_stays(
    tmp_path: Path, asked: dict[str, int], written: str
) -> None:
    folder = files_of(tmp_path, **{"cpu.max": "40000 90000\n"})
    v2.Unified(str(tmp_path), "c").update({"cpu": asked})
    assert (folder / "cpu.max").read_text().startswith(written)  # a plain file keeps the rest
    (folder / "cpu.max").write_text("max 90000")
    v2.Unified(str(tmp_path), "c").update({"cpu": {"period": 50000}})
    assert (folder / "cpu.max").read_text() == "max 50000"


def files_of(root: Path, **texts: str) -> Path:
    (root / "c").mkdir()
    for name, text in texts.items():
        (root / "c" / name).write_text(text)
    return root / "c"


REFUSED = {"pids": {"limit": 5}}  # by plain folders, which have no file for it


def trees(root: Path, name: str) -> tuple[CgroupDriver, list[Path]]:
    """A driver over plain folders, and those."""
    if name == "v2":
        return v2.UnifiedDriver(str(root)), [root]
    folders = [root / name for name in ("memory", "cpu,cpuacct", "pids", "systemd", "unified")]
    for folder in folders:
        folder.mkdir()
    controllers = {"memory": "memory", "cpu": "cpu,cpuacct", "cpuacct": "cpu,cpuacct", "pids": "pids"}
    mounted = {controller: str(root / folder) for controller, folder in controllers.items()}
    mounted["name=systemd"] = str(root / "systemd")
    return hybrid.HybridDriver(mounted, str(root / "unified")), folders


@pytest.mark.parametrize("name", ["v2", "hybrid"])
def test_a_cgroup_whose_limits_are_refused_is_taken_away(tmp_path: Path, name: str) -> None:
    driver, folders = trees(tmp_path, name)
    with pytest.raises(CgroupError, match=r"pods/a/pids\.max: ENOENT"):
        driver.create("pods/a", REFUSED)
    assert not any((folder / "pods/a").exists() for folder in folders)


@pytest.mark.parametrize("name", ["v2", "hybrid"])
@pytest.mark.parametrize("resources", [{"unified": {"memory": "1"}}, {"blockIO": {"weight": 5}}])
def test_limits_that_cannot_be_written_leave_none(tmp_path: Path, name: str, resources: Any) -> None:
    driver, folders = trees(tmp_path, name)
    with pytest.raises(CgroupError):
        driver.create("pods/a", resources)
    assert not any((folder / "pods/a").exists() for folder in folders)


@pytest.mark.parametrize("name", ["v2", "hybrid"])
def test_one_that_was_in_use_before_stays(tmp_path: Path, name: str) -> None:
    """And the refusal is told, not that it could not be taken away."""
    driver, folders = trees(tmp_path, name)
    driver.create_bare("pods/a/pause")
    with pytest.raises(CgroupError, match=r"pods/a/pids\.max: ENOENT"):
        driver.create("pods/a", REFUSED)
    assert (folders[-1] / "pods/a/pause").is_dir()
    assert not any((folder / "pods/a").exists() for folder in folders[:-1])


@pytest.mark.parametrize("name", ["v2", "hybrid"])
def test_a_bare_one_that_cannot_be_made_is_told_by_its_path(tmp_path: Path, name: str) -> None:
    driver, folders = trees(tmp_path, name)
    with pytest.raises(CgroupError, match=r"Could not make cgroup .*/pods/a+: ENAMETOOLONG"):
        driver.create_bare(f"pods/{'a' * 256}/pause")
    assert os.listdir(folders[-1] / "pods") == []


def test_the_unified_names_have_the_last_word() -> None:
    resources = {
        "cpu": {"shares": 3333, "quota": 40000, "period": 100000},
        "memory": {"limit": 4096},
        "unified": {"cpu.max": "5000 50000", "cpu.weight": "42", "memory.max": "8192", "memory.min": "1"},
    }
    assert dict(v2.cpu_writes(resources)) == {"cpu.weight": "42", "cpu.max": "5000 50000"}
    assert dict(v2.other_writes(resources)) == {"memory.max": "8192", "memory.min": "1"}


def test_a_unified_value_of_several_lines_is_written_line_by_line() -> None:
    value = "254:0 rbps=1000\n254:16 rbps=2000\n"
    assert v2.other_writes({"unified": {"io.max": value, "memory.high": ""}}) == [
        ("io.max", "254:0 rbps=1000"), ("io.max", "254:16 rbps=2000"), ("memory.high", ""),
    ]  # fmt: skip


def test_what_is_idle_has_no_weight() -> None:
    """The kernel takes no weight for an idle cgroup."""
    assert v2.cpu_writes({"cpu": {"idle": 1, "shares": 512}}) == [("cpu.idle", "1")]
    assert v2.cpu_writes({"cpu": {"idle": 0, "shares": 512}}) == [("cpu.idle", "0"), ("cpu.weight", "20")]


@pytest.mark.parametrize(
    ("now", "names"), [(9000, ["cpu.max.burst", "cpu.max"]), (0, ["cpu.max", "cpu.max.burst"])]
)
def test_a_burst_is_never_above_the_quota(now: int, names: list[str]) -> None:
    writes = v2.cpu_writes({"cpu": {"quota": 5000, "burst": 4000}})
    assert [name for name, _ in v2.lower_burst_first(writes, now)] == names


def test_a_limit_of_swap_is_an_error_where_swap_is_not_counted(tmp_path: Path) -> None:
    files_of(tmp_path, **{"memory.max": ""})
    cgroup = v2.Unified(str(tmp_path), "c")
    cgroup.update({"memory": {"limit": 4096, "swap": 4096}})
    cgroup.update({"memory": {"limit": 4096, "swap": -1}})
    with pytest.raises(CgroupError, match=r"memory\.swap\.max: ENOENT"):
        cgroup.update({"memory": {"limit": 4096, "swap": 8192}})


@pytest.mark.parametrize("memory", [{"limit": 5000}, {"limit": 6000, "swap": 5000}])
def test_an_update_to_what_is_in_use_is_refused_if_asked(tmp_path: Path, memory: dict[str, int]) -> None:
    folder = files_of(tmp_path, **{"memory.max": "9000", "memory.swap.max": "1", "memory.current": "5000"})
    with pytest.raises(CgroupError, match="5000 bytes are in use"):
        v2.Unified(str(tmp_path), "c").update({"memory": {**memory, "checkBeforeUpdate": True}})
    assert (folder / "memory.max").read_text() == "9000"


def test_what_does_not_stop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files_of(tmp_path, **{"cgroup.freeze": "", "cgroup.events": "populated 1\nfrozen 0\n"})
    monkeypatch.setattr(files, "FREEZE_SECONDS", 0.01)
    with pytest.raises(CgroupError, match="have not stopped"):
        v2.Unified(str(tmp_path), "c").freeze()
    assert (folder / "cgroup.freeze").read_text() == "0"
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    v2.Unified(str(tmp_path), "c").freeze()
    assert (folder / "cgroup.freeze").read_text() == "1"


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ({"cpu.weight": "4", "cpu.max": "50000 100000", "memory.max": "1048576"},
         {"shares": 81, "quota": 50000, "period": 100000, "memory": 1048576, "memory_known": True}),
        ({"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max"},
         {"shares": 2598, "quota": -1, "period": 100000, "memory": None, "memory_known": True}),
        ({}, {"shares": 0, "quota": -1, "period": 0, "memory": None, "memory_known": False}),
    ],
)  # fmt: skip
def test_the_limits_of_a_v2_cgroup_are_read(
    tmp_path: Path, texts: dict[str, str], wanted: dict[str, Any]
) -> None:
    folder = tmp_path / "pod"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")
    found = v2.UnifiedDriver(str(tmp_path)).open("pod").limits()
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert found.by_weight


def test_what_v2_lacks_is_not_read_off_the_root_which_has_no_cgroup_kill(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids\n")
    (tmp_path / "init.scope").mkdir()
    old = v2.UnifiedDriver(str(tmp_path)).missing_features()
    assert [line for line in old if "cgroup.kill" in line]
    (tmp_path / "init.scope/cgroup.kill").touch()
    assert v2.UnifiedDriver(str(tmp_path)).missing_features() == []


def test_a_new_hybrid_cgroup_is_joined_where_one_that_is_found_is(tmp_path: Path) -> None:
    """What it has just made need not be looked for; the others are the nearest that there are."""
    names = ("cpu", "memory", "cpuset", "devices")
    for name in (*names, "unified"):
        (tmp_path / name).mkdir()
    (tmp_path / "devices/pod").mkdir()
    driver = hybrid.HybridDriver({n: str(tmp_path / n) for n in names}, str(tmp_path / "unified"))
    made = driver.create("pod/c").join()
    assert made == driver.open("pod/c").join()
    places = ("cpu/pod/c", "memory/pod/c", "devices/pod")
    assert made.tasks == tuple(f"{tmp_path}/{place}/tasks" for place in places)


def test_a_cgroup_that_goes_while_it_is_looked_at_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has one of its files open is told ENODEV then; systemd removes a scope as soon as it is empty."""
    group = tmp_path / "group"
    group.mkdir()
    for name in ("cgroup.procs", "cgroup.kill", "memory.events", "memory.max"):
        (group / name).write_text("1\n")
    real = open

    class Gone:
        def __init__(self, path: str, mode: str, buffering: int) -> None:
            self._file: Any = real(path, mode, buffering)

        def __enter__(self) -> Gone:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

        def read(self) -> bytes:
            raise OSError(errno.ENODEV, "No such device")

    def refused(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(files, "open", Gone, raising=False)
    monkeypatch.setattr(os, "write", refused)
    assert files.read(f"{group}/memory.events") == "" and files.pids_in(str(group)) == []
    assert v2.UnifiedDriver(str(tmp_path)).open("group").stats().oom_kills == 0
    files.kill_tree(str(group))
    with pytest.raises(CgroupError, match=r"memory\.max: ENODEV"):
        v2.UnifiedDriver(str(tmp_path)).open("group").update({"memory": {"limit": 1}})
