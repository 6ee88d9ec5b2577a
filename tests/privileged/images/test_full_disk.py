"""A disk that is full to the last byte: images can go from it, by hand and by the agent."""

from __future__ import annotations

import io
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images.store import ImageStore
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted by root"),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="there are no loop devices"),
]


@pytest.fixture(params=["tmpfs", "ext4", "ext4 with small blocks"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "disk", folder], check=True)
    else:
        with open(tmp_path / "disk.img", "wb") as handle:
            handle.truncate(16 << 20)
        blocks = ["-b", "1024" if "small" in request.param else "4096"]
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", *blocks, tmp_path / "disk.img"], check=True)
        subprocess.run(["mount", "-o", "loop", tmp_path / "disk.img", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    # As file after file, for the last blocks, too: one that grows needs blocks for its map.
    for size in (1 << 16, 1 << 12, 1 << 10):
        number = 0
        try:
            while True:
                with open(folder / f"fill{size}-{number}", "wb", buffering=0) as handle:
                    while handle.write(b"x" * size) == size:
                        pass
                number += 1
        except OSError:
            continue
    with pytest.raises(OSError, match="No space"), open(folder / "proof", "wb") as proof:
        proof.write(b"x" * 8192)


def test_an_image_can_be_removed_from_a_full_disk(disk: Path) -> None:
    store = ImageStore(disk / "images")
    for number in range(2):
        content = random.Random(number).randbytes(500_000)
        archive = tar_file(docker_archive([layer([("f", content)])], [f"app{number}"]))
        store.import_archive(io.BytesIO(archive))
    fill(disk)
    with pytest.raises(OSError, match="No space"):
        store.tag("app0", [f"docker.io/library/app:{'long' * 25}{number}" for number in range(400)])
    [first, second] = [image.id for image in store.list()]
    store.remove("app0")
    assert [image.id for image in store.list()] == [second]
    (disk / "room").write_bytes(b"x" * 400_000)
    store.remove(second)
    assert store.list() == [] and first != second
    assert not list((disk / "images/layers").iterdir()) and not list((disk / "images/ingest").iterdir())
