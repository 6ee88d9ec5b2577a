"""Which folders of a node share a disk, with real mounts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from kubelet_py.node.disks import Disks
from kubelet_py.node.signals import Signals
from kubelet_py.paths import NodePaths

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root"),
]


def test_a_disk_of_its_own_for_images_is_seen_as_it_comes_and_goes(tmp_path: Path) -> None:
    paths, nothing = NodePaths(tmp_path), cast(Any, None)
    signals = Signals(paths, nothing, nothing)
    assert signals.disks() is Disks.ONE, "nothing is made yet"
    for folder in (paths.images, paths.containers):
        folder.mkdir(parents=True)
    assert signals.disks() is Disks.ONE
    subprocess.run(["mount", "-t", "tmpfs", "images", paths.images], check=True)
    try:
        assert signals.disks() is Disks.IMAGES_APART
        (paths.images / "containers").mkdir()
        subprocess.run(["mount", "--bind", paths.images / "containers", paths.containers], check=True)
        try:
            assert signals.disks() is Disks.IMAGES_AND_LAYERS_APART
        finally:
            subprocess.run(["umount", paths.containers], check=True)
    finally:
        subprocess.run(["umount", paths.images], check=True)
    assert signals.disks() is Disks.ONE
