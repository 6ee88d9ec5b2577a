"""What a container does to those who enter it: checklist "Escapes", E01 and E03, by ways that the checklist
does not name."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import LaunchError, RuntimeFailure
from runtime.process import ProbeExecutable
from tests.privileged.oci_callers.conftest import bundle, busybox_root, oci_binary
from tests.privileged.runtime_service.harness import Node

__all__ = ["bundle", "busybox_root", "oci_binary"]

pytestmark = pytest.mark.privileged

# -- E01: the starter's own program -----------------------------------------------------------------------


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
    thread.join(10)
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
