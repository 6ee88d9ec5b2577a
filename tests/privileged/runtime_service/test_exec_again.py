"""Execs that come again are run by programs: through the service they are as the first ones are."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.errors import ExecTimeout, StartError
from runtime.streams import STDIN, STDOUT
from tests.privileged.runtime_service.harness import Node, read_all, wait_for

pytestmark = pytest.mark.privileged

REAPER = ["sh", "-c", "sleep 1000 & while :; do wait; done"]
OVERSTAYING = "trap '' TERM HUP; (sleep 5001; sleep 5002) & setsid sleep 5003 & echo go; sleep 5004"


class Warm:
    """A container with programs for what its tests execute."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.sandbox = node.sandbox()
        self.container = node.run(self.sandbox, REAPER, user={"uid": 1000, "gid": 1000})
        self.folder = node.folder / "containers" / self.container
        for argv in (["sh", "-c", "true"], ["cat", "/dev/null"], ["sleep", "0"]):
            for _ in range(3):
                self.run(*argv)
        self.made = self.programs()
        assert len(self.made) == 3

    def run(self, *argv: str, seconds: float = 60) -> tuple[int, bytes, bytes]:
        result = self.node.service.exec_sync(self.container, argv, seconds)
        return result.exit_code, result.stdout, result.stderr

    @contextmanager
    def other(self) -> Iterator[str]:
        """One more container in the pod, of root's."""
        made = self.node.run(self.sandbox, REAPER)
        yield made
        self.node.service.stop_container(made, 0)
        self.node.service.remove_container(made)

    def programs(self) -> list[Path]:
        """One that has stopped is removed: those that are still there have run."""
        return sorted(self.folder.glob("exec-*.program"))

    def running(self, name: str) -> bool:
        return name.encode() in self.run("ps", "-o", "args")[1]


@pytest.fixture(scope="module")
def container(shared_node: Node) -> Warm:
    return Warm(shared_node)


@pytest.fixture
def warm(container: Warm) -> Iterator[Warm]:
    yield container
    assert set(container.made) <= set(container.programs())


def test_output_code_and_arguments_are_its_own(warm: Warm) -> None:
    for code in (0, 4):
        script = f"echo $0 $1; id -u; echo err >&2; exit {code}"
        output = f"a b {code}\n1000\n".encode()
        assert warm.run("sh", "-c", script, "a b", f"{code}") == (code, output, b"err\n")


def test_a_long_argument_is_whole_and_one_that_is_too_long_refused(warm: Warm) -> None:
    assert warm.run("sh", "-c", "echo ${#0}", "x" * 120_000) == (0, b"120000\n", b"")
    with pytest.raises(StartError, match=r"[Aa]rgument list too long"):
        warm.run("echo", "x" * 140_000)


def test_an_argument_is_not_cut_at_a_nul(warm: Warm) -> None:
    with warm.other() as container:
        for _ in range(3):
            warm.node.service.exec_sync(container, ["true"], 60)
        with pytest.raises(StartError, match="must be a string without NUL"):
            warm.node.service.exec_sync(container, ["true", "a\0b"], 60)


def test_the_pipes_are_its_users(warm: Warm) -> None:
    script = "echo out >/proc/self/fd/1; echo err >/proc/self/fd/2"
    assert warm.run("sh", "-c", script) == (0, b"out\n", b"err\n")


def test_input_reaches_it_and_ends(warm: Warm) -> None:
    service = warm.node.service
    stream = service.exec(warm.container, ["cat"], tty=False, stdin=True, stdout=True, stderr=True)
    stream.send(STDIN, b"words")
    stream.close_channel(STDIN)
    output, last = read_all(stream)
    assert (output, json.loads(last)) == ({STDOUT: b"words"}, {"exitCode": 0})


def test_a_signal_that_ends_it_is_told(warm: Warm) -> None:
    assert warm.run("sh", "-c", "kill -9 $$")[0] == 137


def test_a_timeout_and_a_client_that_leaves_end_all_it_started(warm: Warm) -> None:
    service = warm.node.service
    started = time.monotonic()
    with pytest.raises(ExecTimeout, match="timed out"):
        warm.run("sh", "-c", OVERSTAYING, seconds=0.3)
    assert time.monotonic() - started < 60
    assert not warm.running("sleep 500")
    argv = ["sh", "-c", OVERSTAYING]
    stream = service.exec(warm.container, argv, tty=False, stdin=False, stdout=True, stderr=True)
    assert stream.receive() == (STDOUT, b"go\n")
    stream.close()
    wait_for(lambda: not warm.running("sleep 500"), 60)
    assert warm.running("sleep 1000")


def test_what_it_leaves_running_stays(warm: Warm) -> None:
    code, pid, _ = warm.run("sh", "-c", "sleep 6001 & echo $!")
    assert code == 0 and warm.running("sleep 6001")
    warm.run("sh", "-c", f"kill -9 {pid.decode()}")
    wait_for(lambda: not warm.running("sleep 6001"), 60)


def test_a_terminal_is_none_of_its_business(warm: Warm) -> None:
    service = warm.node.service
    stream = service.exec(warm.container, ["sh"], tty=True, stdin=True, stdout=True, stderr=False)
    stream.send(STDIN, b"tty; exit 6\n")
    output, last = read_all(stream)
    assert b"/dev/pts/" in output[STDOUT] and json.loads(last) == {"exitCode": 6}


def test_a_command_that_goes_and_comes_back(warm: Warm) -> None:
    """Its error is that of the first exec, and so is its success."""
    service = warm.node.service
    with warm.other() as container:

        def change(script: str) -> None:
            assert service.exec_sync(container, ["sh", "-c", script], 60).exit_code == 0

        def tool() -> bytes:
            return service.exec_sync(container, ["tool"], 60).stdout

        for word in ("one", "two"):
            change(f"printf '#!/bin/sh\\necho {word}\\n' >/bin/tool; busybox chmod 755 /bin/tool")
            assert [tool() for _ in range(4)] == [f"{word}\n".encode()] * 4
            change("busybox rm /bin/tool")
            for _ in range(2):
                with pytest.raises(StartError, match=r'exec: "tool": executable file not found in \$PATH'):
                    tool()
        change("echo >/bin/tool; busybox chmod 644 /bin/tool")
        with pytest.raises(StartError, match='exec: "tool": permission denied'):
            tool()


def test_an_ended_container_is_not_entered(warm: Warm) -> None:
    service = warm.node.service
    with warm.other() as container:
        for _ in range(3):
            service.exec_sync(container, ["true"], 60)
        service.stop_container(container, 0)
        with pytest.raises(StartError, match="not running"):
            service.exec_sync(container, ["true"], 60)
