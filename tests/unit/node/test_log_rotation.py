"""When a log is renamed, what is kept, and that a follower reads every line once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from kubelet_py.node.log_rotation import LogRotation, parse_limits, rotated_files
from kubelet_py.server.logs import LogOptions, Watch, read_log
from runtime.errors import RuntimeFailure
from runtime.logs import LogFile

START = 1_795_230_900.0  # 2026-11-21 03:15:00 UTC


class Lab:
    def __init__(self, folder: Path, *, files: int = 3, size: int = 100) -> None:
        self.path = folder / "0.log"
        self.state = "RUNNING"
        self.wall = START
        self.clock = 0.0
        self.log = LogFile(str(self.path), lambda text: None)
        self.rotation = LogRotation(
            lambda: [self.container()],
            self.reopen,
            max_size=size,
            max_files=files,
            period=10.0,
            clock=lambda: self.clock,
            wall_clock=lambda: self.wall,
        )

    def container(self) -> Any:
        return SimpleNamespace(id="c" * 64, state=self.state, config=SimpleNamespace(log_path=str(self.path)))

    def reopen(self, container_id: str) -> None:
        self.log.reopen()

    def pass_time(self, seconds: float = 10.0) -> None:
        self.wall += seconds
        self.clock += seconds
        self.rotation.look()

    def names(self) -> list[str]:
        return sorted(file.name for file in self.path.parent.iterdir())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    folder = tmp_path / "main"
    folder.mkdir()
    return Lab(folder)


def test_a_full_log_is_renamed_by_the_time_and_a_new_one_begun(lab: Lab) -> None:
    lab.log.write([b"x" * 99])
    lab.pass_time()
    assert lab.names() == ["0.log"]
    lab.log.write([b"y"])
    lab.pass_time(9.0)
    assert lab.names() == ["0.log"]
    lab.pass_time(1.0)
    assert lab.names() == ["0.log", "0.log.20261121-031520"]
    lab.log.write([b"z"])
    assert lab.path.read_bytes() == b"z"
    assert rotated_files(lab.path)[0].read_bytes() == b"x" * 99 + b"y"


@pytest.mark.parametrize("files", [2, 3, 5])
def test_only_so_many_files_are_kept_the_newest_ones(tmp_path: Path, files: int) -> None:
    lab = Lab(tmp_path, files=files)
    for number in range(8):
        lab.log.write([bytes([48 + number]) * 100])
        lab.pass_time()
    assert len(lab.names()) == files
    kept = [file.read_bytes()[:1] for file in rotated_files(lab.path)]
    assert kept == [bytes([48 + number]) for number in range(8 - (files - 1), 8)]


def test_logs_of_ended_containers_stay_as_they_are(lab: Lab) -> None:
    lab.log.write([b"x" * 200])
    lab.state = "EXITED"
    lab.pass_time()
    assert lab.names() == ["0.log"]


def test_twice_within_a_second_nothing_is_overwritten(lab: Lab) -> None:
    for _ in range(2):
        lab.log.write([b"x" * 100])
        lab.rotation.rotate("c", lab.path)
    assert sum(file.stat().st_size for file in lab.path.parent.iterdir()) == 200


@pytest.mark.parametrize("fails", [True, False], ids=["reopening fails", "the container has just ended"])
def test_a_log_that_was_not_reopened_gets_its_name_back(lab: Lab, fails: bool) -> None:
    def reopen(container_id: str) -> None:
        if fails:
            raise RuntimeFailure("Could not reopen log: the shim is gone")

    lab.reopen = reopen  # type: ignore[method-assign]
    lab.rotation = LogRotation(
        lambda: [lab.container()], reopen, max_size=100, max_files=3, period=0.0, clock=lambda: 0.0
    )
    lab.log.write([b"x" * 100])
    lab.rotation.look()
    assert lab.names() == ["0.log"]


def test_rotation_that_an_agent_did_not_live_to_finish_is_finished_by_the_next(lab: Lab) -> None:
    lab.log.write([b"old\n"])
    lab.path.rename(lab.path.with_name("0.log.20261121-031400"))
    lab.log.write([b"meanwhile\n"])
    lab.pass_time()
    lab.log.write([b"new\n"])
    assert lab.names() == ["0.log", "0.log.20261121-031400"]
    assert lab.path.read_bytes() == b"new\n"
    assert lab.path.with_name("0.log.20261121-031400").read_bytes() == b"old\nmeanwhile\n"


def test_folder_of_a_pod_that_is_going_is_not_made_again(lab: Lab) -> None:
    lab.path.unlink()
    lab.path.parent.rmdir()
    lab.pass_time()
    assert not lab.path.parent.exists()


def line(number: int) -> bytes:
    return b"2026-11-21T02:00:00.000000000Z stdout F %d\n" % number


def test_a_follower_that_is_slower_than_the_rotation_misses_no_file(lab: Lab) -> None:
    """Three files were begun and filled between two reads; what the old one got last is read, too."""
    lab = Lab(lab.path.parent, files=10)
    lab.log.write([line(0) * 1])
    steps: list[Callable[[], None]] = []

    def gone() -> bool:
        if steps:
            steps.pop(0)()
        return False

    def rotate_thrice() -> None:
        for number in (1, 3, 5):
            lab.log.write([line(number) + line(number + 1) + b""])
            lab.log.write([line(-1) * 3])
            lab.pass_time()
        lab.log.write([line(7)])

    alive = [True]
    steps += [rotate_thrice, lambda: alive.clear()]
    out = b"".join(
        read_log(lab.path, LogOptions(follow=True), running=lambda: bool(alive), gone=gone, watch=Watch())
    )
    assert [int(n) for n in out.split() if n != b"-1"] == list(range(8))


def test_a_writer_and_a_follower_at_full_speed_lose_and_double_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path, files=1000, size=20_000)
    count, reading, done = 60_000, threading.Event(), threading.Event()

    def write() -> None:
        reading.wait()
        for number in range(0, count, 20):
            lab.log.write([b"".join(line(number + i) for i in range(20))])
            if number % 600 == 0:  # between two writes, as the shim's loop does it
                lab.pass_time()
        done.set()

    def running() -> bool:
        reading.set()  # the first file is open
        return not done.is_set()

    writer = threading.Thread(target=write)
    writer.start()
    chunks = list(
        read_log(
            lab.path,
            LogOptions(follow=True),
            running=running,
            gone=lambda: False,
            watch=Watch(seconds=0.001),
        )
    )
    writer.join()
    assert len(rotated_files(lab.path)) > 50
    assert b"".join(chunks) == b"".join(b"%d\n" % number for number in range(count))


def test_log_asked_for_in_the_middle_of_a_rotation_is_the_renamed_one(lab: Lab) -> None:
    lab.log.write([line(1)])
    lab.path.rename(lab.path.with_name("0.log.20261121-031500"))
    out = read_log(lab.path, LogOptions(), running=lambda: True, gone=lambda: False)
    assert b"".join(out) == b"1\n"


@pytest.mark.parametrize(
    ("size", "files", "why"), [("lots", 5, "no quantity"), ("0", 5, "positive"), ("1Mi", 1, "at least 2")]
)
def test_bad_limits_are_refused(size: str, files: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_limits(Config(container_log_max_size=size, container_log_max_files=files))


def test_the_limits_are_upstreams() -> None:
    assert parse_limits(Config()) == (10 << 20, 5)
