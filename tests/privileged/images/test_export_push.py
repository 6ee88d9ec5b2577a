"""What leaves the store is what came in, bit for bit: read back by skopeo and by a real registry."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubelet_py.cli.main import main
from runtime.images import push, registry
from runtime.images.errors import DigestMismatch, ImageNotFound, PullUnauthorized, RegistryUnavailable
from runtime.images.export import FORMATS, export_images
from runtime.images.store import Image, ImageStore
from tests.privileged.images import registry_server
from tests.unit.images.build import digest, docker_archive, info, layer, oci_layout, tar_file, tar_of

pytestmark = registry_server.needed


def odd_layer(form: int) -> bytes:
    """Everything a tape has to keep: long names, attributes, links, whiteouts, odd ends."""
    capable = info("bin/ping", mode=0o4755, uid=7, mtime=3.25 if form == tarfile.PAX_FORMAT else 3)
    if form == tarfile.PAX_FORMAT:
        capable.pax_headers = {"SCHILY.xattr.user.note": "hello", "comment": "kept"}
    members = [
        (info("./", tarfile.DIRTYPE, mode=0o755), b""),
        (info("real/", tarfile.DIRTYPE, mode=0o755), b""),
        (info("way", tarfile.SYMTYPE, linkname="/real"), b""),
        (info("way/" + "long" * 20 + "/file"), b"through a link"),
        (capable, random.Random(4).randbytes(700_001)),
        (info("bin/again", tarfile.LNKTYPE, linkname="bin/ping"), b""),
        (info("empty"), b""),
        (info(".wh.gone"), b""),
        (info("real/.wh..wh..opq"), b""),
        (info(".wh..wh.plnk"), b"content of a file that is never written"),
        (info("dev/null", tarfile.CHRTYPE), b""),
    ]
    return tar_of(members, form) + bytes(20_480)


TWICE = tar_of([(info("a"), b"first"), (info("a"), b"second"), (info("b"), b"x")])
LAYERS = [odd_layer(tarfile.PAX_FORMAT), odd_layer(tarfile.GNU_FORMAT), TWICE, layer([])]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "var/lib/kubelet-py/images")


@pytest.fixture
def image(store: ImageStore) -> Image:
    [found] = store.import_archive(io.BytesIO(tar_file(docker_archive(LAYERS, ["team/app:v1"]))))
    return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


def command(tmp_path: Path, action: str, *arguments: str) -> int:
    return main(["image", action, "--root", str(tmp_path), *arguments])


def test_a_layer_is_played_back_bit_for_bit(store: ImageStore, image: Image) -> None:
    for data in LAYERS:
        assert b"".join(store.read_layer(digest(data))) == data
        assert store.layer_length(digest(data)) == len(data)


def test_only_a_layer_that_lost_content_is_kept_twice(
    store: ImageStore, image: Image, tmp_path: Path
) -> None:
    root = tmp_path / "var/lib/kubelet-py/images"
    assert [file.name for file in (root / "archives").iterdir()] == [digest(TWICE).partition(":")[2]]
    assert sum(file.stat().st_size for file in (root / "tapes").iterdir()) < 4000
    store.remove(image.id)
    assert not list((root / "archives").iterdir()) and not list((root / "tapes").iterdir())


def test_a_changed_store_is_noticed_when_it_is_read(store: ImageStore, image: Image) -> None:
    file = Path(image.layers[-1], "bin/ping")
    file.write_bytes(b"y" * file.stat().st_size)
    with pytest.raises(DigestMismatch, match="changed in the store"):
        for _ in store.read_layer(digest(LAYERS[0])):
            pass


@pytest.mark.parametrize("form", FORMATS)
def test_skopeo_reads_an_exported_archive_and_gives_it_back(
    form: str, store: ImageStore, image: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.tar"
    assert command(tmp_path, "export", "-o", str(file), "--format", form, "team/app:v1") == 0
    shown = json.loads(registry_server.skopeo("inspect", "--config", f"{form}:{file}"))
    assert shown["rootfs"]["diff_ids"] == [digest(data) for data in LAYERS]
    back = tmp_path / "back.tar"
    registry_server.skopeo(
        "copy", "--insecure-policy", f"{form}:{file}", f"docker-archive:{back}:docker.io/team/app:v1"
    )
    other = ImageStore(tmp_path / "other")
    with open(back, "rb") as handle:
        assert [item.id for item in other.import_archive(handle)] == [image.id]


@pytest.mark.parametrize("form", FORMATS)
def test_our_own_import_reads_several_exported_images(
    form: str, store: ImageStore, image: Image, tmp_path: Path
) -> None:
    second = docker_archive([TWICE, odd_layer(tarfile.GNU_FORMAT)], ["b:2"])
    store.import_archive(io.BytesIO(tar_file(second)))
    store.tag("team/app:v1", ["docker.io/team/app:v2"])
    out = io.BytesIO()
    export_images(store, [image.id, "b:2"], out, form)
    other = ImageStore(tmp_path / "other")
    out.seek(0)
    other.import_archive(out)
    assert [(item.id, item.repo_tags) for item in other.list()] == [
        (item.id, item.repo_tags) for item in store.list()
    ]
    again = io.BytesIO()
    export_images(other, [image.id, "b:2"], again, form)
    assert again.getvalue() == out.getvalue()


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_an_image_named_twice_is_exported_once(
    tmp_path: Path, store: ImageStore, image: Image, form: str
) -> None:
    """As docker save has it; two of its names are both in the archive."""
    other = store.tag(image.id, ["docker.io/library/other:1"])
    first, second = other.repo_tags
    file = tmp_path / "twice.tar"
    with open(file, "wb") as handle:
        assert len(export_images(store, [first, second, first], handle, form)) == 1
    with open(file, "rb") as handle:
        images = ImageStore(tmp_path / "fresh").import_archive(handle)
    assert {found.id for found in images} == {image.id} and images[-1].repo_tags == other.repo_tags
    assert len(images) == (1 if form == "docker-archive" else 2), "in OCI layouts each name is an entry"


def test_an_unknown_image_leaves_no_half_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "export", "-o", str(tmp_path / "x.tar"), "nothing") == 1
    assert "no such image" in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()


def test_a_pushed_image_is_pulled_by_skopeo_and_by_us(
    server: str, store: ImageStore, image: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{server}/team/app:v1"
    assert command(tmp_path, "push", "team/app:v1", name) == 0
    said = capsys.readouterr()
    assert "5 sent, 0 mounted, 0 already there" in said.out and "uploading" in said.err
    config = registry_server.skopeo("inspect", "--tls-verify=false", "--config", "--raw", f"docker://{name}")
    assert digest(config.encode()) == image.id
    other = ImageStore(tmp_path / "other")
    assert registry.pull(other, name).id == image.id
    # Once more: everything is there, and the same bytes are made.
    seen: list[str] = []
    again = push.push(store, "team/app:v1", target=name, progress=lambda digest, *_: seen.append(digest))
    assert (again.sent, again.present, seen) == (0, 4, []), "what is there is no upload"
    assert f"{server}/team/app@{again.digest}" in store.list()[0].repo_digests


def test_pulled_images_go_on_with_their_digest_and_are_mounted(
    server: str, store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "image.tar").write_bytes(tar_file(oci_layout([LAYERS[0], LAYERS[1]])))
    registry_server.skopeo(
        "copy",
        "--insecure-policy",
        "--dest-tls-verify=false",
        f"oci-archive:{tmp_path}/image.tar",
        f"docker://{server}/first/app:v1",
    )
    pulled = registry.pull(store, f"{server}/first/app:v1")
    done = push.push(store, pulled.id, target=f"{server}/second/app:v1")
    assert (done.sent, done.mounted) == (1, 2)  # the config is the one blob that is sent
    assert pulled.repo_digests[0].endswith(done.digest)
    assert registry.pull(ImageStore(tmp_path / "other"), f"{server}/second/app:v1").id == pulled.id


def test_large_blobs_travel_in_pieces(
    server: str, store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_PIECE", 1 << 20)
    data = layer([("noise", random.Random(1).randbytes(5 << 20))])
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive([data], ["big:1"]))))
    seen: list[int] = []
    push.push(store, "big:1", target=f"{server}/big:1", progress=lambda digest, done, size: seen.append(done))
    assert len(seen) >= 6 and seen[0] == 1 << 20
    assert registry.pull(ImageStore(tmp_path / "other"), f"{server}/big:1").id == image.id


def test_pushing_needs_an_image_a_registry_and_the_right_password(
    store: ImageStore, image: Image, tmp_path: Path
) -> None:
    with pytest.raises(ImageNotFound):
        push.push(store, "nothing:here")
    with pytest.raises(RegistryUnavailable, match="refused"):
        push.push(store, "team/app:v1", target=f"localhost:{registry_server.free_port()}/a")
    (tmp_path / "passwords").write_text("ann:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n")
    extra = f"auth: {{htpasswd: {{realm: x, path: {tmp_path}/passwords}}}}\n"
    with registry_server.registry(tmp_path / "closed", extra=extra) as where:
        with pytest.raises(PullUnauthorized, match="Could not push"):
            push.push(store, "team/app:v1", target=f"{where}/a:1")
        (tmp_path / "auth.json").write_text(
            json.dumps({"auths": {where: {"username": "ann", "password": "secret"}}})
        )
        login = ("--auth-file", f"{tmp_path}/auth.json")
        assert command(tmp_path, "push", "team/app:v1", f"{where}/a:1", *login) == 0


def test_tag_and_prune(tmp_path: Path, store: ImageStore, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        data = tar_file(docker_archive([layer([(f"f{number}", b"x")])], ["app:v1"]))
        store.import_archive(io.BytesIO(data))
    first, second = sorted(store.list(), key=lambda item: len(item.repo_tags))
    assert command(tmp_path, "tag", "app:v1", "other:v2", "localhost:5000/x:y") == 0
    tagged = store.lookup("other:v2")
    assert tagged is not None and tagged.repo_tags == (
        "docker.io/library/app:v1",
        "docker.io/library/other:v2",
        "localhost:5000/x:y",
    )
    os.mkdir(tmp_path / "var/lib/kubelet-py/images/layers" / ("a" * 64))
    capsys.readouterr()
    assert command(tmp_path, "prune") == 0
    said = capsys.readouterr().out
    assert first.id in said and "1 layers of no image" in said
    assert [item.id for item in store.list()] == [second.id] and Path(second.layers[0]).is_dir()
    container = tmp_path / "var/lib/kubelet-py/containers/c1"
    container.mkdir(parents=True)
    (container / "config.json").write_text(json.dumps({"id": "c1", "config": {"image_id": second.id}}))
    assert command(tmp_path, "prune", "--all") == 0
    assert store.list() != []
    (container / "config.json").unlink()
    assert command(tmp_path, "prune", "--all") == 0
    assert store.list() == []
