"""Hooks of all six kinds: where each runs, what it reads, when it is killed, what its failure leads to."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from runtime import cgroups

pytestmark = pytest.mark.privileged

KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
BEFORE = ("prestart", "createRuntime", "createContainer")


def hook(script: str, **more: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], **more}


def hooks(bundle: Bundle, **kinds: list[dict[str, Any]]) -> None:
    bundle.change(lambda config: config.update(hooks=kinds))


def bind(bundle: Bundle, folder: Path) -> None:
    """The folder that hooks write to, at the same path inside: startContainer hooks are in there."""
    bundle.mount(destination=str(folder), type="bind", source=str(folder), options=["bind"])


@pytest.fixture
def notes(tmp_path: Path, bundle: Bundle) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    bind(bundle, folder)
    return folder / "notes"


def test_all_six_kinds_run_in_order_with_the_state_on_standard_input(bundle: Bundle, notes: Path) -> None:
    one = {kind: [hook(f"echo {kind} >> {notes}; cat >> {notes}; echo >> {notes}")] for kind in KINDS}
    hooks(bundle, **one)
    bundle.change(lambda config: config.update(annotations={"com.example.key": "value"}))
    bundle.start("sleep", "1000")
    pid = bundle.pid()
    assert bundle("delete", "--force", bundle.identity).returncode == 0
    lines = notes.read_text().splitlines()
    assert lines[::2] == list(KINDS)
    states = [json.loads(line) for line in lines[1::2]]
    statuses = ["creating", "creating", "creating", "created", "running", "stopped"]
    assert [state["status"] for state in states] == statuses
    assert [state["pid"] for state in states] == [pid, pid, 1, 1, pid, 0]
    for state in states:
        assert (state["id"], state["bundle"]) == (bundle.identity, str(bundle.folder))
        assert state["annotations"] == {"com.example.key": "value"}


def test_hooks_of_create_find_the_namespaces_and_the_hosts_root(bundle: Bundle, notes: Path) -> None:
    """prestart and createRuntime run outside with the container's pid, createContainer inside; the root has
    not been changed yet, so that the host's paths still mean something in the container's mount namespace."""
    spaces = "for k in mnt net uts ipc pid; do readlink /proc/self/ns/$k; done"
    outside = f"pid=$(grep -o '\"pid\": [0-9]*' | cut -d' ' -f2); readlink /proc/$pid/ns/net > {notes}; " \
              f"ls /proc/$pid/root{bundle.root}/bin >> {notes}"  # fmt: skip
    inside = f"{{ {spaces}; ls -d {bundle.root}/proc/self; }} > {notes}.inside"
    hooks(bundle, createRuntime=[hook(outside)], createContainer=[hook(inside)])
    bundle.start("sleep", "1000")
    proc = Path(f"/proc/{bundle.pid()}/ns")
    network, *names = notes.read_text().splitlines()
    assert network == os.readlink(proc / "net") and "busybox" in names
    *found, last = Path(f"{notes}.inside").read_text().splitlines()
    assert found == [os.readlink(proc / kind) for kind in ("mnt", "net", "uts", "ipc", "pid")]
    assert last == f"{bundle.root}/proc/self"


def test_what_a_create_container_hook_mounts_is_in_the_container(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "driver"
    source.mkdir()
    (source / "library").write_text("from the host\n")
    hooks(bundle, createContainer=[hook(f"mount --bind {source} {bundle.root}/full")])
    done = bundle.run("cat /full/library")
    assert done.stdout == "from the host\n", done.stderr
    assert str(source) not in Path("/proc/self/mounts").read_text()


def test_a_hook_may_bring_the_program(bundle: Bundle) -> None:
    """The program is looked up after the hooks, in PATH of the container."""
    hooks(bundle, createRuntime=[hook(f"ln -s busybox {bundle.root}/bin/whoami")])
    bundle.args("whoami")
    done = bundle("run", "--bundle", str(bundle.folder), bundle.identity)
    assert (done.stdout, done.returncode) == ("root\n", 0), done.stderr


def test_with_hooks_the_container_is_as_without(bundle: Bundle) -> None:
    """Read-only root, working directory, masks, user and exit code, though the root is changed later."""
    script = "pwd; touch /x 2>&1 | grep -o 'Read-only'; cat /proc/kcore; echo $?; id -u; exit 7"

    def plain(config: dict[str, Any]) -> None:
        config["root"]["readonly"] = True
        config["process"].update(cwd="/etc", user={"uid": 1000, "gid": 1000})

    bundle.change(plain)
    without = bundle.run(script)
    hooks(bundle, createRuntime=[hook("true")])
    given = bundle.run(script)
    assert (given.stdout, given.returncode) == (without.stdout, 7), given.stderr
    assert given.stdout.splitlines()[:2] == ["/etc", "Read-only"]


def test_hooks_with_a_user_namespace(bundle: Bundle, notes: Path) -> None:
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.namespace("user", uidMappings=mapping, gidMappings=mapping)
    subprocess.run(["chown", "-hR", "100000:100000", str(bundle.root)], check=True)
    hooks(bundle, createRuntime=[hook(f"cat > {notes}")])
    done = bundle.run("id -u")
    assert done.stdout == "0\n", done.stderr
    assert json.loads(notes.read_text())["status"] == "creating"


def test_hooks_without_pivot(bundle: Bundle, notes: Path) -> None:
    hooks(bundle, createRuntime=[hook(f"cat > {notes}")])
    done = bundle.run("cat /full/file; ls /", "--no-pivot")
    assert done.stdout.startswith("from the image\n") and "full" in done.stdout.split(), done.stderr
    assert notes.exists()


@pytest.mark.parametrize("kind", BEFORE)
def test_a_hook_that_fails_undoes_create_and_leads_to_poststop(
    bundle: Bundle, notes: Path, kind: str
) -> None:
    failing = [hook("echo no luck >&2; exit 3"), hook(f"echo second >> {notes}")]
    hooks(bundle, **{kind: failing, "poststop": [hook(f"cat >> {notes}")]})
    bundle.args("sleep", "1000")
    assert bundle.create().returncode == 1
    assert f"{kind} hook /bin/sh: exit code 3: no luck" in bundle.output()
    assert json.loads(notes.read_text())["status"] == "stopped"
    assert "does not exist" in bundle("state", bundle.identity).stderr
    assert not cgroups.detect().exists(f"kubelet-py-oci-{bundle.identity}")


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
def test_a_hook_that_fails_at_the_start_ends_and_removes_the_container(
    bundle: Bundle, notes: Path, kind: str
) -> None:
    failing = {"path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"], "env": ["PATH=/bin"]}
    hooks(bundle, **{kind: [failing], "poststop": [hook(f"cat >> {notes}")]})
    bundle.args("sleep", "1000")
    assert bundle.create().returncode == 0, bundle.output()
    done = bundle("start", bundle.identity)
    assert done.returncode == 1 and "exit code 3: why" in done.stderr
    assert json.loads(notes.read_text())["status"] == "stopped"
    assert "does not exist" in bundle("state", bundle.identity).stderr


def test_a_poststop_hook_that_fails_is_a_warning_and_the_next_one_runs(bundle: Bundle, notes: Path) -> None:
    hooks(bundle, poststop=[hook("exit 3"), hook(f"echo second >> {notes}")])
    bundle.start("true")
    done = bundle("delete", "--force", bundle.identity)
    assert done.returncode == 0 and "exit code 3" in done.stderr
    assert notes.read_text() == "second\n"


@pytest.mark.parametrize("kind", BEFORE)
def test_a_hook_is_killed_when_its_time_is_over(bundle: Bundle, kind: str) -> None:
    mark = f"1000.{os.getpid()}"
    hooks(bundle, **{kind: [hook(f"sleep {mark}; true", timeout=1)]})
    bundle.args("true")
    assert bundle.create().returncode == 1
    assert "took longer than 1 s" in bundle.output()
    deadline = time.monotonic() + 60
    while mark in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout:
        assert time.monotonic() < deadline, "what the hook had started goes on"
        time.sleep(0.02)


def test_a_hook_may_ask_for_the_state(bundle: Bundle, notes: Path) -> None:
    command = f"{bundle.binary} --root {bundle.state} state {bundle.identity} > {notes}"
    hooks(bundle, createRuntime=[hook(command)])
    bundle.args("true")
    assert bundle.create().returncode == 0, bundle.output()
    assert json.loads(notes.read_text())["status"] == "creating"
    assert json.loads(bundle("state", bundle.identity).stdout)["status"] == "created"


def test_a_hook_without_env_has_that_of_its_caller(bundle: Bundle, notes: Path) -> None:
    plain = {"path": "/bin/sh", "args": ["sh", "-c", f"echo $KUBELET_PY_TEST >> {notes}"]}
    hooks(bundle, createRuntime=[plain, {**plain, "env": []}])
    done = bundle.run("true", env={**os.environ, "KUBELET_PY_TEST": "inherited"})
    assert done.returncode == 0, done.stderr
    assert notes.read_text() == "inherited\n\n"


def test_a_missing_program_after_the_hooks_is_named(bundle: Bundle) -> None:
    hooks(bundle, createRuntime=[hook("true")])
    bundle.args("nosuch")
    assert bundle.create().returncode == 1
    assert 'exec: "nosuch": executable file not found in $PATH' in bundle.output()
