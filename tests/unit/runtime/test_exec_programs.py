"""What an exec is compiled to, and when: without a kernel that runs it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from runtime import clibrary
from runtime.cgroups.join import CgroupJoin
from runtime.exec_ahead import ExecRecorder, compile_exec
from runtime.exec_program import ARGUMENTS, CGROUP, INIT, MOST_NAMES, MOST_TRIES, ExecPrograms, _block
from runtime.fake import FakeKernel
from runtime.kernel import Region
from runtime.namespaces import FLAGS, JoinProcess, flags_of
from runtime.operations import exec_plan
from runtime.plan import Context, Plan
from runtime.program import Entry, Holed, Program, load, save
from runtime.spec import parse, parse_process
from tests.unit.runtime.example_spec import container

CGROUP_FOLDER = "/sys/fs/cgroup/pod/exec-1"
PATH = ["PATH=/sbin:/bin"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A running container's, as we see it."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_text("")
    (root / "bin/tool").chmod(0o755)
    return root


def plan_for(argv: list[str], **process: Any) -> Plan:
    """In a container that is there: its first process is we."""
    spec = container()
    described = {**spec["process"], "cwd": "/", "env": PATH, "args": argv, **process}
    cgroup = CgroupJoin(CGROUP_FOLDER)
    return exec_plan(parse(spec), parse_process(described), init_pid=os.getpid(), cgroup=cgroup)


def recorded(root: Path, argv: list[str]) -> ExecRecorder:
    recorder = ExecRecorder(FakeKernel(), str(root), CGROUP_FOLDER)
    context = Context((5, 6, 7), False)
    for operation in plan_for(argv):
        operation.run(recorder, context)
    return recorder


def calls(recorder: ExecRecorder, name: str) -> list[Entry]:
    return [entry for entry in recorder.entries if entry.call == name]


def test_what_differs_from_run_to_run_is_given(root: Path) -> None:
    recorder = recorded(root, ["tool", "secret"])
    joins = [entry.arguments for entry in calls(recorder, "setns")]
    kinds = flags_of(("mount", "uts", "ipc", "network", "pid"))
    assert joins == [(INIT, kinds), (INIT, FLAGS["cgroup"])]
    assert [type(fd) for fd, _ in joins] == [type(INIT)] * 2
    [clone] = calls(recorder, "clone3")
    assert isinstance(clone.arguments[0], Holed) and clone.arguments[0].slot is CGROUP
    [execute] = calls(recorder, "execve")
    assert execute.arguments[:2] == ("/bin/tool", ARGUMENTS)
    assert not any("secret" in repr(entry.arguments) for entry in recorder.entries)


def test_the_executable_is_looked_for_each_time(root: Path) -> None:
    """Where it was not, it must not be now; where it was, it must be a program."""
    looks = calls(recorded(root, ["tool"]), "newfstatat")
    assert [(look.arguments[1], look.expected) for look in looks] == [("/sbin/tool", -2), ("/bin/tool", 0)]


def test_nothing_of_our_own_root_is_looked_at(root: Path) -> None:
    """A link of the container's is followed in the container."""
    (root / "bin/tool").unlink()
    (root / "bin/tool").symlink_to("/etc/passwd")
    place = str(root.parent / "program")
    assert not compile_exec(FakeKernel(), plan_for(["tool"]), place, root=str(root), cgroup="", owner=0)


@pytest.mark.parametrize(
    "process",
    [{"args": ["none"]}, {"cwd": "/none"}, {"env": ["PATH=bin"]}, {"execCPUAffinity": {"initial": "0"}}],
)
def test_what_cannot_be_foreseen_has_no_program(root: Path, process: dict[str, Any]) -> None:
    place = root.parent / "program"
    argv = process.pop("args", ["tool"])
    plan = plan_for(argv, **process)
    assert not compile_exec(FakeKernel(), plan, str(place), root=str(root), cgroup=CGROUP_FOLDER, owner=0)
    assert not place.exists()


def test_the_given_values_have_their_places_in_the_program(root: Path) -> None:
    place = str(root.parent / "program")
    plan = plan_for(["tool"])
    assert compile_exec(FakeKernel(), plan, place, root=str(root), cgroup=CGROUP_FOLDER, owner=7)
    with open(place, "rb") as file:
        program = load(file.fileno())
    assert program is not None and program.owner == 7
    assert {number for number, _ in program.given} == {0, 1, 2, INIT.stream, CGROUP.stream, ARGUMENTS.stream}
    assert all(offset % 8 == 0 for _, offset in program.given)


