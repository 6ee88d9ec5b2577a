"""Several layers for a pod with users of its own: what the overlay shows, and what stays of its making."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubelet_py.errors import VolumeError
from kubelet_py.volumes import mounting
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.mapped_layers import mount_mapped_layers
from runtime.kernel import Kernel
from runtime.linux import LinuxKernel
from runtime.userns import supported

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not supported(LinuxKernel()), reason="this kernel cannot idmap a tmpfs (Linux 6.3)"),
]
IDS = (10 * 65536, 65536)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = mounting.mount_points(), sorted(os.listdir("/proc/self/fd"))
    yield
    assert (mounting.mount_points(), sorted(os.listdir("/proc/self/fd"))) == before


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[list[str]]:
    """Top first, on a tmpfs. The top hides `gone` and replaces `both`; `user` belongs to the image's 1000."""
    place = tmp_path / "layers"
    place.mkdir()
    mounting.mount_tmpfs(place)
    low, high = place / "low", place / "high"
    for layer in (low, high):
        layer.mkdir()
        (layer / "both").write_text(layer.name)
        (layer / f"of-{layer.name}").write_text("")
    (low / "gone").write_text("")
    os.mknod(high / "gone", 0o020000, 0)
    (low / "user").write_text("")
    os.chown(low / "user", 1000, 1001)
    yield [str(high), str(low)]
    mounting.unmount(place)


def owner(path: Path) -> tuple[int, int]:
    return (path.stat().st_uid, path.stat().st_gid)


def test_the_layers_are_shown_with_the_pods_owners(tmp_path: Path, layers: list[str]) -> None:
    volume = VolumeManager(tmp_path / "pods").set_up_image("uid", "v", layers, IDS)
    folder = volume.path
    try:
        assert volume.read_only and volume.mapped
        assert sorted(os.listdir(folder)) == ["both", "of-high", "of-low", "user"]
        assert (folder / "both").read_text() == "high"
        assert owner(folder / "both") == (IDS[0], IDS[0])
        assert owner(folder / "user") == (IDS[0] + 1000, IDS[0] + 1001)
        flags = os.statvfs(folder).f_flag
        assert flags & os.ST_RDONLY and flags & os.ST_NOEXEC and flags & os.ST_NOSUID and flags & os.ST_NODEV
        assert owner(Path(layers[1]) / "user") == (1000, 1001), "the host's own view is as it was"
        mount_mapped_layers(LinuxKernel(), folder, layers, IDS)  # a new agent finds it
        assert mounting.mount_points().count(folder) == 1
    finally:
        mounting.unmount(folder)


def test_what_an_agent_of_before_showed_is_not_taken_for_it(tmp_path: Path, layers: list[str]) -> None:
    volumes = VolumeManager(tmp_path / "pods")
    plain = volumes.set_up_image("uid", "v", layers)  # as it was for pods with users of their own, too
    volume = volumes.set_up_image("uid", "v", layers, IDS)
    assert owner(plain.path / "both") == (0, 0) and owner(volume.path / "both") == (IDS[0], IDS[0])
    volumes.tear_down("uid")
    assert not {plain.path, volume.path} & set(mounting.mount_points())


def test_one_layer_is_left_to_the_containers_mount(tmp_path: Path, layers: list[str]) -> None:
    volume = VolumeManager(tmp_path / "pods").set_up_image("uid", "v", layers[1:], IDS)
    assert not volume.mapped and owner(volume.path / "both") == (0, 0)
    mounting.unmount(volume.path)


def test_layers_that_cannot_be_mapped_are_told_by_name(tmp_path: Path, layers: list[str]) -> None:
    with pytest.raises(VolumeError, match=r"an image of 2 layers .*MOUNT_ATTR_IDMAP of /proc"):
        mount_mapped_layers(LinuxKernel(), tmp_path, [layers[0], "/proc"], IDS)


def test_a_folder_that_is_gone_leaves_nothing(tmp_path: Path, layers: list[str]) -> None:
    kernel: Kernel = LinuxKernel()
    absent = tmp_path / "absent"
    with pytest.raises(VolumeError, match=f"{absent}: ENOENT$"):
        mount_mapped_layers(kernel, absent, layers, IDS)
    with pytest.raises(VolumeError, match=re.escape(f"{tmp_path}: ENOENT ({absent})")):
        mount_mapped_layers(kernel, tmp_path, [layers[0], str(absent)], IDS)
