"""The agent's own mounts, found again by what the kernel says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubelet_py.volumes import mounting

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
