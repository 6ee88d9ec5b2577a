"""Traffic of disks, from the kernel's files to runc's shape."""

from __future__ import annotations

from pathlib import Path

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
