"""`kubelet-py image` as a person types it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from kubelet_py.cli.main import main
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
