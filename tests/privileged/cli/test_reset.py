"""What `reset` removes where the node's folder is a disk of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kubelet_py.cli.cleanup import remove_state
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.privileged


def test_a_state_folder_that_is_a_mount_point_is_emptied_and_stays(tmp_path: Path) -> None:
    paths = NodePaths(tmp_path)
    paths.state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "reset-test", paths.state], check=True)
    try:
        (paths.state / "images/blobs").mkdir(parents=True)
        (paths.state / "images/blobs/layer").write_text("bytes")
        (paths.state / "store.db").write_text("objects")
        (paths.state / "link").symlink_to("images")
        paths.config.mkdir(parents=True)
        remove_state(paths)
        assert paths.state.is_mount() and list(paths.state.iterdir()) == []
        assert not paths.config.exists()
    finally:
        subprocess.run(["umount", paths.state], check=True)
