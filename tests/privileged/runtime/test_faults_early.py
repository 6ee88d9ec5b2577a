"""As test_faults.py, for a child born early: hooks, seccomp listener, scheduling. Whatever fails, nothing is
left: no child that waits, no descriptor, no mount."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_faults import Failing, rested, settled

from runtime.early import WaitForStart
from runtime.errors import HookError, LaunchError, SeccompError
from runtime.launch import launch
from runtime.operations import Rootfs, container_plan, exec_plan, hook_plan
from runtime.seccomp.filter import Listener
from runtime.seccomp.listener import hand_over
from runtime.spec import parse, parse_process

pytestmark = pytest.mark.privileged


def everything(box: Any) -> dict[str, Any]:
    """Every operation that test_faults.py does without."""
    spec: dict[str, Any] = box.spec("true", readonly=True, domainname="example.com")
    spec["process"] |= {
        "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        "execCPUAffinity": {"initial": "0", "final": "0"},
    }
    spec["linux"] |= {
        "personality": {"domain": "LINUX"},
        "rootfsPropagation": "private",
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/nowhere",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        },
    }
    spec["mounts"] = [
        *spec["mounts"],
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["sync", "size=1m"]},
        {"destination": "/tmp", "type": "none", "source": "none", "options": ["remount", "ro", "size=2m"]},
    ]
    spec["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}
    return spec


class Start:
    """Launches in one cgroup, waiting in a FIFO."""

    def __init__(self, box: Any) -> None:
        self.box = box
        self.spec = parse(everything(box))
        self.heard: list[str] = []
        path = str(box.folder / "fifo")
        os.mkfifo(path)
        self.fifo = os.open(path, os.O_PATH)
        self.cgroup = box.driver.create(f"{box.base}/early", {})
        self._null = os.open("/dev/null", os.O_RDWR)

    def attend(self, what: str, pid: int, number: int) -> None:
        self.heard.append(what)

    def launch(self, kernel: Any, attend: Any = None) -> Any:
        """A created container's process."""
        self.box._count += 1
        work = str(self.box.folder / f"work{self.box._count}")
        rootfs = Rootfs((str(self.box.root),), str(self.box.upper()), work)
        plan = container_plan(
            self.spec, rootfs=rootfs, join={}, cgroup=self.cgroup.join(), wait_on=WaitForStart(self.fifo)
        )
        stdio = (self._null, self._null, self._null)
        return launch(kernel, plan, stdio, attend=attend or self.attend)

    def more(self, kernel: Any, plan: Any) -> Any:
        return launch(kernel, plan, (self._null, self._null, self._null), attend=self.attend)

    def end(self, process: Any) -> None:
        # Not by cgroup.kill: a kernel since 6.14 ends whatever is cloned into that cgroup from then on.
        os.kill(process.pid, 9)
        os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED)
        os.close(process.pidfd)

    def close(self) -> None:
        os.close(self.fifo)
        os.close(self._null)


@pytest.fixture
def start(box: Any) -> Iterator[Start]:
    made = Start(box)
    yield made
    made.close()


def through_all_faults(start: Start, act: Any, after: Any) -> int:
    """Runs `act(kernel)` with a fault at each request in turn; returns how many there were."""
    whole = Failing(None)
    after(act(whole))
    before = rested()
    for number in range(whole.count):
        try:
            result = act(Failing(number))
        except LaunchError:
            pass
        else:
            assert number >= whole.count - 2, f"request {number} of {whole.count} failed unnoticed"
            after(result)
        assert start.cgroup.pids() == []
        settled(before)
    return whole.count


def test_nothing_is_left_whatever_fails_in_create(start: Start) -> None:
    assert through_all_faults(start, start.launch, start.end) > 100
    assert start.heard[:2] == ["hooks", "listener"]


@pytest.mark.parametrize("what", ["hooks", "listener"])
@pytest.mark.parametrize("error", [HookError, SeccompError, OSError, KeyboardInterrupt])
def test_nothing_is_left_when_somebody_outside_fails(
    start: Start, what: str, error: type[BaseException]
) -> None:
    start.end(start.launch(start.box.kernel))
    before = rested()

    def attend(asked: str, _pid: int, _number: int) -> None:
        if asked == what:
            raise error("told to fail")

    expected = LaunchError if error is OSError else error
    with pytest.raises(expected, match="told to fail"):
        start.launch(start.box.kernel, attend)
    assert start.cgroup.pids() == []
    settled(before)


def test_a_child_that_is_killed_meanwhile_is_noticed(start: Start) -> None:
    start.end(start.launch(start.box.kernel))
    before = rested()

    def attend(_what: str, pid: int, _number: int) -> None:
        os.kill(pid, 9)

    with pytest.raises(LaunchError, match="killed before it was ready"):
        start.launch(start.box.kernel, attend)
    settled(before)


def test_a_late_step_that_fails_leaves_no_child(start: Start) -> None:
    """After the hooks, in the last batch."""
    start.end(start.launch(start.box.kernel))
    before = rested()
    config = everything(start.box)
    config["process"]["scheduler"] = {"policy": "SCHED_ISO"}
    start.spec = parse(config)
    with pytest.raises(LaunchError, match="Could not set the scheduling policy SCHED_ISO: EINVAL"):
        start.launch(start.box.kernel)
    assert start.cgroup.pids() == []
    settled(before)


def test_nothing_is_left_whatever_fails_in_hooks_inside_and_execs(start: Start) -> None:
    process = start.launch(start.box.kernel)
    config = {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"]}
    affine = parse_process({**config, "execCPUAffinity": {"initial": "0"}})
    plain = parse({**everything(start.box), "hooks": {}, "linux": {"namespaces": [{"type": "mount"}]}})
    hook = start.spec.hooks["createRuntime"][0]
    plans = (
        hook_plan(start.spec, hook, init_pid=process.pid, cgroup=start.cgroup.join()),
        exec_plan(plain, affine, init_pid=process.pid, cgroup=start.cgroup.join()),
    )

    def after(more: Any) -> None:
        os.waitid(os.P_PIDFD, more.pidfd, os.WEXITED)
        os.close(more.pidfd)

    try:
        for plan in plans:
            whole = Failing(None)
            after(start.more(whole, plan))
            before = rested()
            for number in range(whole.count):
                with pytest.raises(LaunchError):
                    after(start.more(Failing(number), plan))
                assert start.cgroup.pids() == [process.pid]
                settled(before)
    finally:
        start.end(process)


def test_the_listener_is_the_childs_own(start: Start, tmp_path: Path) -> None:
    """What is handed over answers for the filter: its ioctl knows the child to be alive or gone."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(tmp_path / "agent"))
    server.listen(1)
    got: list[int] = []

    def agent() -> None:
        channel, _ = server.accept()
        with channel:
            got.extend(socket.recv_fds(channel, 4096, 1)[1])

    thread = threading.Thread(target=agent)
    thread.start()

    def attend(what: str, pid: int, number: int) -> None:
        if what == "listener":
            hand_over(Listener(str(tmp_path / "agent")), {"ociVersion": "1.2.0"}, pid, number)

    process = start.launch(start.box.kernel, attend)
    thread.join(10)
    server.close()
    try:
        identity = ctypes.c_uint64(7)
        with pytest.raises(FileNotFoundError):  # no such notification: but it is a listener
            fcntl.ioctl(got[0], 0x40082102, identity)
    finally:
        os.close(got[0])
        start.end(process)
