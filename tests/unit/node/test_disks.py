"""Which disk has what: the table of upstream's buildSignalToRankFunc and buildSignalToNodeReclaimFuncs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubelet_py.node import thresholds
from kubelet_py.node.disks import EVERYTHING, Disks, counted, laid_out, reclaimable
from kubelet_py.paths import NodePaths
from tests.unit.node.test_signals import MI, POD, Driver, signals, view

NODE = (thresholds.NODE_FS, thresholds.NODE_INODES)
IMAGE = (thresholds.IMAGE_FS, thresholds.IMAGE_INODES)
CONTAINER = (thresholds.CONTAINER_FS, thresholds.CONTAINER_INODES)


def test_a_layout_is_told_by_the_devices() -> None:
    assert laid_out(1, 1, 1) is Disks.ONE
    assert laid_out(1, 2, 2) is Disks.IMAGES_AND_LAYERS_APART
    assert laid_out(1, 2, 1) is Disks.IMAGES_APART
    assert laid_out(1, 1, 2) is Disks.ONE, "upstream knows no containers apart from images on the node's disk"


@pytest.mark.parametrize(
    ("disks", "signals_of", "parts", "own"),
    [
        (Disks.ONE, NODE + IMAGE + CONTAINER, EVERYTHING, {"containers", "images"}),
        (Disks.IMAGES_AND_LAYERS_APART, NODE, {"logs", "volumes"}, set()),
        (Disks.IMAGES_AND_LAYERS_APART, IMAGE + CONTAINER, {"layers"}, {"containers", "images"}),
        (Disks.IMAGES_APART, NODE + CONTAINER, EVERYTHING, {"containers"}),
        (Disks.IMAGES_APART, IMAGE, set(), {"images"}),
    ],
)
def test_what_counts_and_what_the_node_gives(
    disks: Disks, signals_of: tuple[str, ...], parts: set[str], own: set[str]
) -> None:
    for signal in signals_of:
        assert counted(disks, signal) == parts
        assert reclaimable(disks, signal) == own


@pytest.mark.parametrize(
    ("disks", "node_kb", "image_kb"),
    [
        (Disks.ONE, 448, 448),
        (Disks.IMAGES_AND_LAYERS_APART, 192, 256),
        (Disks.IMAGES_APART, 448, 0),
    ],
)
def test_a_pods_share_of_a_disk_is_what_it_has_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disks: Disks, node_kb: int, image_kb: int
) -> None:
    paths = NodePaths(tmp_path)
    for file, size in {
        paths.containers / "one/upper/file": 256,
        paths.pod_logs / "d_p_u/c/0.log": 64,
        paths.pods / "u/volumes/kubernetes.io~empty-dir/v/file": 128,
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * (size << 10))
    reader = signals(tmp_path, Driver())
    monkeypatch.setattr(reader, "disks", lambda: disks)
    for signal, least in ((thresholds.NODE_FS, node_kb), (thresholds.IMAGE_FS, image_kb)):
        found = reader.usage(POD, view(), "ephemeral-storage", signal)
        assert found.disk is not None
        assert least << 10 <= found.disk <= (least + 48) << 10, "and what the folders may take"
    whole = reader.usage(POD, view(), "ephemeral-storage").disk
    assert whole is not None and 448 << 10 <= whole < MI, "a pod's own limit is on all it has"
