"""What a container does to those who start it or enter it: checklist "Escapes", E01 to E03, also by ways that
the checklist does not name. Each test is the attack."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import LaunchError, RuntimeFailure
from runtime.linux import LinuxKernel
from runtime.process import ProbeExecutable
from tests.privileged.oci_callers.conftest import bundle, busybox_root, oci_binary
from tests.privileged.runtime.entered import Entered
from tests.privileged.runtime_service.harness import Node, shims

__all__ = ["bundle", "busybox_root", "oci_binary"]

pytestmark = pytest.mark.privileged

PR_GET_DUMPABLE = 3

# -- E01: the starter's own program -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["start", "exec"])
def test_E01_an_image_cannot_run_the_starters_own_program(box: Any, way: str) -> None:
    """E01, CVE-2019-5736: a program that is a link to /proc/self/exe would be our interpreter, run with a
    loader of the image's making (here busybox), which then has a descriptor to overwrite it by."""
    for folder in ("lib", "lib64"):
        (box.root / folder).mkdir()
        for name in ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"):
            shutil.copy("/usr/bin/busybox", box.root / folder / name)
    (box.root / "bin/ls").unlink()
    (box.root / "bin/ls").symlink_to("/proc/self/exe")
    script = ["/bin/ls", "-l", "/proc/self/exe"]
    with pytest.raises(LaunchError, match="symbolic links"):
        if way == "start":
            box.start(script).wait()
        else:
            running = box.start("echo up; exec sleep 60")
            running.read_until("up")
            box.exec(running, script).wait()
    assert box.run("readlink /proc/self/exe; readlink /proc/1/exe")[1].split() == ["/bin/busybox"] * 2


def test_E01_the_shims_program_cannot_be_written(node: Node) -> None:
    """E01, CVE-2019-5736: not even root of the host can through /proc/<pid>/exe: a read-only mount of it."""
    node.sandbox()
    for pid in (*shims(node.folder), node.service._forkserver._pid):
        program = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
        try:
            assert os.fstatvfs(program).f_flag & os.ST_RDONLY
            with pytest.raises(OSError):
                os.open(f"/proc/self/fd/{program}", os.O_WRONLY)
        finally:
            os.close(program)


def test_E01_a_compiled_exec_does_not_run_the_starters_own_program(box: Any) -> None:
    """E01, CVE-2019-5736: neither one that was such a link when it was compiled, nor one that becomes one."""
    entered = Entered(box, {})
    root = Path(f"/proc/{entered.running.pid}/root")
    argv = ["/bin/ls", "-l", "/proc/self/exe"]
    assert entered.compile(argv) and "/bin/busybox" in (entered.by_program(argv) or "")
    (root / "bin/ls").unlink()
    (root / "bin/ls").symlink_to("/proc/self/exe")
    assert entered.by_program(argv) is None
    assert not entered.compile(argv) or entered.by_program(argv) is None
    with pytest.raises(LaunchError, match="symbolic links"):
        entered.executed(argv)


@pytest.mark.parametrize("way", ["start", "exec"])
@pytest.mark.parametrize("chain", [False, True])
def test_E01_an_image_cannot_have_its_scripts_run_by_the_starters_own_program(
    box: Any, way: str, chain: bool
) -> None:
    """E01, CVE-2019-5736: no link is in the path of a script that begins with #!/proc/self/exe. busybox is
    the dynamic loader here, and would tell that it knows no program "exe"."""
    for folder in ("lib", "lib64"):
        (box.root / folder).mkdir()
        for name in ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"):
            shutil.copy("/usr/bin/busybox", box.root / folder / name)
    for name, interpreter in (("outer", "/bin/inner" if chain else "/proc/self/exe"), ("inner", "/bin/mine")):
        (box.root / "bin" / name).write_text(f"#! \t{interpreter} x\n")
        (box.root / "bin" / name).chmod(0o755)
    (box.root / "bin/mine").symlink_to("/proc/self/exe")
    with pytest.raises(LaunchError, match="symbolic links"):
        if way == "start":
            box.start(["outer"]).wait()
        else:
            running = box.start("echo up; exec sleep 60")
            running.read_until("up")
            box.exec(running, ["/bin/outer"]).wait()
    (box.root / "bin/inner").write_text("#!/bin/sh\necho a script\n")
    assert box.run(["inner"]) == (0, "a script\n")


