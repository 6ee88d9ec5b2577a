"""The agent's own mounts, found again by what the kernel says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubelet_py.volumes import empty_dir, mounting
from kubelet_py.volumes.plugin import Context

pytestmark = pytest.mark.privileged


@pytest.mark.parametrize("name", [
    "plain", "with space", "tab\tand\\backslash", "naïve", "#1\nline", "carriage\rreturn", "form\x0cfeed",
    "separator\u2028of lines",
])  # fmt: skip
def test_mounts_below_a_folder_go_the_deepest_first_and_others_stay(tmp_path: Path, name: str) -> None:
    folder, sibling = tmp_path / "pods", tmp_path / "pods-of-others"
    outer = folder / name
    for place in (outer, outer / "inner", sibling):
        place.mkdir(parents=True)
        mounting.mount_tmpfs(place)
    assert all(mounting.is_mounted(place) for place in (outer, outer / "inner", sibling))
    mounting.unmount_below(folder)
    assert not any(folder in place.parents for place in mounting.mount_points())
    assert mounting.is_mounted(sibling)
    mounting.unmount(sibling)


@pytest.mark.parametrize("medium", ["HugePages", "HugePages-2Mi"])
def test_an_empty_dir_of_huge_pages(tmp_path: Path, medium: str) -> None:
    if not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    limits = {"hugepages-2Mi": "2Mi"}
    spec = {"containers": [{"name": "c", "resources": {"limits": limits}}]}
    asked = Context({"metadata": {}, "spec": spec}, lambda kind, name: None, lambda *_: "")
    folder = empty_dir.set_up(asked, {"medium": medium}, tmp_path / "v")
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        (found,) = [fields for fields in mounts if fields[1] == str(folder)]
        assert found[2] == "hugetlbfs" and "pagesize=2M" in found[3].split(",")
        assert folder.stat().st_mode & 0o777 == 0o777
        assert empty_dir.set_up(asked, {"medium": medium}, folder) == folder, "once is enough"
    finally:
        mounting.unmount(folder)
    assert not mounting.is_mounted(folder)
