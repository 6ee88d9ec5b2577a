"""A real container that writes as fast as it can, its log rotated and followed: every line once, in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubelet_py.node.log_rotation import LogRotation, rotated_files
from kubelet_py.server.logs import LogOptions, Watch, read_log
from runtime.cgroups import detect
from runtime.images.store import ImageStore
from tests.privileged.runtime_service.harness import BUSYBOX, ROOT_CGROUP, Node, shims, wait_for

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

LINES = 400_000


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    image = ImageStore(tmp_path / "images").from_binary(BUSYBOX, "busybox")
    driver = detect()
    made = Node(tmp_path, Path(image.layers[0]), driver, None)  # type: ignore[arg-type]
    made.service = made.fresh()
    made.service.start()
    yield made
    made.service.close()
    made.fresh().remove_everything()
    if driver.exists(ROOT_CGROUP):
        driver.remove(ROOT_CGROUP, recursive=True)
    wait_for(lambda: not shims(tmp_path))


def test_a_fast_writer_is_rotated_and_followed_without_losing_or_doubling_a_line(node: Node) -> None:
    wall = [1_795_230_900.0]
    rotation = LogRotation(
        node.service.list_containers,
        node.service.reopen_log,
        max_size=1 << 20,
        max_files=1000,
        period=0.0,
        wall_clock=lambda: wall[0],
    )
    container = node.create(node.sandbox(), ["seq", "1", str(LINES)])
    path = Path(node.service.container(container).config.log_path)
    node.service.start_container(container)
    wait_for(path.exists)
    followed: list[bytes] = []

    def follow() -> None:
        watch = Watch(seconds=0.05)
        followed.extend(
            read_log(
                path,
                LogOptions(follow=True),
                running=lambda: node.service.container(container).state == "RUNNING",
                gone=lambda: False,
                watch=watch,
            )
        )
        watch.close()

    reader = threading.Thread(target=follow)
    reader.start()
    while node.service.container(container).state == "RUNNING":
        wall[0] += 1  # each rotation a second of its own: names end in seconds
        rotation.look()
        time.sleep(0.002)
    reader.join(30)
    assert not reader.is_alive()
    files = [*rotated_files(path), path]
    assert len(files) >= 4, "it was rotated several times while it wrote"
    expected = [b"%d" % number for number in range(1, LINES + 1)]
    kept = [line.split(b" ", 3)[3] for file in files for line in file.read_bytes().splitlines()]
    assert kept == expected
    assert b"".join(followed).split() == expected


def test_only_as_many_files_as_configured_stay_on_the_disk(node: Node) -> None:
    wall = [1_795_230_900.0]
    rotation = LogRotation(
        node.service.list_containers,
        node.service.reopen_log,
        max_size=20_000,
        max_files=3,
        period=0.0,
        wall_clock=lambda: wall[0],
    )
    container = node.create(node.sandbox(), ["sh", "-c", "while :; do seq 1 1000; done"])
    path = Path(node.service.container(container).config.log_path)
    node.service.start_container(container)
    for _ in range(6):
        wait_for(lambda: path.exists() and path.stat().st_size >= 20_000)
        wall[0] += 1
        rotation.look()
    assert len(rotated_files(path)) == 2
    node.service.stop_container(container, 0)
