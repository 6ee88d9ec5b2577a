"""What we compiled by hand, judged by the kernel: the seccomp program, the child's table, the pause
program."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from runtime import pause
from runtime.capabilities import DEFAULT
from runtime.kernel import Filter, SpawnError, Step
from runtime.linux import LinuxKernel
from runtime.machine import Machine, this_machine
from runtime.seccomp.filter import compiled
from runtime.seccomp.profile import runtime_default
from runtime.seccomp.syscalls import numbers

pytestmark = pytest.mark.privileged


def kernel_with_all_calls() -> LinuxKernel:
    machine = this_machine()
    return LinuxKernel(
        Machine(
            machine.name,
            machine.elf_machine,
            machine.audit_arch,
            numbers(machine.name),
            machine.spawn,
            machine.page,
            machine.mode_offset,
            machine.rdev_offset,
        )
    )


def answers(calls: list[tuple[str, tuple[int, ...]]], profile: dict[str, Any]) -> list[int]:
    """What the kernel answers to system calls made under a profile, by a child without privileges."""
    program, flags = compiled(profile)
    kernel = kernel_with_all_calls()
    steps = [
        Step("prctl", (38, 1, 0, 0, 0)),
        Step("seccomp", (1, flags, Filter(program))),
        *(Step(name, arguments, tolerate=True) for name, arguments in calls),
        Step("execve", ("/usr/bin/busybox", ("true",), ())),
    ]
    spawned = kernel.spawn(steps)
    os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    os.close(spawned.pidfd)
    return list(spawned.results[2:-1])


def test_the_kernel_allows_what_the_profile_allows() -> None:
    calls = [
        ("getpid", ()),
        ("umask", (0o22,)),
        ("personality", (0xFFFFFFFF,)),
        ("sched_yield", ()),
        ("getuid", ()),
    ]
    found = answers(calls, runtime_default(DEFAULT, this_machine().name))
    assert all(answer >= 0 for answer in found)


def test_an_argument_is_compared_in_64_bits_by_the_kernel() -> None:
    argument = {"index": 0, "value": 5 << 32, "op": "SCMP_CMP_GT"}
    rule = {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99, "args": [argument]}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    calls = [("umask", (value,)) for value in (0, 5 << 32, (5 << 32) + 1, 6 << 32, 2**63)]
    assert [answer == -99 for answer in answers(calls, profile)] == [False, False, True, True, True]


def test_results_are_passed_to_the_next_step() -> None:
    kernel = LinuxKernel()
    reader, writer = os.pipe()
    steps = [
        Step("openat", (-100, "/dev/null", os.O_RDWR, 0), pass_result=True),
        Step("dup3", (0, 900, 0)),
        Step("setns", (-1, 0), tolerate=True),
        Step("dup3", (writer, 1, 0)),
        Step("execve", ("/usr/bin/busybox", ("readlink", "/proc/self/fd/900"), ())),
    ]
    spawned = kernel.spawn(steps)
    os.close(writer)
    assert os.read(reader, 100) == b"/dev/null\n"
    assert spawned.results[2] == -errno.EBADF
    os.close(reader)
    os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
    os.close(spawned.pidfd)


def test_a_child_that_fails_is_reaped() -> None:
    kernel = LinuxKernel()
    with pytest.raises(SpawnError) as caught:
        kernel.spawn(
            [Step("setsid"), Step("setns", (-1, 0)), Step("execve", ("/usr/bin/true", ("true",), ()))]
        )
    assert (caught.value.index, caught.value.errno) == (1, errno.EBADF)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_pause_ends_on_sigterm_and_sigint(box: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        running = box.sandbox()
        os.kill(running.pid, number)
        assert running.wait()[0] == 0


def test_pause_holds_nothing_and_shows_nothing(box: Any) -> None:
    running = box.sandbox()
    status = Path(f"/proc/{running.pid}/status").read_text()
    assert "CapBnd:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
    assert "Uid:\t65535" in status
    assert os.listdir(f"/proc/{running.pid}/root") == []
    proportional = Path(f"/proc/{running.pid}/smaps_rollup").read_text().split("\nPss:")[1].split()[0]
    assert int(proportional) <= 16
    assert len(pause.image()) < 400


def test_containers_join_the_sandbox(box: Any) -> None:
    """S14: by namespace inodes."""
    running = box.sandbox(sysctl={"net.ipv4.ip_unprivileged_port_start": "0"})
    names = {"network": "net", "ipc": "ipc", "uts": "uts"}
    join = {kind: f"/proc/{running.pid}/ns/{name}" for kind, name in names.items()}
    script = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; hostname"
    _, text = box.start(script, join=join).wait()
    *inodes, hostname = text.split()
    assert inodes[:3] == [os.readlink(path) for path in join.values()]
    assert inodes[3] != os.readlink(f"/proc/{running.pid}/ns/pid")
    assert hostname == "pod"
    assert set(inodes).isdisjoint(
        os.readlink(f"/proc/self/ns/{n}") for n in ("net", "ipc", "uts", "pid", "mnt")
    )
