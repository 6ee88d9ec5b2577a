from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.images.errors import ArchiveError, DigestMismatch, ImageInUse, ImageNotFound, UnpackError
from runtime.images.store import ImageStore
from tests.unit.images.build import docker_archive, info, layer, oci_layout, tar_file, tar_of

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
]

BASE = layer([("etc/", None), ("etc/name", b"base")])
TOP = layer([("top", b"1")])
BUSYBOX = Path("/usr/bin/busybox")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def archive(members: list[tuple[str, bytes]]) -> io.BytesIO:
    return io.BytesIO(tar_file(members))


def leftovers(tmp_path: Path) -> dict[str, int]:
    return {
        name: len(list((tmp_path / "store" / name).iterdir()))
        for name in ("ingest", "layers", "blobs/sha256")
    }


def test_a_docker_archive_is_found_under_all_its_names(store: ImageStore) -> None:
    [image] = store.import_archive(archive(docker_archive([BASE, TOP], ["app:v1", "r.example/app:v1"])))
    assert image.repo_tags == ("docker.io/library/app:v1", "r.example/app:v1")
    for name in ("app:v1", "docker.io/library/app:v1", image.id, image.id[7:], image.id[7:19]):
        assert store.lookup(name) == image
    assert store.lookup("app") is None and store.lookup("app:v2") is None
    assert [sorted(os.listdir(folder)) for folder in image.layers] == [["top"], ["etc"]]
    assert image.config["Cmd"] == ["/run"]


def test_an_oci_layout_is_named_by_its_annotation_or_by_the_caller(store: ImageStore) -> None:
    [named] = store.import_archive(archive(oci_layout([BASE], "quay.example/app:v2")))
    assert named.repo_tags == ("quay.example/app:v2",)
    assert named.repo_digests[0].startswith("quay.example/app@sha256:")
    [again] = store.import_archive(archive(oci_layout([BASE])), "other")
    assert again.repo_tags == ("docker.io/library/other:latest", "quay.example/app:v2")


def test_a_compressed_archive_is_imported(store: ImageStore) -> None:
    packed = gzip.compress(tar_file(docker_archive([BASE])))
    assert store.import_archive(io.BytesIO(packed))[0].layers


def test_equal_layers_are_named_once(store: ImageStore) -> None:
    """Overlayfs refuses the same lower folder twice; real images hold the empty layer several times."""
    [image] = store.import_archive(archive(docker_archive([TOP, BASE, TOP])))
    assert [os.listdir(folder) for folder in image.layers] == [["top"], ["etc"]]


