"""Runtimes that go wrong in every way: pods get an error that says how, and nothing is left behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runtime.errors import StartError
from runtime.foreign import Foreign, Place
from runtime.linux import LinuxKernel
from runtime.own_thread import in_thread_of_its_own
from runtime.recovery import folders
from runtime.values import OciRuntime
from tests.privileged.runtime_service.harness import Node, gone, wait_for

pytestmark = pytest.mark.privileged

# Each is given --root DIR --log FILE --log-format json COMMAND …; $PIDFILE and $LOG are its flags' values.
HEAD = """#!/bin/sh
echo "$*" >> FOLDER/told
while [ $# -gt 0 ]; do case $1 in
--log) LOG=$2; shift;; --pid-file) PIDFILE=$2; shift;;
create|start|exec|kill|delete|update) VERB=$1;; esac; shift; done
[ $VERB = create ] || exit 0
"""


@pytest.fixture
def script() -> str:
    return "exit 0"


@pytest.fixture
def runtime(tmp_path: Path, script: str) -> OciRuntime:
    program = tmp_path / "strange"
    program.write_text(HEAD.replace("FOLDER", str(tmp_path)) + script.replace("FOLDER", str(tmp_path)) + "\n")
    program.chmod(0o755)
    return OciRuntime("strange", str(program), str(tmp_path / "root"))


def refused(node: Node) -> str:
    """What the start of a container says, after which nothing but its folder is left."""
    sandbox = node.sandbox()
    container = node.create(sandbox, ["sleep", "1000"])
    with pytest.raises(StartError) as error:
        node.service.start_container(container)
    ended = node.service.container(container)
    assert (ended.state, ended.exit_code, ended.reason) == ("EXITED", 128, "StartError")
    node.service.remove_container(container)
    node.service.remove_pod_sandbox(sandbox.id)
    parent = sandbox.config.cgroup_parent
    node.driver.remove(parent, recursive=True)
    wait_for(lambda: not folders(node.folder / "containers"))
    assert [*Path("/sys/fs/cgroup").glob(parent), *Path("/sys/fs/cgroup").glob(f"*/{parent}")] == []
    return str(error.value)


@pytest.mark.parametrize("script", ["exit 0"])
def test_one_that_does_nothing(node: Node, tmp_path: Path) -> None:
    assert refused(node) == "OCI runtime create failed: it left no process (no pid file)"
    told = (tmp_path / "told").read_text().splitlines()
    assert " delete --force " in told[1], "what it may have made was not given back to it"


@pytest.mark.parametrize("script", ["echo nonsense > $PIDFILE"])
def test_one_whose_pid_file_is_nonsense(node: Node) -> None:
    assert refused(node) == "OCI runtime create failed: 'nonsense' in its pid file is no pid"


@pytest.mark.parametrize("script", ["echo 999999999 > $PIDFILE"])
def test_one_whose_process_is_not_there(node: Node) -> None:
    assert refused(node) == "OCI runtime create failed: process 999999999 of its pid file is none of its own"


@pytest.mark.parametrize("script", ["cp FOLDER/stranger $PIDFILE"])
def test_one_that_names_a_process_of_somebody_elses(node: Node, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            (tmp_path / "stranger").write_text(str(stranger.pid))
            assert f"process {stranger.pid} of its pid file is none of its own" in refused(node)
            assert stranger.poll() is None, "it was taken for the container's and killed"
        finally:
            stranger.kill()


GARBAGE = r"printf '\033[31m\000\377 {\n' >> $LOG; printf '\033]0;x\007' >&2; exit 1"


@pytest.mark.parametrize("script", [GARBAGE])
def test_one_that_prints_garbage(node: Node) -> None:
    text = refused(node)
    assert text.startswith("OCI runtime create failed: ") and text.isprintable()


LONG = r"""printf '{"level":"error","msg":"' >> $LOG; head -c 300000 /dev/zero | tr '\0' x >> $LOG
echo '"}' >> $LOG; exit 1"""


@pytest.mark.parametrize("script", [LONG])
def test_one_that_has_much_to_say(node: Node) -> None:
    assert 4000 < len(refused(node)) < 5000


@pytest.mark.parametrize("script", ["kill -9 $$"])
def test_one_that_is_killed(node: Node) -> None:
    assert refused(node).endswith("/strange ended with code -9")


@pytest.mark.parametrize("script", ["sleep 1000 & echo $! > FOLDER/child; exit 1"])
def test_one_that_leaves_a_process_when_it_fails(node: Node, tmp_path: Path) -> None:
    refused(node)
    wait_for(lambda: gone(int((tmp_path / "child").read_text())))


HANGING = """#!/bin/sh
sleep 1000 &
echo $! > FOLDER/child
wait
"""


def test_one_that_hangs_is_ended_with_what_it_started(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "hangs"
    program.write_text(HANGING.replace("FOLDER", str(tmp_path)))
    program.chmod(0o755)
    values = {"path": str(program), "root": f"{tmp_path}/root", "arguments": (), "hybrid_cgroups": False}
    place = Place("c", str(tmp_path), "")

    def update() -> None:
        Foreign(LinuxKernel(), node.driver, values, place, seconds=1).update({})

    with pytest.raises(StartError, match=r"OCI runtime update failed: no end within (1|0\.\d+) s"):
        in_thread_of_its_own(update)
    wait_for(lambda: gone(int((tmp_path / "child").read_text())))
