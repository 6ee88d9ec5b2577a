"""A shim at rest gives back its pages, and is none the worse for it."""

from __future__ import annotations

import json
import mmap
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.forkserver_link import NAME
from runtime.pages import CODE, MADV_POPULATE_WRITE, PAGE
from tests.privileged.runtime_service.harness import Node, read_all, wait_for
from tests.privileged.runtime_service.resting_memory import SMALL_KB

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(platform.machine() not in CODE, reason="no machine code for this processor"),
]

LARGEST_PRIVATE_KB = 1024
LARGEST_QUIET_KB = 300
LARGEST_STACK_KB = 16
WARM_KB = 1500  # 900 without
TICKER = "trap 'exit 7' TERM; for i in 1 2 3 4; do echo $i; sleep 0.5; done; sleep 100 & wait"


def private(pid: int) -> int:
    """kB that the process has for itself."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def stack(pid: int) -> int:
    """kB of its stack that the process has for itself: no rest gives them back."""
    mapping = Path(f"/proc/{pid}/smaps").read_text().partition("[stack]")[2].partition("VmFlags")[0]
    return sum(int(line.split()[1]) for line in mapping.splitlines() if line.startswith("Private_"))


def shim_of(node: Node, sandbox_id: str) -> int:
    path = node.folder / "run" / "sandboxes" / sandbox_id / "state.json"
    return int(json.loads(path.read_text())["shim"]["pid"])


def test_resting_shim_has_less_than_a_megabyte_of_its_own(node: Node) -> None:
    sandbox = node.sandbox()
    node.run(sandbox, ["sleep", "100"])
    neighbour = node.sandbox()
    wait_for(lambda: private(shim_of(node, sandbox.id)) < LARGEST_PRIVATE_KB, 60)
    node.service.remove_pod_sandbox(neighbour.id)


def test_shim_that_is_quiet_for_longer_keeps_only_what_differs(node: Node) -> None:
    sandbox = node.sandbox()
    argv = ["sh", "-c", "trap 'echo bye; exit 7' TERM; while :; do sleep 1; done"]
    container = node.run(sandbox, argv)
    neighbour = node.sandbox()
    shim = shim_of(node, sandbox.id)
    wait_for(lambda: private(shim) < LARGEST_QUIET_KB, 60)
    assert 0 < stack(shim_of(node, neighbour.id)) <= LARGEST_STACK_KB  # a spare that had its memory ahead
    command = ["echo", "still here"]
    stream = node.service.exec(container, command, tty=False, stdin=False, stdout=True, stderr=True)
    got, last = read_all(stream)
    assert (got[1], json.loads(last)["exitCode"]) == (b"still here\n", 0)
    wait_for(lambda: private(shim) < LARGEST_QUIET_KB, 60)
    node.service.stop_container(container, 30)
    assert node.ended(container).exit_code == 7
    assert node.log(container) == b"bye\n"
    node.service.remove_pod_sandbox(neighbour.id)


def test_every_byte_is_the_same_after_a_rest() -> None:
    command = [sys.executable, "-m", "tests.privileged.runtime_service.resting_memory"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    sizes = [int(word) for word in ended.stdout.split()]
    assert (ended.returncode, ended.stderr, len(sizes)) == (0, "", 2)
    assert max(sizes) <= SMALL_KB


def test_memory_that_will_be_written_to_is_had_ahead() -> None:
    if not can_populate():
        pytest.skip("MADV_POPULATE_WRITE is missing: it came with Linux 5.14")
    command = [sys.executable, "-m", "tests.privileged.runtime_service.warmed_memory"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, "")
    ahead, usual = (int(word) for word in ended.stdout.split())
    assert usual >= 100 and 0 <= ahead < 20


def test_spare_shim_has_its_memory_when_nobody_has_waited_for_it(node: Node) -> None:
    if not can_populate():
        pytest.skip("MADV_POPULATE_WRITE is missing: it came with Linux 5.14")
    shim = shim_of(node, node.sandbox().id)
    (forkserver,) = (pid for pid in children(os.getpid()) if comm(pid) == NAME)

    def sizes() -> list[int]:
        return [private(pid) for pid in children(forkserver) - {shim}]

    wait_for(lambda: sizes() and min(sizes()) > WARM_KB, 60)


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= {int(word) for word in (task / "children").read_text().split()}
    return found


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def can_populate() -> bool:
    """Whether the kernel knows MADV_POPULATE_WRITE."""
    memory = mmap.mmap(-1, PAGE)
    try:
        memory.madvise(MADV_POPULATE_WRITE)
    except OSError:
        return False
    finally:
        memory.close()
    return True


def test_shim_goes_on_unharmed_after_many_rests(node: Node) -> None:
    sandbox = node.sandbox()
    wait_for(lambda: private(shim_of(node, sandbox.id)) < LARGEST_PRIVATE_KB, 60)  # no rests before that
    ticker = node.run(sandbox, ["sh", "-c", TICKER])
    for number in range(4):
        time.sleep(0.45)
        argv = ["echo", str(number)]
        stream = node.service.exec(ticker, argv, tty=False, stdin=False, stdout=True, stderr=True)
        got, last = read_all(stream)
        assert (got[1], json.loads(last)["exitCode"]) == (f"{number}\n".encode(), 0)
    wait_for(lambda: node.log(ticker) == b"1\n2\n3\n4\n")
    time.sleep(0.5)
    node.service.stop_container(ticker, 5)
    assert node.ended(ticker).exit_code == 7


def test_resting_shim_keeps_its_deadlines(node: Node) -> None:
    sandbox = node.sandbox()
    deaf = node.run(sandbox, ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"])
    wait_for(lambda: node.log(deaf) == b"up\n")
    begin = time.monotonic()
    node.service.stop_container(deaf, 1.5)
    assert 1.4 < time.monotonic() - begin < 15
    assert node.ended(deaf).exit_code == 137