def test_a_program_that_cannot_be_written_is_none(root: Path) -> None:
    place = str(root.parent / "no-such-folder/program")
    plan = plan_for(["tool"])
    assert not compile_exec(FakeKernel(), plan, place, root=str(root), cgroup=CGROUP_FOLDER, owner=0)


def test_a_process_that_is_another_now_is_not_joined(root: Path) -> None:
    recorder = ExecRecorder(FakeKernel(), str(root), CGROUP_FOLDER)
    with pytest.raises(ProcessLookupError):
        JoinProcess(os.getpid(), ("mount",), -1).run(recorder, Context((5, 6, 7), False))


# -- when


class Performing:
    """A kernel that runs programs, or stops them, in place of a real one."""

    def __init__(self) -> None:
        self.pid = 0
        self.given: dict[int, int] = {}

    def perform(self, file: int, place: Region, given: Any, wanted: Any) -> tuple[int, ...]:
        self.given = dict(given)
        return (0 if self.pid else 1, self.pid)


class Shim:
    """The shim's part, with programs that are written at once."""

    def __init__(self, folder: Path) -> None:
        self.kernel = Performing()
        self.folder = folder
        self.programs = ExecPrograms(str(folder))
        self.executed = 0
        self.stdio = tuple(os.open("/dev/null", os.O_RDWR) for _ in range(3))

    def exec(self, *argv: str) -> str:
        """How it was started."""
        if self.programs.has(argv):
            started = self.programs.start(
                self.kernel,  # type: ignore[arg-type]
                argv,
                self.stdio,  # type: ignore[arg-type]
                init=33,
                cgroup=str(self.folder),
                give=lambda uid: None,
            )
            if started is not None:
                os.close(started.pidfd)
                return "program"
        place = self.programs.place_for(argv)
        if place:
            given = tuple((number, 8 * number) for number in range(6))
            save(Program(Region(0, 4096, 4096), given, 8, (), (), ()), b"", place)
        return "compiled" if place else "executed"


@pytest.fixture
def shim(tmp_path: Path) -> Any:
    made = Shim(tmp_path)
    yield made
    for descriptor in made.stdio:
        os.close(descriptor)


def test_a_name_that_comes_again_is_compiled_for_all_arguments(shim: Shim) -> None:
    shim.kernel.pid = os.getpid()
    ways = [shim.exec("sh", str(number)) for number in range(4)]
    assert ways == ["executed", "compiled", "program", "program"]
    assert shim.exec("cat") == "executed"
    assert shim.exec() == "executed"
    assert os.listdir(shim.folder) == ["exec-1.program"]
    # The streams, the first process's pidfd, and no more than one descriptor that was opened for the run.
    assert [shim.kernel.given[8 * number] for number in range(4)] == [*shim.stdio, 33]


def test_a_program_that_stops_is_made_anew_but_not_for_ever(shim: Shim) -> None:
    ways = [shim.exec("sh") for _ in range(MOST_TRIES + 4)]
    assert ways == ["executed", *["compiled"] * MOST_TRIES, *["executed"] * 3]
    assert os.listdir(shim.folder) == []


def test_one_that_works_again_has_all_its_tries_again(shim: Shim) -> None:
    for _ in range(3 * MOST_TRIES):
        shim.kernel.pid = 0
        while shim.exec("sh") != "compiled":
            assert os.listdir(shim.folder) == []
        shim.kernel.pid = os.getpid()
        assert shim.exec("sh") == "program"


def test_names_and_their_files_are_few(shim: Shim) -> None:
    for number in range(3 * MOST_NAMES):
        assert [shim.exec(f"tool{number}") for _ in range(2)] == ["executed", "compiled"]
    assert len(os.listdir(shim.folder)) == MOST_NAMES
    assert shim.exec("tool0") == "executed"


def test_a_cgroup_that_is_gone_starts_nothing(shim: Shim) -> None:
    shim.kernel.pid = os.getpid()
    assert [shim.exec("sh") for _ in range(3)] == ["executed", "compiled", "program"]
    shim.folder = shim.folder / "gone"
    before = len(os.listdir("/proc/self/fd"))
    assert shim.exec("sh") == "compiled"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("argv", [["a"], ["sh", "", "-c"], ["x", "ä", "\udcff"], ["y" * 5000, *"abc"]])
def test_arguments_are_laid_out_as_execve_takes_them(argv: list[str]) -> None:
    memory = _block(argv)
    base, raw = clibrary.address(memory), memory.raw
    pointers = struct.unpack_from(f"={len(argv) + 1}Q", raw)
    assert pointers[-1] == 0
    texts = [raw[pointer - base :].split(b"\0", 1)[0] for pointer in pointers[:-1]]
    assert texts == [os.fsencode(text) for text in argv]
