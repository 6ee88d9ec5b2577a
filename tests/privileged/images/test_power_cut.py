"""What a power cut leaves: the store's disk is an ext4 on a loop device, the cut a copy of its backing file.

The copy has what the kernel had sent to the disk by then, and nothing that it still kept in memory.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime.images.store import Image, ImageStore
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root"),
    pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 (e2fsprogs) is not installed"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="there are no loop devices"),
]

NOISE = random.Random(3)
LAYERS = [
    layer([(f"file{n}", NOISE.randbytes(3000)) for n in range(40)] + [("large", NOISE.randbytes(700_000))]),
    # A name twice: such a layer's archive is kept beside it.
    layer([("twice", NOISE.randbytes(5000)), ("twice", NOISE.randbytes(9000))]),
]


@contextmanager
def mounted(disk: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class Disk:
    """The disk, mounted at `folder`; `cut` calls `look` with the store that a machine would find next."""

    def __init__(self, tmp_path: Path, folder: Path) -> None:
        self._tmp_path, self.folder, self._cuts = tmp_path, folder, 0

    @contextmanager
    def cut(self) -> Iterator[ImageStore]:
        self._cuts += 1
        copy = self._tmp_path / f"cut{self._cuts}.img"
        shutil.copyfile(self._tmp_path / "disk.img", copy)
        with mounted(copy, self._tmp_path / f"cut{self._cuts}") as found:
            yield ImageStore(found / "images")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with open(tmp_path / "disk.img", "wb") as handle:
        handle.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "disk.img"], check=True)
    with mounted(tmp_path / "disk.img", tmp_path / "disk") as folder:
        (folder / "scratch").touch()
        os.sync()
        yield Disk(tmp_path, folder)


def archive(tag: str, layers: list[bytes] = LAYERS) -> io.BytesIO:
    return io.BytesIO(tar_file(docker_archive(layers, [tag])))


def is_whole(store: ImageStore, image: Image) -> bool:
    """Whether its layers and documents can be read; raises where they do not have their digests."""
    for diff_id in store.diff_ids(image.id):
        assert sum(len(chunk) for chunk in store.read_layer(diff_id)) > 0
    return bool(store.document(image.id)) and all(store.manifests(image.id))


def test_an_image_that_was_told_of_is_whole(disk: Disk) -> None:
    [image] = ImageStore(disk.folder / "images").import_archive(archive("app:v1"))
    with disk.cut() as found:
        assert [other.id for other in found.list()] == [image.id]
        assert is_whole(found, image)


def test_a_layer_without_its_image_is_whole_or_not_there(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next pull would take it for good: here the names reach the disk before the image is listed."""
    record = ImageStore._record

    def interrupted(*arguments: Any) -> Image:
        monkeypatch.undo()
        # What anybody's fsync does: the journal is written, with all renames up to now.
        with open(disk.folder / "scratch", "w") as handle:
            handle.write("x")
            handle.flush()
            os.fsync(handle.fileno())
        with disk.cut() as found:
            assert len(list((disk.folder / "images/layers").iterdir())) == 2
            assert found.list() == []
            [image] = found.import_archive(archive("app:v1"))
            assert is_whole(found, image)
        return record(*arguments)

    monkeypatch.setattr(ImageStore, "_record", interrupted)
    ImageStore(disk.folder / "images").import_archive(archive("app:v1"))


def test_names_last_too(disk: Disk) -> None:
    store = ImageStore(disk.folder / "images")
    store.import_archive(archive("app:v1"))
    store.tag("app:v1", ["docker.io/library/app:v2"])
    with disk.cut() as found:
        assert found.lookup("app:v2") is not None
    store.remove("app:v2")
    store.remove("app:v1")
    with disk.cut() as found:
        assert found.list() == []