POISON = """
with open("/poison/taken", "a") as file:
    file.write(__name__ + " ")
raise ImportError(__name__)
"""


@pytest.mark.parametrize("program", ["true", "/bin/nothing"])
def test_E01_nothing_is_imported_from_a_container(node: Node, tmp_path: Path, program: str) -> None:
    """E01, CVE-2019-14271: who has entered a container and loads a library or a module by its path loads the
    container's, as root of the host."""
    poison = tmp_path / "poison"
    poison.mkdir()
    for name in sys.stdlib_module_names:
        (poison / f"{name}.py").write_text(POISON)
    for name in ("encodings", "collections", "importlib", "json", "ctypes", "runtime"):
        (poison / f"{name}.py").unlink(missing_ok=True)
        (poison / name).mkdir()
        for module in ("__init__", "abc", "ascii", "idna", "latin_1", "util", "utf_8", "errors", "stdio"):
            (poison / name / f"{module}.py").write_text(POISON)
    places = {"/poison", os.path.dirname(os.__file__), str(Path(__file__).parents[2])}
    mounts = [
        {"destination": place, "type": "bind", "source": str(poison), "options": ["bind"]} for place in places
    ]
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sleep", "60"], mounts=mounts)
    assert os.listdir(f"/proc/{node.service.container(container).pid}/root/poison")
    for _ in range(4):  # by a worker, and compiled
        try:
            node.service.exec_sync(container, [program], timeout=10)
        except RuntimeFailure:
            continue
    with pytest.raises(RuntimeFailure):
        node.run(sandbox, ["/bin/nothing"], mounts=mounts)
    assert not (poison / "taken").exists()


def test_E01_a_hook_of_the_hosts_does_not_get_the_containers_environment(
    bundle: Any, tmp_path: Path
) -> None:
    """E01, CVE-2025-23266: LD_PRELOAD of an image, for a program that the host runs as root beside it."""
    notes = tmp_path / "notes"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"env > {notes}"]}

    def change(config: dict[str, Any]) -> None:
        config["process"]["env"] = ["PATH=/bin", "LD_PRELOAD=/proc/self/cwd/evil.so", "OF=the image"]
        config["hooks"] = {"createContainer": [hook]}

    bundle.change(change)
    done = bundle.run("echo $OF")
    assert done.stdout == "the image\n", done.stderr
    assert notes.exists() and "the image" not in notes.read_text() and "evil" not in notes.read_text()


# -- E02: descriptors ---------------------------------------------------------------------------------------


