"""Workers of a shim, with forks that stand in for programs; no root."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.errors import RuntimeFailure, StartError
from runtime.launch import Process
from runtime.linux import LinuxKernel
from runtime.plan import Plan
from runtime.process import Execute
from runtime.rehearsal import EXIT, stand_in
from runtime.worker import Starter

BRIEF = Plan((Execute((EXIT,), ()),))
SECONDS = 20_000


@pytest.fixture
def output() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def starter() -> Iterator[Starter]:
    made = Starter(LinuxKernel())
    yield made
    made.dismiss()
    with pytest.raises(ChildProcessError):  # nobody is left, not even a zombie
        os.waitpid(-1, os.WNOHANG)


def launch(output: int, *, sibling: bool) -> Process:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        return stand_in(None, BRIEF, (null, output, output), sibling=sibling)
    finally:
        os.close(null)


def serve(values: tuple[Any, ...], child: tuple[int, int, int]) -> Process:
    (what,) = values
    if what == "fail":
        raise RuntimeFailure("no such luck")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    started = launch(child[1], sibling=True)
    return Process(started.pid, 0, -1, -1, (str(os.getpid()), what))


def end(starter: Starter, process: Process) -> int:
    poll = select.poll()
    poll.register(process.pidfd, select.POLLIN)
    assert poll.poll(SECONDS)
    return starter.reap(process)


def stay(starter: Starter, output: int) -> None:
    starter.begin(lambda: launch(output, sibling=True), serve)
    assert end(starter, starter.begun()) == 0


def test_a_worker_that_stays_starts_what_is_sent_to_it(starter: Starter, output: tuple[int, int]) -> None:
    stay(starter, output[1])
    os.read(output[0], 4096)
    workers = set()
    for name in ("a", "b"):
        started = starter.send((name,), (output[1],) * 3)
        assert started is not None
        assert end(starter, started) == 0
        worker, what = started.warnings
        workers.add(worker)
        assert what == name
        assert os.read(output[0], 4096).startswith(b"a line of output\n")
    assert len(workers) == 1
    assert str(os.getpid()) not in workers


def test_without_a_worker_that_stays_nothing_is_sent(starter: Starter, output: tuple[int, int]) -> None:
    assert starter.send(("a",), (output[1],) * 3) is None
    stay(starter, output[1])
    starter.dismiss()
    assert starter.send(("a",), (output[1],) * 3) is None


def test_what_fails_is_told_and_the_worker_stays(starter: Starter, output: tuple[int, int]) -> None:
    stay(starter, output[1])
    with pytest.raises(StartError, match="no such luck"):
        starter.send(("fail",), (output[1],) * 3)
    started = starter.send(("a",), (output[1],) * 3)
    assert started is not None
    assert end(starter, started) == 0


def test_a_worker_that_dies_at_work_is_told_and_one_that_was_killed_before_is_done_without(
    starter: Starter, output: tuple[int, int]
) -> None:
    stay(starter, output[1])
    with pytest.raises(StartError, match="ended early"):
        starter.send(("die",), (output[1],) * 3)
    assert starter.send(("a",), (output[1],) * 3) is None
    stay(starter, output[1])
    started = starter.send(("a",), (output[1],) * 3)
    assert started is not None
    os.kill(int(started.warnings[0]), signal.SIGKILL)
    assert end(starter, started) == 0
    os.waitid(os.P_PID, int(started.warnings[0]), os.WEXITED | os.WNOWAIT)
    assert starter.send(("a",), (output[1],) * 3) is None


def test_a_first_start_that_fails_leaves_no_worker(starter: Starter, output: tuple[int, int]) -> None:
    def fail() -> Process:
        raise RuntimeFailure("no cgroup")

    starter.begin(fail, serve)
    with pytest.raises(StartError, match="no cgroup"):
        starter.begun()
    assert starter.send(("a",), (output[1],) * 3) is None


def test_what_cannot_launch_siblings_does_not_stay(starter: Starter, output: tuple[int, int]) -> None:
    starter.begin(lambda: launch(output[1], sibling=False), None)
    assert end(starter, starter.begun()) == 0
    assert starter.send(("a",), (output[1],) * 3) is None