def test_layers_of_an_import_through_skopeo_mount_as_an_overlay(store: ImageStore, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    removing = layer([("etc/.wh.name", b""), ("etc/other", b"2")])
    (tmp_path / "in.tar").write_bytes(tar_file(oci_layout([BASE, removing])))
    for form in ("docker-archive", "oci-archive"):
        out = tmp_path / f"{form}.tar"
        command = ["skopeo", "copy", "--quiet", "--insecure-policy", f"oci-archive:{tmp_path}/in.tar"]
        subprocess.run([*command, f"{form}:{out}:r.example/app:v1"], check=True, capture_output=True)
        with open(out, "rb") as handle:
            [image] = store.import_archive(handle)
        assert image.repo_tags == ("r.example/app:v1",)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    script = 'mount -t overlay none "$1" -o "ro,lowerdir=$2" && ls "$1/etc"'
    isolated = ["unshare", "--mount", "--propagation", "private"]
    done = subprocess.run(
        [*isolated, "sh", "-c", script, "sh", str(mounted), ":".join(image.layers)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["other"]


@pytest.mark.parametrize("victim", ["config", "layer"])
def test_an_archive_that_was_tampered_with_leaves_nothing(
    store: ImageStore, tmp_path: Path, victim: str
) -> None:
    members = docker_archive([BASE, TOP])
    changed = [
        (name, data + b" ") if victim == "config" and len(name) > 60 else (name, data)
        for name, data in members
    ]
    if victim == "layer":
        changed[1] = (changed[1][0], layer([("top", b"2")]))
    with pytest.raises(DigestMismatch):
        store.import_archive(archive(changed))
    assert store.list() == [] and leftovers(tmp_path)["ingest"] == 0


def test_an_oci_blob_under_a_wrong_name_is_refused(store: ImageStore) -> None:
    members = oci_layout([BASE])
    members[2] = (members[2][0], gzip.compress(TOP))
    with pytest.raises(DigestMismatch, match="blob sha256"):
        store.import_archive(archive(members))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (tar_file([("readme", b"hello")]), ArchiveError),
        (b"", ArchiveError),
        (b"hello, world" * 100, UnpackError),
        (tar_file([("manifest.json", b"[]")]), ArchiveError),
        (tar_file([("manifest.json", b'[{"Config": "../../etc/passwd", "Layers": []}]')]), ArchiveError),
    ],
)
def test_files_that_are_no_image_are_refused(store: ImageStore, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="Could not"):
        store.import_archive(io.BytesIO(data))


def test_a_loop_of_links_in_an_archive_is_refused(store: ImageStore) -> None:
    import tarfile

    members = [(info("manifest.json", tarfile.SYMTYPE, linkname="b"), b""), (info("x"), b"")]
    members.append((info("b", tarfile.SYMTYPE, linkname="manifest.json"), b""))
    with pytest.raises(ArchiveError, match="loop"):
        store.import_archive(io.BytesIO(tar_of(members)))


def test_removing_takes_names_first_and_shared_layers_last(store: ImageStore, tmp_path: Path) -> None:
    [one] = store.import_archive(archive(docker_archive([BASE, TOP], ["one", "uno"])))
    [two] = store.import_archive(archive(docker_archive([BASE], ["two"])))
    store.remove("one")
    assert store.lookup("uno") is not None and store.lookup("one") is None
    with pytest.raises(ImageInUse):
        store.remove("uno", in_use={one.id})
    store.remove("uno")
    assert not Path(one.layers[0]).exists() and Path(two.layers[0]).is_dir()
    store.remove(two.id)
    assert leftovers(tmp_path) == {"ingest": 0, "layers": 0, "blobs/sha256": 0}
    with pytest.raises(ImageNotFound):
        store.remove("two")


def test_a_tag_moves_to_the_newer_image(store: ImageStore) -> None:
    [old] = store.import_archive(archive(docker_archive([BASE], ["app"])))
    [new] = store.import_archive(archive(docker_archive([TOP], ["app"])))
    found, orphan = store.lookup("app"), store.lookup(old.id)
    assert found == new and orphan is not None and orphan.repo_tags == ()


_IMPORT = """
import pathlib, sys
from runtime.images.store import ImageStore
with open(sys.argv[2], "rb") as handle:
    ImageStore(pathlib.Path(sys.argv[1])).import_archive(handle)
"""


def test_several_processes_import_at_once(store: ImageStore, tmp_path: Path) -> None:
    workers = []
    for number in range(3):
        file = tmp_path / f"{number}.tar"
        own = layer([(f"own-{number}", b"1")])
        file.write_bytes(tar_file(docker_archive([BASE, own], [f"app-{number}"])))
        workers.append(subprocess.Popen([sys.executable, "-c", _IMPORT, str(tmp_path / "store"), str(file)]))
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert len(store.list()) == 3 and leftovers(tmp_path)["ingest"] == 0


def test_what_a_killed_writer_left_is_swept_away(store: ImageStore, tmp_path: Path) -> None:
    stale = tmp_path / "store/ingest/stale"
    stale.mkdir(parents=True)
    (stale / "member-0").write_bytes(b"x")
    store.import_archive(archive(docker_archive([BASE])))
    assert not stale.exists()


def test_a_damaged_index_is_said_plainly(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/images.json").write_text("{")
    with pytest.raises(Exception, match="damaged"):
        store.list()


@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")
def test_busybox_becomes_the_same_image_twice(store: ImageStore, tmp_path: Path) -> None:
    first = store.from_binary(BUSYBOX, "busybox")
    second = ImageStore(tmp_path / "second").from_binary(BUSYBOX, "busybox")
    assert first.id == second.id and first.repo_tags == ("docker.io/library/busybox:latest",)
    root = first.layers[0]
    assert subprocess.run(
        ["/bin/ls", "/"], executable=f"{root}/bin/ls", check=True, capture_output=True
    ).stdout
    assert (Path(root) / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert "root:x:0:0" in (Path(root) / "etc/passwd").read_text()
    assert first.config["Cmd"] == ["sh"] and first.config["Env"][0].startswith("PATH=")
    assert json.loads(store.document(first.id))["architecture"]


def test_dynamic_and_foreign_files_are_refused_as_binaries(store: ImageStore) -> None:
    with pytest.raises(ArchiveError, match="dynamically linked"):
        store.from_binary(Path("/bin/ls").resolve(), "x")
    with pytest.raises(ArchiveError, match="not an ELF"):
        store.from_binary(Path("/etc/passwd"), "x")
