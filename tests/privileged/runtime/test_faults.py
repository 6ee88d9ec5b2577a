"""A launch that fails at any request to the real kernel leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

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


class Seen(NamedTuple):
    """What a launch might leave in its starter: `held` is counted, `place` is compared."""

    held: Counter[str]
    place: tuple[str, str]


def descriptors() -> list[str]:
    """Each open descriptor with what it is of; not the one that lists them."""
    folder = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        numbers = [number for number in os.listdir(folder) if int(number) != folder]
    finally:
        os.close(folder)
    found = []
    for number in numbers:
        with contextlib.suppress(FileNotFoundError):  # closed since, by a thread of an earlier test
            found.append(f"descriptor {number} of {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def seen() -> Seen:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    pids = children.read_text().split() if children.exists() else []
    tasks = ["a thread"] * len(os.listdir("/proc/self/task"))
    return Seen(
        Counter(descriptors() + [f"child {pid}" for pid in pids] + tasks),
        (Path("/proc/self/mounts").read_text(), os.getcwd()),
    )


def settled(before: Seen) -> None:
    """Nothing is there that was not before. What has gone was another's: threads of older tests end late."""
    for _ in range(1000):
        now = seen()
        if not now.held - before.held and now.place == before.place:
            return
        time.sleep(0.01)
    now = seen()
    assert not now.held - before.held
    assert now.place == before.place


def rested() -> Seen:
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
    before = rested()
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
