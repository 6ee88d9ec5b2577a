"""State files and process identities."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import state
from runtime.pidfds import open_process
from runtime.recovery import end_process
from runtime.state import ContainerState, Identity, SandboxState


def test_states_survive_the_disk(tmp_path: Path) -> None:
    me = state.identify(os.getpid())
    container = ContainerState("RUNNING", me, 1.5, None, None, "", "", 0)
    sandbox = SandboxState(me, None, 2.5, None, None, "gone")
    for value, parse in ((container, state.container_state_from), (sandbox, state.sandbox_state_from)):
        state.write_json(str(tmp_path / "state.json"), state.plain(value))
        assert parse(state.read_json(str(tmp_path / "state.json"))) == value


def test_missing_file_is_a_created_container(tmp_path: Path) -> None:
    assert state.container_state_from(state.read_json(str(tmp_path / "none"))) == ContainerState()


def test_failed_write_leaves_the_old_state(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    state.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        state.write_json(path, {"a": object()})
    assert state.read_json(path) == {"a": 1}


@pytest.mark.parametrize("text", ["", '{"a": 1}0}', "[]"])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"Could not read state {file}: .*not "):
        state.read_json(str(file))


def test_state_is_private(tmp_path: Path) -> None:
    state.write_json(str(tmp_path / "s"), {})
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_process_is_the_same_only_with_its_start_time_and_boot() -> None:
    me = state.identify(os.getpid())
    assert me.alive()
    assert not Identity(me.pid, me.start + 1, me.boot).alive()
    assert not Identity(me.pid, me.start, "other").alive()
    assert not Identity(2**22 + 1, 1, me.boot).alive()


def test_zombie_is_not_alive() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    identity = state.identify(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert not identity.alive()
    os.waitpid(child, 0)


def test_the_number_of_a_thread_is_no_process(a_thread: int) -> None:
    """An ended process's number may be a thread's by now; pidfd_open(2) says ENOENT, or EINVAL before."""
    assert open_process(a_thread) is None
    end_process(Identity(a_thread, 1, state.boot_id()))


@pytest.fixture
def a_thread() -> Iterator[int]:
    """The number of a thread of ours that is not the first."""
    numbers: queue.Queue[int] = queue.Queue()
    done = threading.Event()

    def live() -> None:
        numbers.put(threading.get_native_id())
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    yield numbers.get()
    done.set()
    thread.join()