def test_E02_nothing_is_inherited(box: Any) -> None:
    """E02, CVE-2024-21626: no descriptor above 2, whoever opened it, inheritable or not."""
    leak = os.open("/", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        _, text = box.run("for f in /proc/self/fd/*; do echo $f; done")
    finally:
        os.close(leak)
    numbers = {line.rpartition("/")[2] for line in text.split()}
    assert (numbers <= {"0", "1", "2", "3"} and "3" not in numbers) or len(numbers) == 4
    _, text = box.run(["ls", "-l", "/proc/1/fd"])
    assert " -> /" not in text.replace("-> /dev/null", "").replace("-> /proc/1/fd", "")


@pytest.mark.parametrize("number", range(7, 12))
def test_E02_a_working_directory_behind_a_descriptor_is_refused(box: Any, number: int) -> None:
    """E02, CVE-2024-21626: also when the image has a symlink to it."""
    for path in (f"/proc/self/fd/{number}", "/tmp/link"):
        (box.root / "tmp/link").unlink(missing_ok=True)
        (box.root / "tmp/link").symlink_to(f"/proc/self/fd/{number}")
        try:
            running = box.start("readlink /proc/self/cwd", process={"cwd": path})
        except LaunchError:
            continue
        assert "unreachable" not in running.wait()[1]


def test_E02_an_exec_cannot_work_in_a_folder_of_the_host(box: Any) -> None:
    """E02, CVE-2024-21626: in a running container /proc is there, and so are our descriptors in it."""
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(LaunchError, match="working directory"):
            box.exec(running, "ls", cwd=f"/proc/self/fd/{leak}").wait()
    finally:
        os.close(leak)


def test_E02_a_compiled_exec_inherits_nothing_and_works_inside(box: Any) -> None:
    """E02, CVE-2024-21626: as one that is executed; the program was compiled when the leak was not there."""
    entered = Entered(box, {})
    assert entered.compile(["ls"])
    leak = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(leak, True)
    try:
        listed = (entered.by_program(["ls", "-l", "/proc/self/fd"]) or "").splitlines()
        cwd = {"cwd": f"/proc/self/fd/{leak}"}
        assert not entered.compile(["pwd"], **cwd) or entered.by_program(["pwd"]) is None
    finally:
        os.close(leak)
    assert [line.split()[-3] for line in listed if "->" in line] == ["0", "1", "2"]


SWAPPER = """cd /dev; busybox mv null real
while :; do
    for fd in 3 4 5 6 7 8 9; do
        busybox ln -s /proc/self/fd/$fd/sys/kernel/ostype evil
        busybox ln real next; busybox mv next null; busybox mv -f evil null
    done
done"""


def test_E02_a_null_device_that_becomes_a_link_is_not_followed(bundle: Any) -> None:
    """E02, CVE-2024-21626: who executes in a container has the host's /proc open, and opens the container's
    /dev/null for it. A link through the first instead of the second, put there in between, gave files of the
    host, open for writing."""
    bundle.start("sh", "-c", SWAPPER)
    said = set()
    for _ in range(40):
        done = bundle("exec", bundle.identity, "cat")
        said.add(done.stdout + done.stderr)
    assert said == {""}


@pytest.mark.parametrize("closed", [(0,), (1, 2), (0, 1, 2)])
def test_E02_what_a_caller_closes_is_no_descriptor_of_ours(bundle: Any, closed: tuple[int, ...]) -> None:
    """E02, CVE-2024-21626: what we open would get the number, and be the container's standard input: the
    host's /proc, whose sys/kernel/core_pattern can be written."""

    def close() -> None:
        for number in closed:
            os.close(number)

    def ran(*args: str) -> int:
        done = bundle(*args, capture_output=False, preexec_fn=close)
        assert isinstance(done.returncode, int)
        return done.returncode

    look = 'for n in 0 1 2; do a="$a|$(readlink /proc/$$/fd/$n)"; done; echo "$a" > /found'
    where = ["--bundle", str(bundle.folder)]
    found = bundle.root / "found"
    bundle.args("sh", "-c", look)
    assert ran("run", *where, bundle.identity) == 0
    seen = [found.read_text()]
    bundle.args("sh", "-c", f"{look}; mv /found /ready; sleep 60")
    assert ran("create", *where, bundle.identity) == 0
    assert ran("start", bundle.identity) == 0
    for _ in range(1000):
        if (bundle.root / "ready").exists():
            break
        time.sleep(0.02)
    seen.append((bundle.root / "ready").read_text())
    assert ran("exec", bundle.identity, "sh", "-c", look) == 0
    seen.append(found.read_text())
    for text in seen:
        streams = text.rstrip().split("|")[1:]
        assert {streams[number] for number in closed} == {"/dev/null"}, seen


def test_E02_no_program_is_reached_through_a_descriptor_of_ours(
    box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E02, CVE-2024-21626: a link that leads through our descriptor of the host's /proc, put in the program's
    place after it was examined. As if it were put there in between, nothing is examined here."""
    monkeypatch.setattr(ProbeExecutable, "run", lambda *_: None)
    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    for number in range(3, 30):
        (box.root / f"bin/reached{number}").symlink_to(f"/proc/self/fd/{number}/{running.pid}/exe")
        with pytest.raises(LaunchError, match="no such file"):
            box.exec(running, [f"/bin/reached{number}"]).wait()


# -- what a container leaves behind ------------------------------------------------------------------------


def test_I01_folders_deeper_than_our_stack_do_not_end_the_cleaning_of_the_node(node: Node) -> None:
    """I01, "> N files": 1,500 folders in each other, and removing them ended the thread that clears away what
    every pod of the node leaves."""
    script = "cd /; for i in $(seq 1500); do busybox mkdir d; cd d; done; echo deep"
    sandbox = node.sandbox()
    nested, plain = node.run(sandbox, ["sh", "-c", script]), node.run(sandbox, ["true"])
    for container in (nested, plain):
        node.ended(container, 30)
    assert node.log(nested) == b"deep\n"
    for container in (nested, plain):
        node.service.remove_container(container)
    assert node.service.wait_for_removals(30)
    assert os.listdir(node.folder / "containers") == []


# -- E03: memory and signals of who enters -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["start", "exec"])
def test_E03_nobody_can_look_into_a_process_that_enters(box: Any, way: str) -> None:
    """E03, CVE-2016-9962: the child shares our memory until its execve; it is not dumpable by then."""
    libc, seen = ctypes.CDLL(None), []

    class Watching(LinuxKernel):
        def spawn(self, *arguments: Any, **options: Any) -> Any:
            seen.append(libc.prctl(PR_GET_DUMPABLE))
            return super().spawn(*arguments, **options)

    running = box.start("echo up; exec sleep 60")
    running.read_until("up")
    libc.prctl(4, 1)
    if way == "start":
        box.start("true", kernel=Watching()).wait()
    else:
        box.kernel = Watching()
        box.exec(running, "true").wait()
    assert seen == [0]


STOPPER = "while ! ls /tmp/go; do sleep 0.05; done; while :; do kill -STOP -1; done"
TIMES = 12


def ends(work: Callable[[], object]) -> bool:
    """Whether it comes to its end, whatever that is, soon."""

    def attempt() -> None:
        try:
            work()
        except (TimeoutError, RuntimeFailure):
            return

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    return not thread.is_alive()


@pytest.mark.parametrize("compiled", [False, True])
def test_E03_a_container_that_stops_what_enters_it_does_not_stop_its_shim(
    node: Node, compiled: bool
) -> None:
    """E03: between setns and execve a process of ours is within reach of the container's signals, and who
    started it waits for the execve: for ever, when SIGSTOP comes first."""
    (node.rootfs / "tmp").mkdir(exist_ok=True)
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sh", "-c", STOPPER])
    for _ in range(5 if compiled else 0):
        assert node.service.exec_sync(container, ["true"], timeout=10).exit_code == 0
    Path(f"/proc/{node.service.container(container).pid}/root/tmp/go").touch()
    for _ in range(TIMES):
        assert ends(lambda: node.service.exec_sync(container, ["true"], timeout=1))
    assert ends(lambda: node.service.stop_container(container, 0))
    assert [one.state for one in node.service.list_sandboxes()] == ["READY"]


def test_E03_a_neighbour_that_stops_what_starts_does_not_stop_their_shim(node: Node) -> None:
    """E03: as above, where containers of a pod share their processes."""
    sandbox = node.sandbox(share_process_namespace=True)
    first = node.run(sandbox, ["sh", "-c", "while :; do kill -STOP -1; done"])
    for _ in range(TIMES):
        second = node.create(sandbox, ["true"])
        assert ends(lambda second=second: node.service.start_container(second))
        assert ends(lambda second=second: node.service.stop_container(second, 0))
    assert ends(lambda: node.service.stop_container(first, 0))
    assert [one.state for one in node.service.list_sandboxes()] == ["READY"]
