"""`kubelet-py image` as a person types it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kubelet_py.cli.main import main
from kubelet_py.paths import NodePaths
from runtime.images.store import Image, ImageStore
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    file = tmp_path / "image.tar"
    file.write_bytes(tar_file(docker_archive([layer([("etc/name", b"x")])], ["team/app:v1"])))
    return file


def image(tmp_path: Path, action: str, *arguments: str) -> int:
    return main(["image", action, "--root", str(tmp_path), *arguments])


def test_an_imported_image_is_listed_as_crictl_does_and_removed(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image(tmp_path, "import", str(archive)) == 0
    capsys.readouterr()
    assert image(tmp_path, "ls") == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["IMAGE", "TAG", "IMAGE", "ID", "SIZE"]
    assert row.split()[:2] == ["docker.io/team/app", "v1"] and row.endswith("kB")
    assert image(tmp_path, "ls", "-o", "json") == 0
    [listed] = json.loads(capsys.readouterr().out)["images"]
    assert listed["repoTags"] == ["docker.io/team/app:v1"]
    assert image(tmp_path, "inspect", "team/app:v1") == 0
    assert json.loads(capsys.readouterr().out)[0]["config"]["config"]["Cmd"] == ["/run"]
    assert image(tmp_path, "rm", "team/app:v1") == 0
    assert listed["id"] in capsys.readouterr().out
    assert image(tmp_path, "rm", "team/app:v1") == 1
    assert "no such image" in capsys.readouterr().err


def test_an_archive_comes_through_standard_input(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(archive.read_bytes())))
    assert image(tmp_path, "import", "-", "--name", "other") == 0
    assert "docker.io/library/other:latest" in capsys.readouterr().out


def test_an_image_in_use_is_not_removed(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image(tmp_path, "import", str(archive)) == 0
    identifier = capsys.readouterr().out.split()[-1]
    container = tmp_path / "var/lib/kubelet-py/containers/c1"
    container.mkdir(parents=True)
    (container / "config.json").write_text(json.dumps({"id": "c1", "config": {"image_id": identifier}}))
    assert image(tmp_path, "rm", "team/app:v1") == 1
    assert "containers use it" in capsys.readouterr().err


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert image(tmp_path, "import", str(tmp_path / "nothing.tar")) == 1
    assert "ENOENT" in capsys.readouterr().err


def test_a_tag_of_several_is_untagged_and_the_last_one_deletes(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert image(tmp_path, "import", str(archive)) == 0
    identifier = capsys.readouterr().out.split()[-1]
    assert image(tmp_path, "tag", "team/app:v1", "other:2") == 0
    capsys.readouterr()
    assert image(tmp_path, "rm", "other:2", "team/app:v1") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Untagged: docker.io/library/other:2",
        f"Deleted: {identifier}",
    ]


def test_an_export_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.tar"
    kept.write_text("precious")
    assert image(tmp_path, "export", "nothing", "-o", str(kept)) == 1
    assert "no such image" in capsys.readouterr().err
    assert kept.read_text() == "precious"
    assert image(tmp_path, "import", str(archive)) == 0
    assert image(tmp_path, "export", "team/app:v1", "-o", str(kept)) == 0
    assert kept.stat().st_size > 1000 and kept.stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in tmp_path.glob("*.tar*")) == ["image.tar", "kept.tar"]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line_and_no_half_archive(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "large.tar"
    content = os.urandom(200_000)
    file.write_bytes(tar_file(docker_archive([layer([("etc/large", content)])], ["team/large:v1"])))
    assert image(small, "import", str(file)) == 1
    assert capsys.readouterr().err.endswith("large.tar: ENOSPC (free some disk space)\n")
    assert image(tmp_path, "import", str(file)) == 0
    assert image(tmp_path, "export", "team/large:v1", "-o", str(small / "out.tar")) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(small.glob("*.tar*")) == []


def test_what_the_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert image(tmp_path, "import", str(tmp_path)) == 1
    assert f"EISDIR of {tmp_path} (give the path of a file)" in capsys.readouterr().err
    assert image(tmp_path, "pull", "localhost:1/app", "--ca-file", str(tmp_path / "none.pem")) == 1
    assert f"Could not read {tmp_path}/none.pem" in capsys.readouterr().err
    store = tmp_path / "var/lib/kubelet-py/images"
    store.mkdir(parents=True, exist_ok=True)
    (store / "images.json").write_text("half a docum")
    assert image(tmp_path, "ls") == 1
    assert "damaged" in capsys.readouterr().err


def test_prune_looks_again_before_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it worked, a container came, and somebody else removed an image."""
    store = ImageStore(NodePaths(tmp_path).images)
    names = [f"team/app{number}:v1" for number in range(3)]
    for number, name in enumerate(names):
        layers = [layer([("number", b"%d" % number)])]
        store.import_archive(io.BytesIO(tar_file(docker_archive(layers, [name]))))
    used, gone, idle = (store.lookup(name) for name in names)
    assert used and gone and idle
    listed = ImageStore.list

    def busy(self: ImageStore) -> Sequence[Image]:
        found = listed(self)
        monkeypatch.undo()
        store.remove(gone.id)
        container = NodePaths(tmp_path).containers / "c1"
        container.mkdir(parents=True)
        (container / "config.json").write_text(json.dumps({"config": {"image_id": used.id}}))
        return found

    monkeypatch.setattr(ImageStore, "list", busy)
    assert image(tmp_path, "prune", "--all") == 0
    assert capsys.readouterr().out == f"Deleted: {idle.id}\n"
    assert [left.id for left in store.list()] == [used.id]


def test_what_a_pull_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server that was asked, which is not always the one in the image's name, and the file."""
    hosts = tmp_path / "etc/kubelet-py/registries/docker.io/hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text('server = "http://localhost:1"\n')
    assert image(tmp_path, "pull", "busybox") == 1
    assert "manifest latest from localhost:1: [Errno 111] Connection refused" in capsys.readouterr().err
    (tmp_path / "auth.json").write_text("{")
    assert image(tmp_path, "pull", "busybox", "--auth-file", str(tmp_path / "auth.json")) == 1
    assert f"not JSON (in {tmp_path}/auth.json)" in capsys.readouterr().err


def test_who_is_not_root_is_told(tmp_path: Path, archive: Path) -> None:
    assert image(tmp_path, "import", str(archive)) == 0
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        os._exit(0 if refused(tmp_path) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def refused(root: Path) -> bool:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = image(root, "ls")
    return code == 1 and "EACCES" in said.getvalue() and "(run it as root)" in said.getvalue()
