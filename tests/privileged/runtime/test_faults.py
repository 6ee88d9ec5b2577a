"""A launch that fails at any request to the real kernel leaves nothing behind."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import LaunchError
from runtime.linux import LinuxKernel

pytestmark = pytest.mark.privileged

PASSED_ON = {"close", "fstat", "filesystem", "start_time", "getcwd", "capabilities", "umask"}


class Failing:
    """The real kernel, until request number `at`."""

    def __init__(self, at: int | None) -> None:
        self._kernel = LinuxKernel()
        self._at = at
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._kernel, name)
        if name in PASSED_ON:
            return real

        def guarded(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self._at is not None and self.count > self._at:
                raise OSError(errno.EIO, f"{name} was told to fail")
            return real(*arguments, **options)

        return guarded


def seen() -> tuple[Any, ...]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return (
        sorted(os.listdir("/proc/self/fd")),
        Path("/proc/self/mounts").read_text(),
        children.read_text() if children.exists() else "",
        os.getcwd(),
        len(os.listdir("/proc/self/task")),
    )


def settled(before: tuple[Any, ...]) -> None:
    for _ in range(1000):
        if seen() == before:
            return
        time.sleep(0.002)
    assert seen() == before


def rested() -> tuple[Any, ...]:
    """What is seen once the thread of the last launch has ended, which may take longer than its container."""
    for _ in range(1000):
        if len(os.listdir("/proc/self/task")) == 1:
            break
        time.sleep(0.002)
    return seen()


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_is_left_whatever_fails(box: Any, terminal: bool) -> None:
    whole = Failing(None)
    box.start("true", kernel=whole, terminal=terminal).wait()
    assert whole.count > 80
    before = rested()
    for number in range(whole.count):
        kernel = Failing(number)
        try:
            running = box.start("true", kernel=kernel, terminal=terminal)
        except LaunchError:
            settled(before)
        else:
            # Only what comes after the spawn may fail without failing the launch.
            assert running.process.warnings or number == whole.count - 1
            running.wait()
            running.close()
            box._running.remove(running)
            settled(before)


def test_a_step_of_the_child_that_fails_leaves_no_child(box: Any) -> None:
    before = seen()
    spec = box.spec("true")
    spec["linux"]["seccomp"]["syscalls"] = [{"names": ["execve"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]
    del spec["linux"]["seccomp"]["defaultErrnoRet"]
    spec["linux"]["seccomp"]["defaultAction"] = "SCMP_ACT_ALLOW"
    with pytest.raises(LaunchError, match="permission denied"):
        box.start("true", spec=spec)
    settled(before)


def test_the_starter_is_unchanged(box: Any) -> None:
    """Namespaces, credentials, limits, signals and umask of the starting process stay as they are."""
    # Not SigQ: it counts the queued signals of all of root's processes.
    fields = ("Uid", "Cap", "Seccomp:", "NoNewPrivs", "SigI", "SigB", "SigC", "Umask", "NSpid")

    def own() -> list[str]:
        lines = Path("/proc/thread-self/status").read_text().splitlines()
        spaces = [
            os.readlink(f"/proc/thread-self/ns/{name}")
            for name in ("mnt", "pid", "net", "uts", "ipc", "cgroup")
        ]
        return (
            [line for line in lines if line.startswith(fields)]
            + spaces
            + [Path("/proc/self/limits").read_text()]
        )

    before = own()
    limits = [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 10}]
    box.run("true", process={"user": {"uid": 5, "gid": 5}, "rlimits": limits, "umask": 0o77})
    assert own() == before
