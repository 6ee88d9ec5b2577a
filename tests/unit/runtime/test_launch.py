"""A launch with a recording kernel: whatever fails, nothing stays open and the error says what was being
done."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.join import CgroupJoin
from runtime.errors import ExecutableError, LaunchError
from runtime.fake import FakeKernel
from runtime.launch import launch
from runtime.operations import Rootfs, container_plan, exec_plan, sandbox_plan
from runtime.plan import Context, Plan
from runtime.process import ConnectStdio, Execute
from runtime.spec import parse, parse_process

_found = importlib.util.spec_from_file_location("example_spec", Path(__file__).parent / "example_spec.py")
assert _found and _found.loader
example = importlib.util.module_from_spec(_found)
_found.loader.exec_module(example)

STDIO = (10, 11, 12)
CGROUP = CgroupJoin("/cg2/c", ("/cg1/c/tasks",), (("/cg1/c/cpu.shares", "2"),))


def container(**process: Any) -> Plan:
    rootfs = Rootfs(("/layers/a",), "/c/upper", "/c/work")
    return container_plan(parse(example.container(**process)), rootfs=rootfs, join={}, cgroup=CGROUP)


def every_plan() -> list[Plan]:
    spec = parse(example.container())
    process = parse_process({"args": ["ls"], "cwd": "/", "env": ["PATH=/bin"]})
    return [
        container(),
        sandbox_plan(spec, cgroup=CGROUP),
        exec_plan(spec, process, init_pid=42, cgroup=CGROUP, init_start_time=4711),
    ]


def test_the_containers_null_is_opened_by_what_was_looked_at() -> None:
    """Not by its path once more: the container may have put a link there, to what its starter has open."""
    kernel, context = FakeKernel(), Context((0, 0, 0), False)
    context.host_proc = kernel.open("/proc", 0)
    null = kernel.open("/dev/null", 0)
    context.stdio = (null, 11, null)
    kernel.open_fds[11] = "log"
    ConnectStdio(True).run(kernel, context)
    (looked_at,) = (fd for fd, path in kernel.open_fds.items() if path == "/dev/null" and fd != null)
    opened = [step.arguments[:2] for step, _ in context.steps if step.call == "openat"]
    assert opened == [(context.host_proc, f"self/fd/{looked_at}")] * 2
    assert looked_at in context.opened


@pytest.mark.parametrize("index", [0, 1, 2], ids=["container", "sandbox", "exec"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_failure_at_any_request_leaves_nothing_open(index: int, terminal: bool) -> None:
    plan = every_plan()[index]
    stdio = (-1, -1, -1) if terminal and index != 1 else STDIO
    good = FakeKernel()
    process = launch(good, plan, stdio, terminal=terminal)
    left = {"pidfd"} | ({good.open_fds[process.console]} if process.console >= 0 else set())
    assert set(good.open_fds.values()) == left
    spawn = good.names().index("spawn")
    for number in range(spawn + 1):
        kernel = FakeKernel(fail_at=number)
        with pytest.raises(LaunchError) as caught:
            launch(kernel, plan, stdio, terminal=terminal)
        assert kernel.open_fds == {}, f"{good.calls[number]} left descriptors open"
        assert kernel.spawned == 0
        assert str(caught.value).startswith(("Could not ", "exec: "))


def test_a_failed_step_of_the_child_is_named_by_its_operation() -> None:
    plan = container()
    recorded = FakeKernel()
    launch(recorded, plan, STDIO)
    for number, step in enumerate(recorded.steps):
        with pytest.raises(LaunchError) as caught:
            launch(FakeKernel(fail_step=number), plan, STDIO)
        if step.call == "setsid":
            assert caught.value.operation == "start a session"
        if step.call == "execve":
            assert isinstance(caught.value, ExecutableError)


def test_late_limits_are_written_after_the_start() -> None:
    kernel = FakeKernel()
    launch(kernel, container(), STDIO)
    assert kernel.names().index("spawn") < kernel.calls.index(("write", ("/cg1/c/cpu.shares", b"2")))


def test_a_missing_late_limit_is_a_warning() -> None:
    process = launch(FakeKernel(missing=["/cg1/c/cpu.shares"]), container(), STDIO)
    assert process.warnings == ("Could not set /cg1/c/cpu.shares to 2: ENOENT",)


def test_a_missing_program_is_worded_as_runc_words_it() -> None:
    with pytest.raises(ExecutableError) as caught:
        launch(FakeKernel(missing=["/bin/sh"]), container(), STDIO)
    assert str(caught.value) == 'exec: "sh": executable file not found in $PATH'


def test_a_path_is_taken_as_it_is() -> None:
    kernel = FakeKernel()
    launch(kernel, container(args=["./run", "x"]), STDIO)
    assert kernel.steps[-1].arguments == ("./run", ("./run", "x"), ("PATH=/bin",))
    assert Execute(("./run",), ()).describe() == 'execute "./run"'


def test_the_child_starts_with_its_cgroup_and_ends_with_execve() -> None:
    kernel = FakeKernel()
    launch(kernel, container(), STDIO)
    calls = [step.call for step in kernel.steps]
    assert calls[-1] == "execve" and calls[-2] == "seccomp"
    assert calls.index("unshare") > max(
        at for at, s in enumerate(kernel.steps) if s.arguments[1:] == (b"0", 1)
    )
    assert calls.index("setresuid") < calls.index("capset") < calls.index("seccomp")
    assert ("spawn", (len(calls), "/cg2/c", True)) in kernel.calls


def test_everything_below_proc_is_left_to_the_child() -> None:
    """A procfs shows its mounter's PID namespace, so only the child can mount it."""
    kernel = FakeKernel()
    launch(kernel, container(), STDIO)
    assert ("fsopen", ("proc",)) not in kernel.calls
    covered = [step.arguments[3] for step in kernel.steps if step.call == "move_mount"]
    assert covered == ["", "bus", "sys", "acpi", "kcore", "keys"]


@pytest.mark.parametrize("path", ["/proc", "/proc/self/fd/7", "/proc/../proc/self/cwd"])
def test_a_working_directory_in_proc_is_refused(path: str) -> None:
    """E02, CVE-2024-21626."""
    with pytest.raises(LaunchError, match="working directory"):
        launch(FakeKernel(), container(cwd=path), STDIO)


@pytest.mark.parametrize("path", ["/proc/self/attr", "/proc/sys/kernel", "/proc/1/environ"])
def test_a_volume_over_proc_is_refused(path: str) -> None:
    """E05, CVE-2019-16884."""
    spec = example.container()
    spec["mounts"].append({"destination": path, "type": "bind", "source": "/x", "options": ["bind"]})
    plan = container_plan(parse(spec), rootfs=Rootfs(("/l",), "/u", "/w"), join={}, cgroup=None)
    with pytest.raises(LaunchError, match="cover"):
        launch(FakeKernel(), plan, STDIO)


def test_a_recycled_pid_is_noticed() -> None:
    """E19."""
    spec = parse(example.container())
    process = parse_process({"args": ["ls"], "cwd": "/"})
    plan = exec_plan(spec, process, init_pid=42, cgroup=None, init_start_time=1)
    with pytest.raises(LaunchError, match="given to another"):
        launch(FakeKernel(), plan, STDIO)
