"""Hundreds of execs at once, some of whose clients vanish or whose commands overstay: nothing is left."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import ExecTimeout
from runtime.streams import RESIZE, STDIN, STDOUT
from tests.privileged.runtime_service.harness import Node, cgroups_made, read_all, wait_for

pytestmark = pytest.mark.privileged

CLIENTS, ROUNDS = 8, 8
PATIENCE = 60
# Orphans of an exec become children of the container's first process, which must be one that reaps.
REAPER = ["sh", "-c", "sleep 1000 & while :; do wait; done"]
OVERSTAYING = "trap '' TERM HUP; (sleep 4001; sleep 4002) & setsid sleep 4003 & sleep 4004"


class Process:
    """What /proc says of one: descriptors, threads, and children, zombies among them."""

    def __init__(self, pid: int) -> None:
        self.descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        self.threads = len(os.listdir(f"/proc/{pid}/task"))
        children = [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
        self.children = set(children)

    def as_before(self, before: Process) -> bool:
        return (
            self.descriptors <= before.descriptors
            and self.threads <= before.threads
            and self.children == before.children
        )


def shim_of(node: Node, sandbox_id: str) -> int:
    path = node.folder / "run" / "sandboxes" / sandbox_id / "state.json"
    return int(json.loads(path.read_text())["shim"]["pid"])


def exec_cgroups() -> list[str]:
    return [folder for folder in cgroups_made() if "/exec-" in folder]


def processes(node: Node, container: str) -> bytes:
    return node.service.exec_sync(container, ["ps", "-o", "stat,args"], PATIENCE).stdout


def obedient(node: Node, container: str) -> None:
    result = node.service.exec_sync(container, ["sh", "-c", "echo out; echo err >&2; exit 4"], 60)
    assert (result.exit_code, result.stdout, result.stderr) == (4, b"out\n", b"err\n")


def with_input(node: Node, container: str) -> None:
    stream = node.service.exec(container, ["cat"], tty=False, stdin=True, stdout=True, stderr=True)
    stream.send(STDIN, b"words")
    stream.close_channel(STDIN)
    output, last = read_all(stream)
    assert (output, json.loads(last)) == ({STDOUT: b"words"}, {"exitCode": 0})


def on_a_terminal(node: Node, container: str) -> None:
    stream = node.service.exec(container, ["sh"], tty=True, stdin=True, stdout=True, stderr=False)
    stream.send(RESIZE, b'{"Width": 91, "Height": 37}')
    stream.send(STDIN, b"stty size; exit 6\n")
    output, last = read_all(stream)
    assert b"37 91" in output[STDOUT]
    assert json.loads(last) == {"exitCode": 6}


def overstaying(node: Node, container: str) -> None:
    with pytest.raises(ExecTimeout):
        node.service.exec_sync(container, ["sh", "-c", OVERSTAYING], 0.2)


def vanishing(node: Node, container: str) -> None:
    script = f"echo go; {OVERSTAYING}"
    argv = ["sh", "-c", script]
    stream = node.service.exec(container, argv, tty=False, stdin=True, stdout=True, stderr=True)
    stream.close()


def deaf(node: Node, container: str) -> None:
    """Asks for more output than any buffer holds, reads a little, and goes."""
    argv = ["head", "-c", "8000000", "/dev/zero"]
    stream = node.service.exec(container, argv, tty=False, stdin=False, stdout=True, stderr=True)
    assert stream.receive() is not None
    stream.close()


def detached(node: Node, container: str) -> None:
    """Nothing is attached: only the exit code comes back."""
    argv = ["sh", "-c", "exit 3"]
    stream = node.service.exec(container, argv, tty=False, stdin=False, stdout=False, stderr=False)
    assert read_all(stream) == ({}, b'{"exitCode": 3}')


KINDS: list[Callable[[Node, str], None]] = [
    obedient, with_input, on_a_terminal, overstaying, vanishing, deaf, detached
]  # fmt: skip


def test_hundreds_of_execs_at_once_leave_nothing(node: Node) -> None:
    sandbox = node.sandbox()
    container = node.run(sandbox, REAPER)
    obedient(node, container)
    shim = shim_of(node, sandbox.id)
    wait_for(lambda: not exec_cgroups())
    wait_for(lambda: len(Process(shim).children) == 2)  # pause and the container; its worker has ended
    before, own = Process(shim), Process(os.getpid())
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            for _ in range(ROUNDS):
                for kind in KINDS[number % len(KINDS) :] + KINDS[: number % len(KINDS)]:
                    kind(node, container)
        except BaseException as error:
            failures.append(error)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert failures == []
    wait_for(lambda: b"sleep 400" not in processes(node, container), PATIENCE)
    wait_for(lambda: not exec_cgroups(), PATIENCE)
    wait_for(lambda: Process(shim).as_before(before), PATIENCE)
    wait_for(lambda: Process(os.getpid()).as_before(own), PATIENCE)
    wait_for(lambda: b"Z " not in processes(node, container), PATIENCE)
    assert node.service.container(container).state == "RUNNING"
