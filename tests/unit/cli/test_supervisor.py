from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kubelet_py.cli.processes import ProcessIdentity
from kubelet_py.cli.supervisor import AlreadyRunning, ChildSpec, Supervisor, read_state, restart_delay


@pytest.mark.parametrize(
    ("previous", "lived", "expected"),
    [(0.0, 60.0, 0.0), (0.0, 0.5, 0.1), (0.1, 0.5, 0.2), (8.0, 0.1, 10.0), (10.0, 11.0, 0.0)],
)
def test_restart_delay_doubles_only_for_short_lives(previous: float, lived: float, expected: float) -> None:
    assert restart_delay(previous, lived) == expected


def test_second_supervisor_of_one_node_is_refused(tmp_path: Path) -> None:
    first = Supervisor(tmp_path, [])
    first.lock()
    with pytest.raises(AlreadyRunning, match="A node already runs here"):
        Supervisor(tmp_path, []).lock()


def test_no_state_file_means_no_node(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None


def test_leftover_children_of_a_killed_supervisor_are_ended(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = ProcessIdentity.of(child.pid)
    assert identity is not None
    state = {"supervisor": [1, 0], "children": {"agent": [identity.pid, identity.start]}, "restarts": {}}
    (tmp_path / "supervisor.json").write_text(json.dumps(state))
    try:
        Supervisor(tmp_path, []).end_leftovers()
        assert child.wait(1) == -15
    finally:
        child.kill()


def test_a_recycled_pid_is_not_stopped() -> None:
    mine = ProcessIdentity.of(os.getpid())
    assert mine is not None
    other = ProcessIdentity(mine.pid, mine.start + 1)
    assert not other.alive()
    assert other.stop(0.0)


def test_a_pid_that_is_a_threads_by_now_is_not_stopped() -> None:
    numbers: queue.Queue[int] = queue.Queue()
    done = threading.Event()
    thread = threading.Thread(target=lambda: (numbers.put(threading.get_native_id()), done.wait()))
    thread.start()
    try:
        gone = ProcessIdentity(numbers.get(), 1)
        assert not gone.send(signal.SIGTERM)
        assert gone.stop(0.0)
    finally:
        done.set()
        thread.join()


def test_a_dead_child_is_started_again_and_all_end_on_sigterm(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from kubelet_py.cli.supervisor import ChildSpec, Supervisor
root = Path(sys.argv[1])
argv = ["sh", "-c", f"echo $$ >> {root}/pids; exec sleep 60"]
supervisor = Supervisor(root, [ChildSpec("agent", argv, root / "log")])
supervisor.lock()
supervisor.run()
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        first = _nth_pid(tmp_path, 0)
        os.kill(first, 9)
        second = _nth_pid(tmp_path, 1)
        process.terminate()
        assert process.wait(5) == 0
        assert ProcessIdentity.of(second) is None
        assert read_state(tmp_path) is None
    finally:
        process.kill()


def test_a_child_that_others_do_not_need_starts_after_them_and_counts_no_restart(tmp_path: Path) -> None:
    program = """
import logging, sys
from pathlib import Path
from kubelet_py.cli.supervisor import ChildSpec, Supervisor
logging.basicConfig(level=logging.INFO, filename=sys.argv[1] + "/supervisor.log")
root, argv = Path(sys.argv[1]), ["sleep", "60"]
late = ChildSpec("proxy", argv, root / "log", after=0.3)
supervisor = Supervisor(root, [late, ChildSpec("agent", argv, root / "log")])
supervisor.lock()
supervisor.run()
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while (state := read_state(tmp_path)) is None or len(state.children) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert state.restarts == {"proxy": 0, "agent": 0}
        told = (tmp_path / "supervisor.log").read_text()
        assert told.index("name=agent") < told.index("name=proxy")
        process.terminate()
        assert process.wait(30) == 0
        assert [identity.alive() for identity in state.children.values()] == [False, False]
    finally:
        process.kill()


def _nth_pid(folder: Path, number: int) -> int:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
        state = read_state(folder)
        agent = state.children.get("agent") if state else None
        if agent is not None and len(lines) > number and agent.pid == int(lines[number]):
            return agent.pid
        time.sleep(0.01)
    raise AssertionError("the child was not started in time")


def test_child_spec_is_plain_data(tmp_path: Path) -> None:
    assert ChildSpec("proxy", ["true"], tmp_path).name == "proxy"
