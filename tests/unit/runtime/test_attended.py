"""A process that waits behind its seccomp filter: it goes on, or nothing of it is left."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.attended import launch_attended
from runtime.errors import SeccompError
from runtime.launch import Process
from runtime.linux import LinuxKernel
from runtime.seccomp.filter import Listener
from runtime.seccomp.listener import hand_over


class Launcher:
    """Launches a shell script in place of a container's process; `$0` is the FIFO."""

    def __init__(self, fifo: Path) -> None:
        self.fifo = fifo
        self.children: list[subprocess.Popen[bytes]] = []
        self.process: Process | None = None

    def __call__(self, script: str, seconds: float) -> Process:
        def launch(_plan: Any, _attend: Any) -> Process:
            child = subprocess.Popen(["sh", "-c", script, str(self.fifo)])
            self.children.append(child)
            self.process = Process(child.pid, 1, os.pidfd_open(child.pid))
            return self.process

        no_plan: Any = lambda _operation: None  # noqa: E731
        return launch_attended(str(self.fifo), {}, {}, no_plan, launch, seconds)

    def close(self) -> None:
        for child in self.children:
            child.kill()  # does nothing to one that was reaped
            child.wait()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    made = Launcher(tmp_path / "fifo")
    yield made
    made.close()


def test_a_process_that_says_so_goes_on(launcher: Launcher) -> None:
    process = launcher('printf 1 > "$0"; exec sleep 600', 600)
    try:
        assert os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        assert not launcher.fifo.exists()
    finally:
        os.close(process.pidfd)


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ("exec sleep 600", 0.2),  # never comes
        ('exec 3> "$0"; exec sleep 600', 0.2),  # comes, and says nothing: write may wait for an agent
        (': > "$0"; exec sleep 600', 600),  # comes and goes without a word
        ('printf x > "$0"; exec sleep 600', 600),
        ("exit 3", 600),  # its end is noticed, not waited out
    ],
)
def test_one_that_does_not_is_ended_and_told_of(launcher: Launcher, script: str, seconds: float) -> None:
    with pytest.raises(SeccompError, match="does not go on behind its seccomp filter"):
        launcher(script, seconds)
    assert launcher.process is not None and not launcher.fifo.exists()
    with pytest.raises(ChildProcessError):  # it was reaped
        os.waitid(os.P_PID, launcher.process.pid, os.WEXITED | os.WNOHANG)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(launcher.process.pidfd)


def test_an_agent_that_takes_no_connection_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(path)
        server.listen(0)
        other.connect(path)  # fills the queue
        reader, writer = os.pipe()
        try:
            with pytest.raises(SeccompError, match=r"EAGAIN \(is the agent running"):
                hand_over(Listener(path), {"ociVersion": "1.2.0"}, os.getpid(), reader, patience=0.05)
        finally:
            os.close(reader)
            os.close(writer)


class Table:
    """A child's table that stays as it is."""

    def __init__(self, result: int, failed: bool) -> None:
        self._result, self._failed = result, failed

    def result(self, _index: int) -> int:
        return self._result

    def failed(self) -> bool:
        return self._failed


def test_a_child_killed_before_it_has_its_listener_is_noticed() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        pidfd = os.pidfd_open(child.pid)
        child.kill()
        try:
            tables: list[Any] = [Table(0, False), Table(7, False), Table(0, True)]
            with pytest.raises(OSError, match="killed before it was ready"):
                LinuxKernel()._result_of(tables[0], 0, pidfd)
            assert [LinuxKernel()._result_of(table, 0, pidfd) for table in tables[1:]] == [7, 0]
        finally:
            os.close(pidfd)
