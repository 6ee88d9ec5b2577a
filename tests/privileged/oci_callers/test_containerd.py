"""containerd's runc v2 shim with kubelet-py-oci as its BinaryName, driven by ctr."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups import native

pytestmark = pytest.mark.privileged

IMAGE = "localhost/bb:latest"
# Plugins that look for other people's storage or listen on fixed sockets.
DISABLED = [
    "io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
    *(f"io.containerd.snapshotter.v1.{name}" for name in ("btrfs", "devmapper", "zfs", "aufs")),
]  # fmt: skip


class Containerd:
    """A containerd with folders and socket of its own."""

    def __init__(self, folder: Path, binary: str, disabled: Sequence[str] = DISABLED, more: str = "") -> None:
        self.folder, self.binary = folder, binary
        self.namespace = f"kubelet-py-ctr-{os.getpid()}"
        config = folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            f"disabled_plugins = {json.dumps(list(disabled))}\n"
            f'[grpc]\n  address = "{folder}/c.sock"\n[ttrpc]\n  address = "{folder}/t.sock"\n{more}'
        )
        self._log = open(folder / "log", "w")
        self._process = subprocess.Popen(
            ["containerd", "-c", str(config)], stdout=self._log, stderr=self._log
        )

    def __call__(self, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
        given: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, **options}
        return subprocess.run(self.command(*args), stdin=subprocess.DEVNULL, **given)

    def command(self, *args: str) -> list[str]:
        return ["ctr", "-a", f"{self.folder}/c.sock", "-n", self.namespace, *args]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """`ctr run`: flags, image, id, command."""
        return self("run", "--runc-binary", self.binary, "--runc-root", f"{self.folder}/runc",
                    "--snapshotter", "native", *args)  # fmt: skip

    def status(self, name: str) -> str:
        for line in self("task", "ls").stdout.splitlines():
            if line.startswith(name + " "):
                return line.split()[2]
        return ""

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


def archive(layer: bytes, name: str = IMAGE, command: Sequence[str] = ("sh",)) -> bytes:
    """A docker archive of one layer, as `ctr image import` takes it."""
    config = json.dumps({
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()], "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command)},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }).encode()  # fmt: skip
    manifest = json.dumps([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path, data in (("config.json", config), ("layer.tar", layer), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def ready(made: Containerd, image: bytes) -> None:
    """Wait for it, and give it an image."""
    for _ in range(600):
        if made("version").returncode == 0:
            break
        time.sleep(0.05)
    file = made.folder / "image.tar"
    file.write_bytes(image)
    done = made("image", "import", "--snapshotter", "native", str(file))
    assert done.returncode == 0, done.stderr + (made.folder / "log").read_text()


def close(made: Containerd) -> None:
    made.close()
    shutil.rmtree("/run/containerd", ignore_errors=True)
    for root, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if root.endswith("/" + made.namespace):
            os.rmdir(root)


@pytest.fixture(scope="module")
def ctr(tmp_path_factory: pytest.TempPathFactory, oci_binary: str, layer: bytes) -> Iterator[Containerd]:
    if shutil.which("containerd") is None:
        pytest.skip("containerd is missing")
    if Path("/run/containerd").exists():
        pytest.skip("/run/containerd exists: another containerd is at home here")
    folder = tmp_path_factory.mktemp("ctr")
    made = Containerd(folder, oci_binary)
    try:
        ready(made, archive(layer))
        made.run("--rm", IMAGE, "first", "true")  # makes the namespace's cgroup, which stays for the next
        yield made
    finally:
        close(made)


def test_run_gives_output_and_exit_code(ctr: Containerd) -> None:
    done = ctr.run("--rm", IMAGE, "short", "sh", "-c", "echo hello; exit 5")
    assert (done.stdout, done.returncode) == ("hello\n", 5), done.stderr


@pytest.fixture(params=["cgroupfs", "systemd"])
def manager(request: pytest.FixtureRequest) -> str:
    if request.param == "systemd" and native() != "systemd":
        pytest.skip("systemd with cgroup v2 alone is missing (sudo ./hack/test --vm)")
    return str(request.param)


def test_the_life_of_a_task(ctr: Containerd, manager: str) -> None:
    scope = f"{ctr.namespace}-life.scope"
    by_systemd = ["--runc-systemd-cgroup", "--cgroup", f"system.slice:{ctr.namespace}:life"]
    flags = by_systemd if manager == "systemd" else []
    done = ctr.run("-d", *flags, IMAGE, "life", "sleep", "1000")
    assert done.returncode == 0, done.stderr
    try:
        assert ctr.status("life") == "RUNNING"
        assert active(scope) == (manager == "systemd")
        done = ctr("task", "exec", "--exec-id", "one", "life", "sh", "-c", "echo inside; exit 3")
        assert (done.stdout, done.returncode) == ("inside\n", 3), done.stderr
        assert len(ctr("task", "ps", "life").stdout.splitlines()) == 2
        assert "memory" in ctr("task", "metrics", "life").stdout
        assert ctr("task", "pause", "life").returncode == 0
        assert ctr.status("life") == "PAUSED"
        assert ctr("task", "resume", "life").returncode == 0
        assert ctr("task", "kill", "-s", "9", "life").returncode == 0
        for _ in range(600):
            if ctr.status("life") == "STOPPED":
                break
            time.sleep(0.05)
        assert ctr.status("life") == "STOPPED"
    finally:
        ctr("task", "delete", "--force", "life")
        assert ctr("container", "rm", "life").returncode == 0
    assert not active(scope)


def active(unit: str) -> bool:
    """Whether systemd runs such a unit; where there is no systemd it does not."""
    if native() != "systemd":
        return False
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], timeout=60).returncode == 0


def test_a_terminal(ctr: Containerd) -> None:
    command = " ".join(
        ctr.command("run", "--rm", "-t", "--runc-binary", ctr.binary, "--runc-root", f"{ctr.folder}/runc",
                    "--snapshotter", "native", IMAGE, "term", "tty")
    )  # fmt: skip
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert "/dev/pts/0" in done.stdout


def test_a_kill_that_comes_too_late_is_no_failure(ctr: Containerd) -> None:
    """A kubelet's stop meets a container that has just ended: containerd must take it for that."""
    assert ctr.run("-d", IMAGE, "ended", "true").returncode == 0
    try:
        for _ in range(600):
            if ctr.status("ended") == "STOPPED":
                break
            time.sleep(0.05)
        done = ctr("task", "kill", "ended")
        assert "process already finished: not found" in done.stderr
    finally:
        ctr("task", "delete", "--force", "ended")
        assert ctr("container", "rm", "ended").returncode == 0


def test_errors_reach_the_user(ctr: Containerd) -> None:
    done = ctr.run("--rm", IMAGE, "missing", "nosuch")
    assert done.returncode != 0
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr
    ctr("container", "rm", "missing")
