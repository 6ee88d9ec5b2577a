"""Who is killed for being stopped: children that have not become another program yet."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator

import pytest

from runtime.stopped import kill_stopped


@pytest.fixture
def stopped() -> Iterator[int]:
    """A child of ours that has not executed anything, and is stopped."""
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    yield pid
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def test_a_stopped_copy_of_us_is_killed(stopped: int) -> None:
    kill_stopped(os.getpid())
    assert os.waitstatus_to_exitcode(os.waitpid(stopped, 0)[1]) == -signal.SIGKILL


def test_another_program_may_be_stopped() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    try:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        kill_stopped(os.getpid())
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_look_for_which_no_descriptor_is_free_does_not_fail_the_start(stopped: int) -> None:
    """It would be started once more, beside the first one, which goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        kill_stopped(os.getpid(), 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.waitpid(stopped, os.WNOHANG) == (0, 0)
