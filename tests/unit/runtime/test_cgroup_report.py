"""Traffic of disks and pressure, from the kernel's files to runc's shape."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups import report


def test_io_stat_of_a_v2_tree(tmp_path: Path) -> None:
    (tmp_path / "io.stat").write_text("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n254:16 \n")
    assert report.unified(str(tmp_path))["blkio"] == {
        "ioServiceBytesRecursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 10},
            {"major": 8, "minor": 0, "op": "Write", "value": 20},
        ],
        "ioServicedRecursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 1},
            {"major": 8, "minor": 0, "op": "Write", "value": 2},
        ],
    }


def test_blkio_of_a_v1_hierarchy_and_none_where_the_cgroup_has_no_place_in_it(tmp_path: Path) -> None:
    (tmp_path / "blkio.throttle.io_serviced_recursive").write_text("254:0 Read 3\n254:0 Total 3\nTotal 3\n")
    found = report.hybrid({"blkio": str(tmp_path)})["blkio"]
    rows = [{"major": 254, "minor": 0, "op": op, "value": 3} for op in ("Read", "Total")]
    assert found == {"ioServicedRecursive": rows}
    assert report.hybrid({})["blkio"] == {}


def write_all(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("limit", "swap_limit", "told"),
    [("4096", "1024", {"limit": 5120, "usage": 1100}), ("4096", "max", {"usage": 1100}),
     ("max", "1024", {"usage": 1100})],
)  # fmt: skip
def test_swap_counts_memory_too(tmp_path: Path, limit: str, swap_limit: str, told: dict[str, int]) -> None:
    write_all(tmp_path, memory_max=limit, memory_current="1000", memory_peak="2000")
    assert "swap" not in report.unified(str(tmp_path))["memory"]
    write_all(tmp_path, memory_swap_max=swap_limit, memory_swap_current="100", memory_swap_peak="300")
    memory = report.unified(str(tmp_path))["memory"]
    assert memory["swap"] == told and memory["usage"]["max"] == 2000


def test_huge_pages_by_their_size(tmp_path: Path) -> None:
    assert "hugetlb" not in report.unified(str(tmp_path))
    write_all(tmp_path, hugetlb_2MB_current="4194304", hugetlb_2MB_events="max 3")
    write_all(tmp_path, hugetlb_1GB_current="0", hugetlb_1GB_events="max 0")
    (tmp_path / "hugetlb.2MB.events.local").write_text("max 9\n")
    assert report.unified(str(tmp_path))["hugetlb"] == {
        "1GB": {"usage": 0, "failcnt": 0}, "2MB": {"usage": 4194304, "failcnt": 3}
    }  # fmt: skip


SOME = "some avg10=1.71 avg60=2.36 avg300=0.00 total=230548833\n"
FULL = "full avg10=0.50 avg60=0.25 avg300=0.00 total=157622356\n"
SOME_READ = {"avg10": 1.71, "avg60": 2.36, "avg300": 0.0, "total": 230548833}
FULL_READ = {"avg10": 0.5, "avg60": 0.25, "avg300": 0.0, "total": 157622356}
NONE_READ = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}


@pytest.mark.parametrize(
    ("text", "full"), [(SOME + FULL, FULL_READ), (SOME, NONE_READ)], ids=["both", "before-5.13"]
)
@pytest.mark.parametrize(("file", "part"), [("cpu", "cpu"), ("memory", "memory"), ("io", "blkio")])
def test_pressure_is_in_its_own_part(
    tmp_path: Path, file: str, part: str, text: str, full: dict[str, float]
) -> None:
    (tmp_path / f"{file}.pressure").write_text(text)
    found = report.unified(str(tmp_path))
    assert found[part]["psi"] == {"some": SOME_READ, "full": full}
    assert isinstance(found[part]["psi"]["some"]["total"], int)
    assert [name for name in found if "psi" in found[name]] == [part]


def failing(number: int) -> Any:
    def read(path: str) -> str:
        raise OSError(number, "", path)

    return read


def test_pressure_that_the_kernel_does_not_count_is_left_out(tmp_path: Path) -> None:
    """No files; EOPNOTSUPP, which kernels before 6.1 started with psi=0 say. Other failures are told."""
    assert not any("psi" in part for part in report.unified(str(tmp_path)).values())
    assert report.pressure("cpu.pressure", failing(errno.EOPNOTSUPP)) == {}
    with pytest.raises(OSError) as told:
        report.pressure("cpu.pressure", failing(errno.EIO))
    assert told.value.errno == errno.EIO


def test_a_v1_hierarchy_has_no_pressure(tmp_path: Path) -> None:
    for name in ("cpu", "memory", "io"):
        (tmp_path / f"{name}.pressure").write_text(SOME + FULL)
    folders = dict.fromkeys(("cpu", "cpuacct", "memory", "pids", "blkio"), str(tmp_path))
    assert not any("psi" in part for part in report.hybrid(folders).values())
