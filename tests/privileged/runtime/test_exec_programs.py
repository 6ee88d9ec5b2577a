"""An exec that is run by a program is the process that an executed one is, or it is none."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import LaunchError
from runtime.machine import ENTRY_WORDS, TOLERATE
from runtime.program import entry_offset, load
from tests.privileged.runtime.entered import Entered
from tests.privileged.runtime_service.harness import wait_for

pytestmark = pytest.mark.privileged

UNKNOWN_CALL = 0xFFFF
# All that a process may look at in itself; what differs from one to the next is taken out by `text_of`.
LOOK = """
echo "$0/$1/$2"; id; pwd; hostname; env
cat /proc/self/status /proc/self/limits /proc/self/oom_score_adj /proc/self/cgroup /proc/self/personality
cat /proc/self/attr/current /proc/self/sessionid
for n in /proc/self/ns/*; do readlink $n; done
cat /proc/self/stat | cut -d" " -f7,8,18,19,40,41
ls /proc/self/fd; readlink /proc/self/fd/0 /proc/self/cwd /proc/self/root
umask; echo box 2>&1 >/proc/sys/kernel/hostname; mknod /tmp/null c 1 3 2>&1; cat /proc/1/comm
true
"""
VOLATILE = re.compile(r"^(Pid|Tgid|NSpid|NStgid|NSpgid|NSsid|PPid|Vm|Rss|.*ctxt_switches|SigQ)")
SPECS: dict[str, dict[str, Any]] = {
    "plain": {},
    "user": {
        "process": {
            "user": {"uid": 5, "gid": 6, "umask": 0o27, "additionalGids": [7, 8]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
                        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096}],
            "oomScoreAdj": 500,
            "cwd": "/tmp/made",
            "env": ["PATH=/nothing:/bin", "A=b c", "LONG=" + "x" * 5000],
        }
    },
    "privileged": {
        "process": {"noNewPrivileges": False},
        "linux": {"seccomp": None, "maskedPaths": [], "readonlyPaths": [], "resources": {}},
    },
    "ambient": {
        "process": {
            "user": {"uid": 9, "gid": 9},
            "capabilities": {
                kind: ["CAP_NET_BIND_SERVICE", "CAP_KILL"]
                for kind in ("bounding", "effective", "permitted", "inheritable", "ambient")
            },
        }
    },
    "host's": {"linux": {"namespaces": [{"type": "mount"}]}, "hostname": ""},
    "scheduled": {
        "process": {
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        },
        "linux": {"personality": {"domain": "LINUX32"}},
    },
    "read-only": {"readonly": True},
}  # fmt: skip


def text_of(output: str | None) -> list[str]:
    assert output is not None
    return [line for line in output.splitlines() if not VOLATILE.match(line)]


def seen() -> tuple[Any, ...]:
    """What we have, once no thread is left that has executed a plan: children are a thread's."""
    wait_for(lambda: len(os.listdir("/proc/self/task")) == threading.active_count(), 60)
    return (
        sorted(os.listdir("/proc/self/fd")),
        Path("/proc/self/mounts").read_text(),
        Path("/proc/self/maps").read_text().count(".program"),
        Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
        os.getcwd(),
        [os.readlink(f"/proc/self/ns/{name}") for name in sorted(os.listdir("/proc/self/ns"))],
        os.umask(0o22),
    )


@pytest.fixture
def entered(box: Any) -> Iterator[Entered]:
    yield Entered(box, SPECS["user"])


@pytest.mark.parametrize("kind", SPECS)
def test_it_is_the_same_process(box: Any, kind: str) -> None:
    one = Entered(box, SPECS[kind])
    argv = ["sh", "-c", LOOK, "zero", "one word", "zwei Wörter"]
    assert one.compile(["sh"])
    before = seen()
    for _ in range(2):
        assert text_of(one.by_program(argv)) == text_of(one.executed(argv))
    assert seen() == before
    assert "zero/one word/zwei Wörter" in text_of(one.by_program(argv))


def test_it_is_in_the_cgroup_it_was_given(entered: Entered) -> None:
    assert entered.compile(["cat"])
    base = entered.running.cgroup.path
    for name in ("exec-1", "exec-2"):
        cgroup = entered.box.driver.create_bare(f"{base}/{name}")
        entered.join = cgroup.join()
        text = entered.by_program(["cat", "/proc/self/cgroup"])
        assert text is not None and text == entered.executed(["cat", "/proc/self/cgroup"])
        assert f"0::/{name}" in text.splitlines()  # of the container's cgroup namespace


def test_many_leave_nothing(entered: Entered) -> None:
    assert entered.compile(["true"])
    entered.by_program(["true"])
    before = seen()
    for number in range(300):
        assert entered.by_program(["true", str(number)]) == ""
    assert seen() == before


def test_a_failure_at_an_entry_leaves_nothing(entered: Entered) -> None:
    path = entered.compile(["true"])
    whole = Path(path).read_bytes()
    with open(path, "rb") as file:
        program = load(file.fileno())
    assert program is not None
    numbers = [
        struct.unpack_from("=q", whole, program.place.offset + entry_offset(at))[0]
        for at in range(program.place.size // (ENTRY_WORDS * 8) - 1)
    ]
    known = entered.box.kernel._numbers
    last = numbers.index(known["exit_group"])
    assert known["setns"] in numbers[: numbers.index(known["clone3"])]
    before = seen()
    for entry in range(last):
        broken = bytearray(whole)
        offset = program.place.offset + entry_offset(entry)
        struct.pack_into("=q", broken, offset, UNKNOWN_CALL)
        Path(path).write_bytes(broken)
        started = entered.by_program(["true"])
        assert (started is None) == (not broken[offset + 56] & TOLERATE), f"entry {entry}"
        assert os.path.exists(path) == (started is not None)
        assert seen() == before, f"entry {entry} left something"


@pytest.mark.parametrize("change", ["gone", "not executable", "found earlier", "a folder", "no interpreter"])
def test_another_program_than_foreseen_is_not_started(entered: Entered, change: str) -> None:
    root = Path(f"/proc/{entered.running.pid}/root")
    tool = root / "bin/tool"
    tool.write_text("#!/bin/sh\necho tool\n")
    tool.chmod(0o755)
    assert entered.compile(["tool"])
    assert entered.by_program(["tool"]) == "tool\n"
    if change == "not executable":
        tool.chmod(0o644)
    elif change == "found earlier":
        (root / "nothing").mkdir()
        (root / "nothing/tool").write_text("#!/bin/sh\necho other\n")
        (root / "nothing/tool").chmod(0o755)
    elif change == "no interpreter":
        tool.write_text("#!/bin/none\n")
    else:
        tool.unlink()
        if change == "a folder":
            tool.mkdir()
    assert entered.by_program(["tool"]) is None
    if change == "found earlier":
        assert entered.executed(["tool"]) == "other\n"
    else:
        with pytest.raises(LaunchError):
            entered.executed(["tool"])


def test_the_container_itself_is_joined_or_nothing(entered: Entered) -> None:
    """By its pidfd: not a process that got its number."""
    assert entered.compile(["true"])
    other = entered.box.start("echo up; exec sleep 60")
    assert entered.by_program(["true"]) == ""
    entered.running.cgroup.kill()
    os.waitid(os.P_PIDFD, entered.running.process.pidfd, os.WEXITED)
    assert entered.by_program(["true"]) is None
    assert entered.compile(["true"]) == ""
    other.read_until("up")


def test_what_needs_thought_is_not_compiled(entered: Entered) -> None:
    assert not entered.compile(["no-such-program"])
    assert not entered.compile(["true"], env=["PATH=bin"])
    assert not entered.compile(["true"], cwd="/not/there")
    assert not entered.compile(["true"], execCPUAffinity={"initial": "0"})
    assert entered.compile(["false"])
