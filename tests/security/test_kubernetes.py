"""What the agent must not do for a pod: checklist "Kubernetes layer", as far as it exists here."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.errors import VolumeError
from kubelet_py.node.reviews import NodeReviews
from kubelet_py.server import app
from kubelet_py.server.access import Access
from kubelet_py.server.access_settings import AccessSettings
from kubelet_py.volumes import atomic_writer, host_path, manager, secret, subpath
from kubelet_py.volumes.plugin import Context
from runtime import state
from runtime.operations import Rootfs, container_plan
from runtime.spec import parse
from tests.unit.server.fake_node import Backend, Pki

pytestmark = pytest.mark.privileged

TRIES = 1500
RENAME_EXCHANGE = 2


def context(objects: dict[str, Any] | None = None) -> Context:
    pod = {"metadata": {"name": "p", "namespace": "default", "uid": "uid"}, "spec": {}}
    return Context(pod, lambda kind, name: (objects or {}).get(name), lambda *_: "")


def place(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("where", ["{outside}", "../../outside", "/", "/proc/self/root", "/proc/self/cwd"])
def test_K01_a_subpath_does_not_follow_a_link_out(tmp_path: Path, where: str) -> None:
    """K01, CVE-2017-1002101 (k/k#60813)."""
    volume, outside = tmp_path / "a/volume", tmp_path / "outside"
    volume.mkdir(parents=True)
    outside.mkdir()
    (volume / "link").symlink_to(where.replace("{outside}", str(outside)))
    for path in ("link", "link/deep"):
        with pytest.raises(VolumeError):
            os.close(subpath.open_beneath(volume, path))
    assert list(outside.iterdir()) == []


def test_K01_a_subpath_that_changes_meanwhile_stays_inside(tmp_path: Path) -> None:
    """K01, CVE-2021-25741 (k/k#104980): a folder and a link change places while we resolve and make."""
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    (volume / "real").mkdir(parents=True)
    outside.mkdir()
    (volume / "link").symlink_to(str(outside))
    stop, libc = threading.Event(), ctypes.CDLL(None)
    names = bytes(volume / "real"), bytes(volume / "link")

    def swap() -> None:
        # The pause has no rhythm: in step with the other thread, every try would meet the link.
        while not stop.is_set():
            libc.renameat2(-100, names[0], -100, names[1], RENAME_EXCHANGE)
            time.sleep(random.random() * 1e-4)

    thread, inside = threading.Thread(target=swap), 0
    thread.start()
    try:
        for number in range(TRIES):
            try:
                found = place(subpath.open_beneath(volume, f"real/sub{number % 50}"))
            except VolumeError:
                continue
            assert found.startswith(str(volume)), found
            inside += 1
    finally:
        stop.set()
        thread.join()
    assert inside > 0 and list(outside.iterdir()) == []


def test_K02_the_atomic_writer_deletes_nothing_through_links(tmp_path: Path) -> None:
    """K02, CVE-2017-1002102 (k/k#60814): a ..data that somebody planted names what would be removed."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("untouched")
    for number, where in enumerate((str(victim), "../victim", "..link")):
        volume = tmp_path / f"volume{number}"
        volume.mkdir()
        (volume / "..link").symlink_to(victim)
        (volume / "..data").symlink_to(where)
        atomic_writer.write(volume, {"key": atomic_writer.File(b"new")})
        assert (volume / "key").read_bytes() == b"new"
    assert (victim / "file").read_text() == "untouched"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "..data/x"])
def test_K02_names_of_files_cannot_leave_the_volume(tmp_path: Path, path: str) -> None:
    """K02: items[].path."""
    with pytest.raises(VolumeError, match="invalid path"):
        atomic_writer.write(tmp_path, {path: atomic_writer.File(b"")})


def test_K05_there_are_no_git_repo_volumes(tmp_path: Path) -> None:
    """K05, CVE-2024-10220: git ran as root on the host, with the repository's own hooks."""
    asked = context()
    asked.pod["spec"]["volumes"] = [{"name": "v", "gitRepo": {"repository": "file:///etc"}}]
    with pytest.raises(VolumeError, match="gitRepo"):
        manager.VolumeManager(tmp_path).set_up(asked)
    assert not list(tmp_path.rglob("v"))


@pytest.mark.parametrize("path", ["/tmp/../etc", "/..", "../x"])
def test_K06_a_host_path_has_no_dots(path: str) -> None:
    """K06."""
    with pytest.raises(VolumeError, match=r"\.\."):
        host_path.set_up(context(), {"path": path})


@pytest.mark.parametrize("path", ["/etc", "..", "a/../../b"])
def test_K06_a_subpath_is_relative_and_without_dots(tmp_path: Path, path: str) -> None:
    """K06."""
    with pytest.raises(VolumeError, match="relative"):
        subpath.open_beneath(tmp_path, path)


def test_K08_secrets_lie_in_memory_and_nobody_else_reads_their_name(tmp_path: Path) -> None:
    """K08: the volume is a tmpfs, and defaultMode is obeyed."""
    stored = {"s": {"data": {"password": "hunter2"}}}
    asked = context(stored)
    asked.pod["spec"]["volumes"] = [{"name": "v", "secret": {"secretName": "s", "defaultMode": 0o400}}]
    volumes = manager.VolumeManager(tmp_path)
    try:
        folder = volumes.set_up(asked)["v"].path
        mounts = Path("/proc/mounts").read_text()
        assert f"tmpfs {folder} tmpfs" in mounts
        assert (folder / "password").read_text() == "hunter2"
        assert (folder / "password").stat().st_mode & 0o777 == 0o400
    finally:
        volumes.tear_down("uid")
    assert secret.payload(asked, {"secretName": "s"})["password"].data == b"hunter2"


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[tuple[app.KubeletServer, Pki]]:
    pki = Pki(tmp_path)
    certificate, key = pki.issue("kubelet")
    server = app.KubeletServer(
        Backend(tmp_path), address="127.0.0.1", port=0, cert_file=certificate, key_file=key,
        client_ca_file=pki.ca, log_folder=tmp_path,
        access=Access(AccessSettings(), NodeReviews(None, "n1")),
    )  # fmt: skip
    server.start()
    yield server, pki
    server.stop()


def ask(kubelet: tuple[app.KubeletServer, Pki], path: str, *identity: str) -> int:
    server, pki = kubelet
    tls = ssl.create_default_context(cafile=pki.ca)
    if identity:
        tls.load_cert_chain(*pki.issue(*identity))
    connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=tls, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_K07_the_kubelet_answers_nobody_unasked(kubelet: Any) -> None:
    """K07: without a certificate 401, with one that the API server does not vouch for 403."""
    for path in ("/pods", "/containerLogs/default/web/main", "/exec/default/web/main?command=id"):
        assert ask(kubelet, path) == 401
        assert ask(kubelet, path, "nobody") == 403


@pytest.mark.parametrize("path", ["/logs/../../etc/shadow", "/logs/%2e%2e/%2e%2e/etc/shadow"])
def test_K10_log_paths_lead_nowhere_else(kubelet: Any, path: str) -> None:
    """K10."""
    assert ask(kubelet, path, "admin", "system:masters") == 404


def test_K08_what_an_environment_holds_is_told_nowhere(pods: Any, caplog: pytest.LogCaptureFixture) -> None:
    """K08: a Secret in the environment is in the container, and in no log, plan or command line."""
    secret_text = "hunter2-is-not-told"
    variable = {"name": "PASSWORD", "value": secret_text}
    caplog.set_level("DEBUG")
    script = 'echo "${#PASSWORD}"; sleep 1000; true'
    described = pods.describe(script, env=[{"name": "PATH", "value": "/bin"}, variable])
    assert f"PASSWORD={secret_text}" in described["process"]["env"]
    rootfs = Rootfs(("/layer",), "/upper", "/work")
    plan = container_plan(parse(described), rootfs=rootfs, join={}, cgroup=None)
    told = [operation.describe() for operation in plan.operations]
    assert any("execute" in line for line in told)
    assert secret_text not in "\n".join(told)
    pods.start(script, env=[{"name": "PATH", "value": "/bin"}, variable])
    deadline = time.monotonic() + 60
    lines = command_lines()
    while not any(b"PASSWORD" in line for line in lines):
        assert time.monotonic() < deadline, "the container's script is not seen"
        lines = command_lines()
    assert not any(secret_text.encode() in line for line in lines)
    assert secret_text not in caplog.text


def command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes())
    return found


def test_K08_what_a_container_was_started_with_is_roots_alone(tmp_path: Path) -> None:
    """K08: the files that hold a container's environment on the node's disk."""
    before = os.umask(0)
    try:
        state.write_json(str(tmp_path / "oci.json"), {"process": {"env": ["PASSWORD=hunter2"]}})
    finally:
        os.umask(before)
    assert (tmp_path / "oci.json").stat().st_mode & 0o777 == 0o600
