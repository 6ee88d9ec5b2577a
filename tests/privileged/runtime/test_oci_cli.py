"""The OCI command line with a real bundle, driven as a caller drives runc."""

from __future__ import annotations

import array
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroups

pytestmark = pytest.mark.privileged

REPOSITORY = Path(__file__).parents[3]


class Bundle:
    """A bundle and a state folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        binaries = folder / "bundle/rootfs/bin"
        binaries.mkdir(parents=True)
        shutil.copy("/usr/bin/busybox", binaries / "busybox")
        for applet in ("sh", "id", "echo", "sleep", "cat", "tty", "true"):
            (binaries / applet).symlink_to("busybox")
        assert self("spec", "--bundle", str(folder / "bundle")).returncode == 0
        self.change(lambda config: config["process"].update(terminal=False))

    def change(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.folder / "bundle/config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    def args(self, *args: str) -> None:
        self.change(lambda config: config["process"].update(args=list(args)))

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime.oci_cli", "--root", str(self.state), *args]
        given: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "capture_output": True,
            "text": True,
            "timeout": 30,
        }
        return subprocess.run(command, cwd=REPOSITORY, **{**given, **options})

    def containers(self) -> list[str]:
        """Folders of containers; compiled seccomp filters stay."""
        return [name for name in os.listdir(self.state) if name != ".seccomp"]

    def create(self, identity: str) -> subprocess.CompletedProcess[str]:
        with open(self.folder / "output", "w") as output:
            path = str(self.folder / "bundle")
            return self(
                "create", "--bundle", path, identity, capture_output=False, stdout=output, stderr=output
            )

    def status(self, identity: str) -> str:
        return str(json.loads(self("state", identity).stdout)["status"])

    def wait_for(self, identity: str, status: str) -> None:
        for _ in range(1000):
            if self.status(identity) == status:
                return
            time.sleep(0.02)
        assert self.status(identity) == status

    def wait_for_output(self, text: str) -> None:
        output = self.folder / "output"
        for _ in range(3000):
            if output.read_text() == text:
                return
            time.sleep(0.02)
        assert output.read_text() == text


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    if not Path("/usr/bin/busybox").exists():
        pytest.skip("/usr/bin/busybox is missing")
    made = Bundle(tmp_path)
    yield made
    if made.state.exists():
        for name in made.containers():
            made("delete", "--force", name)


def test_run_gives_output_and_exit_code(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "echo hello; exit 7")
    done = bundle("run", "--bundle", str(bundle.folder / "bundle"), "one")
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 7)
    assert bundle("list", "-q").stdout == ""
    assert not cgroups.detect().exists("kubelet-py-oci-one")


def test_the_life_of_a_container(bundle: Bundle) -> None:
    bundle.args("sh", "-c", "echo started; exec sleep 60")
    assert bundle.create("life").returncode == 0
    assert bundle.status("life") == "created"
    assert (bundle.folder / "output").read_text() == ""
    assert bundle("exec", "life", "sh", "-c", "exit 3").returncode == 3
    assert bundle("start", "life").returncode == 0
    assert bundle.status("life") == "running"
    bundle.wait_for_output("started\n")
    assert bundle("start", "life").returncode == 1
    assert bundle("exec", "life", "sh", "-c", "id -u; exit 5").returncode == 5
    assert "running" in bundle("delete", "life").stderr
    assert [entry["id"] for entry in json.loads(bundle("list", "--format", "json").stdout)] == ["life"]
    assert len(json.loads(bundle("ps", "--format", "json", "life").stdout)) == 1
    assert bundle("kill", "life", "KILL").returncode == 0
    bundle.wait_for("life", "stopped")
    assert "not running" in bundle("kill", "life", "TERM").stderr
    assert bundle("delete", "life").returncode == 0
    assert "does not exist" in bundle("state", "life").stderr


def test_delete_by_force_ends_a_running_container(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    bundle.create("forced")
    bundle("start", "forced")
    assert bundle("delete", "--force", "forced").returncode == 0
    assert bundle("delete", "--force", "never-there").returncode == 0
    assert bundle("delete", "never-there").returncode == 1


def test_a_created_container_can_be_deleted(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    bundle.create("waiting")
    assert bundle("delete", "waiting").returncode == 0


def test_ids_are_unique_and_plain(bundle: Bundle) -> None:
    bundle.args("sleep", "60")
    bundle.create("same")
    path = str(bundle.folder / "bundle")
    assert "exists already" in bundle("create", "--bundle", path, "same").stderr
    assert "id" in bundle("create", "--bundle", path, "../up").stderr
    assert bundle.status("same") == "created"


def test_a_missing_program_fails_create_and_leaves_nothing(bundle: Bundle) -> None:
    bundle.args("nosuch")
    log = bundle.folder / "log"
    done = bundle(
        "--log", str(log), "--log-format", "json", "create", "--bundle", str(bundle.folder / "bundle"), "x"
    )
    assert done.returncode == 1
    assert json.loads(log.read_text())["msg"] == 'exec: "nosuch": executable file not found in $PATH'
    assert bundle.containers() == []
    assert not cgroups.detect().exists("kubelet-py-oci-x")


def test_a_wrong_configuration_is_named(bundle: Bundle) -> None:
    bundle.change(lambda config: config["process"].update(cwd="here"))
    assert "process.cwd" in bundle("run", "--bundle", str(bundle.folder / "bundle"), "x").stderr


def test_a_terminal_is_handed_over_by_socket(bundle: Bundle, tmp_path: Path) -> None:
    bundle.args("tty")
    bundle.change(lambda config: config["process"].update(terminal=True))
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(path)
        server.listen(1)
        bundle_path = str(bundle.folder / "bundle")
        assert "console-socket" in bundle("create", "--bundle", bundle_path, "tty").stderr
        assert bundle("create", "--bundle", bundle_path, "--console-socket", path, "tty").returncode == 0
        channel, _ = server.accept()
        with channel:
            fds = array.array("i")
            data, ancillary, _, _ = channel.recvmsg(64, socket.CMSG_LEN(4))
            fds.frombytes(ancillary[0][2][:4])
    assert data == b"/dev/ptmx"
    bundle("start", "tty")
    text = b""
    try:
        while b"\n" not in text:
            text += os.read(fds[0], 100)
    finally:
        os.close(fds[0])
    assert text == b"/dev/pts/0\r\n"


def test_hooks_see_the_container(bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "states"
    hook = {
        "path": "/bin/sh",
        "args": ["sh", "-c", f"cat >> {target}; echo >> {target}"],
        "env": ["PATH=/bin"],
    }
    kinds = ("prestart", "createRuntime", "poststart", "poststop")
    bundle.change(lambda config: config.update(hooks={kind: [hook] for kind in kinds}))
    bundle.args("sleep", "60")
    bundle.create("hooked")
    bundle("start", "hooked")
    bundle("delete", "--force", "hooked")
    states = [json.loads(line)["status"] for line in target.read_text().splitlines()]
    assert states == ["creating", "creating", "running", "stopped"]


def test_a_failing_hook_undoes_create(bundle: Bundle) -> None:
    bundle.change(lambda config: config.update(hooks={"createRuntime": [{"path": "/bin/false"}]}))
    done = bundle("create", "--bundle", str(bundle.folder / "bundle"), "undone")
    assert done.returncode == 1 and "createRuntime" in done.stderr
    assert bundle.containers() == []


def test_what_it_can_do_is_told(bundle: Bundle) -> None:
    features = json.loads(bundle("features").stdout)
    assert features["ociVersionMax"] == "1.2.0"
    assert "rro" in features["mountOptions"]
    assert "spec: 1.2.0" in bundle("--version").stdout
