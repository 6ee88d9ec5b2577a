"""Exec and attach on the real kernel."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from runtime.errors import ExecTimeout, StartError
from runtime.streams import RESIZE, STDERR, STDIN, STDOUT, Stream
from tests.privileged.runtime_service.harness import Node, read_all, shims, wait_for

pytestmark = pytest.mark.privileged

SLEEP = ["sleep", "1000"]


def open_exec(
    node: Node, container: str, argv: list[str], *, tty: bool = False, stdin: bool = False
) -> Stream:
    return node.service.exec(container, argv, tty=tty, stdin=stdin, stdout=True, stderr=not tty)


def shim_descriptors(node: Node) -> int:
    [folder] = (node.folder / "run" / "sandboxes").iterdir()
    shim = json.loads((folder / "state.json").read_text())["shim"]["pid"]
    return len(os.listdir(f"/proc/{shim}/fd"))


def test_exec_sync_returns_output_and_code(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    result = node.service.exec_sync(container, ["sh", "-c", "echo out; echo err >&2; exit 4"], 10)
    assert (result.exit_code, result.stdout, result.stderr) == (4, b"out\n", b"err\n")


def test_exec_sync_of_much_output(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    result = node.service.exec_sync(container, ["seq", "1", "200000"], 30)
    assert result.stdout == b"".join(b"%d\n" % n for n in range(1, 200001))


def test_exec_timeout_kills_all_it_started(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEP)
    script = "trap '' TERM HUP; (sleep 2001; sleep 2002) & setsid sleep 2003 & sleep 2004"
    started = time.monotonic()
    with pytest.raises(ExecTimeout, match="timed out"):
        node.service.exec_sync(container, ["sh", "-c", script], 0.3)
    assert time.monotonic() - started < 60  # not the sleeps' time
    running = node.service.exec_sync(container, ["ps", "-o", "args"], 10).stdout
    assert b"sleep 1000" in running
    assert b"sleep 200" not in running


def test_exec_of_an_unknown_program_names_it(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    with pytest.raises(StartError, match=r'exec: "nope": executable file not found in \$PATH'):
        node.service.exec_sync(container, ["nope"], 10)


def test_exec_in_an_ended_container_is_refused(node: Node) -> None:
    container = node.run(node.sandbox(), ["true"])
    node.ended(container)
    with pytest.raises(StartError, match="not running"):
        node.service.exec_sync(container, ["true"], 10)


def test_exec_stdin_reaches_the_process_and_ends(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    stream = open_exec(node, container, ["cat"], stdin=True)
    stream.send(STDIN, b"hello ")
    stream.send(STDIN, b"world")
    stream.close_channel(STDIN)
    output, last = read_all(stream)
    assert output == {STDOUT: b"hello world"}
    assert json.loads(last) == {"exitCode": 0}


def test_exec_without_stdin_reads_nothing(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    output, last = read_all(open_exec(node, container, ["cat"]))
    assert (output, json.loads(last)) == ({}, {"exitCode": 0})


def test_exec_with_a_terminal_has_a_name_and_a_size(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    stream = open_exec(node, container, ["sh"], tty=True, stdin=True)
    stream.send(RESIZE, b'{"Width": 91, "Height": 37}')
    stream.send(STDIN, b"tty; stty size; exit 6\n")
    output, last = read_all(stream)
    assert b"/dev/pts/" in output[STDOUT]
    assert b"37 91" in output[STDOUT]
    assert STDERR not in output
    assert json.loads(last) == {"exitCode": 6}


def test_interrupt_typed_into_a_terminal_reaches_the_process(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    stream = open_exec(node, container, ["sh", "-c", "echo go; exec sleep 3000"], tty=True, stdin=True)
    assert stream.receive() == (STDOUT, b"go\r\n")
    stream.send(STDIN, b"\x03")
    _, last = read_all(stream)
    assert json.loads(last) == {"exitCode": 130}


def test_client_that_leaves_takes_its_exec_along(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    stream = open_exec(node, container, ["sh", "-c", "echo go; sleep 3001"])
    assert stream.receive() == (STDOUT, b"go\n")
    stream.close()
    wait_for(lambda: b"sleep 3001" not in node.service.exec_sync(container, ["ps", "-o", "args"], 10).stdout)


def test_background_process_outlives_an_exec_that_ends_by_itself(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    result = node.service.exec_sync(container, ["sh", "-c", "sleep 3002 & echo done"], 10)
    assert result.stdout == b"done\n"
    assert b"sleep 3002" in node.service.exec_sync(container, ["ps", "-o", "args"], 10).stdout


def test_what_execs_left_running_holds_up_no_later_exec(node: Node) -> None:
    """Each cgroup that is still in use was once waited for, two seconds at every exec's end."""
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEP)
    leave = ["sh", "-c", "sleep 3003 & echo $!"]
    left = [node.service.exec_sync(container, leave, 10).stdout.decode() for _ in range(5)]
    started = time.monotonic()
    assert node.service.exec_sync(container, ["true"], 10).exit_code == 0
    assert time.monotonic() - started < 8  # not five times two seconds
    node.service.exec_sync(container, ["sh", "-c", f"kill {' '.join(left)}".replace("\n", "")], 10)
    home = f"{sandbox.config.cgroup_parent}/{container}"

    def swept() -> bool:
        node.service.exec_sync(container, ["true"], 10)
        return not any(node.driver.exists(f"{home}/exec-{number}") for number in range(1, 8))

    wait_for(swept)


def test_cgroup_of_a_killed_exec_goes_without_another_exec(node: Node) -> None:
    """However long the kernel takes to empty it: a cgroup below stands for a process that is slow to end."""
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEP)
    stream = open_exec(node, container, ["sh", "-c", "echo go; sleep 3004"])
    assert stream.receive() == (STDOUT, b"go\n")
    home = f"{sandbox.config.cgroup_parent}/{container}/exec-1"
    slow = Path(f"{node.driver.unified}/{home}/slow")
    slow.mkdir()
    stream.close()
    wait_for(lambda: b"sleep 3004" not in node.service.exec_sync(container, ["ps", "-o", "args"], 10).stdout)
    time.sleep(0.6)
    slow.rmdir()
    wait_for(lambda: not node.driver.exists(home))


def test_slow_client_gets_every_byte(node: Node) -> None:
    container = node.run(node.sandbox(), SLEEP)
    stream = open_exec(node, container, ["head", "-c", "8000000", "/dev/zero"])
    time.sleep(0.3)
    output, last = read_all(stream)
    assert len(output[STDOUT]) == 8_000_000
    assert json.loads(last) == {"exitCode": 0}


def test_many_execs_leave_no_descriptor_zombie_or_cgroup(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEP)
    node.service.exec_sync(container, ["true"], 10)
    before = shim_descriptors(node)
    for _ in range(60):
        assert node.service.exec_sync(container, ["true"], 10).exit_code == 0
    # The first count may have seen the tail of the exec before it; what 60 execs leak is far above that.
    wait_for(lambda: shim_descriptors(node) <= before)
    assert not node.driver.exists(f"{sandbox.config.cgroup_parent}/{container}/exec-60")
    listed = node.service.exec_sync(container, ["ps", "-o", "stat,args"], 10).stdout
    assert b"Z" not in listed.replace(b"STAT", b"").replace(b"COMMAND", b"")


def test_shim_of_a_removed_pod_ends_at_once_after_execs(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, SLEEP)
    for _ in range(3):
        node.service.exec_sync(container, ["true"], 10)
    node.service.remove_pod_sandbox(sandbox.id)
    wait_for(lambda: not shims(node.folder))


def test_attached_clients_all_see_the_output_and_the_log_does_too(node: Node) -> None:
    container = node.run(node.sandbox(), ["sh", "-c", "read line; echo got $line"], stdin=True)
    views = [
        node.service.attach(container, tty=False, stdin=first, stdout=True, stderr=True)
        for first in (True, False)
    ]
    views[0].send(STDIN, b"this\n")
    for view in views:
        output, last = read_all(view)
        assert output == {STDOUT: b"got this\n"}
        assert json.loads(last) == {"exitCode": 0}
    node.ended(container)
    assert node.log(container) == b"got this\n"


def test_stdin_stays_open_across_attaches_unless_once(node: Node) -> None:
    container = node.run(node.sandbox(), ["cat"], stdin=True)
    for text in (b"one\n", b"two\n"):
        view = node.service.attach(container, tty=False, stdin=True, stdout=True, stderr=True)
        view.send(STDIN, text)
        assert view.receive() == (STDOUT, text)
        view.close_channel(STDIN)
        assert read_all(view)[1]
    assert node.service.container(container).state == "RUNNING"


def test_stdin_once_ends_with_its_first_client(node: Node) -> None:
    container = node.run(node.sandbox(), ["cat"], stdin=True, stdin_once=True)
    view = node.service.attach(container, tty=False, stdin=True, stdout=True, stderr=True)
    view.send(STDIN, b"last words\n")
    view.close_channel(STDIN)
    output, _ = read_all(view)
    assert output == {STDOUT: b"last words\n"}
    assert node.ended(container).exit_code == 0


def test_container_with_a_terminal_is_attached_resized_and_logged(node: Node) -> None:
    container = node.run(node.sandbox(), ["sh"], tty=True, stdin=True)
    view = node.service.attach(container, tty=True, stdin=True, stdout=True, stderr=False)
    view.send(RESIZE, b'{"Width": 83, "Height": 29}')
    view.send(STDIN, b"stty size; tty; exit 0\n")
    output, _ = read_all(view)
    assert b"29 83" in output[STDOUT]
    assert node.ended(container).exit_code == 0
    assert b"29 83" in node.log(container)
