"""Every form in which a registry may hold an image: indexes by platform, both dialects, all compressions."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import zstandard

from runtime.images import manifest as documents
from runtime.images import push, registry
from runtime.images.errors import NoMatchingPlatform
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.unit.images.build import config_for, digest, docker_archive, layer, tar_file

pytestmark = registry_server.needed
OURS = documents.host_platform()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def put_blob(server: str, data: bytes) -> dict[str, Any]:
    """Upload with nothing of ours; the descriptor without its media type."""
    begun = requests.post(f"http://{server}/v2/app/blobs/uploads/", timeout=10)
    done = requests.put(begun.headers["Location"], params={"digest": digest(data)}, data=data, timeout=10)
    assert done.status_code == 201, done.text
    return {"digest": digest(data), "size": len(data)}


def put_manifest(server: str, tag: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    kind = document["mediaType"]
    url = f"http://{server}/v2/app/manifests/{tag}"
    done = requests.put(url, data=data, headers={"Content-Type": kind}, timeout=10)
    assert done.status_code == 201, done.text
    return {"mediaType": kind, "digest": digest(data), "size": len(data)}


def put_image(
    server: str, tag: str, layers: list[tuple[str, bytes, bytes]], *, docker: bool
) -> dict[str, Any]:
    """`layers` are (media type, blob, plain archive); the manifest's descriptor."""
    config = config_for([plain for _, _, plain in layers], Cmd=[tag])
    document = {
        "schemaVersion": 2,
        "mediaType": documents.DOCKER_MANIFEST if docker else documents.OCI_MANIFEST,
        "config": {
            "mediaType": documents.DOCKER_CONFIG if docker else documents.OCI_CONFIG,
            **put_blob(server, config),
        },
        "layers": [{"mediaType": kind, **put_blob(server, blob)} for kind, blob, _ in layers],
    }
    return put_manifest(server, tag, document)


def content(image: Any) -> list[str]:
    return [Path(folder, "file").read_text() for folder in reversed(image.layers)]


@pytest.mark.parametrize("docker", [False, True], ids=["oci", "docker"])
def test_the_manifest_for_the_machine_is_taken_from_an_index(
    server: str, store: ImageStore, docker: bool
) -> None:
    plain = layer([("file", b"same")])
    entries = []
    for architecture in ("s390x", OURS.architecture, "riscv64"):
        entry = put_image(server, architecture, [(documents.OCI_LAYER, plain, plain)], docker=docker)
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture}})
    kind = documents.DOCKER_INDEX if docker else documents.OCI_INDEX
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    top = put_manifest(server, "all", index)
    image = registry.pull(store, f"{server}/app:all")
    assert image.config["Cmd"] == [OURS.architecture]
    assert image.repo_digests == (f"{server}/app@{top['digest']}",), "as crictl shows it: the index's digest"
    assert registry.pull(store, f"{server}/app@{top['digest']}").id == image.id
    put_manifest(server, "foreign", {**index, "manifests": [entries[0], entries[2]]})
    with pytest.raises(NoMatchingPlatform, match=f"platform {OURS} .has linux/riscv64, linux/s390x"):
        registry.pull(store, f"{server}/app:foreign")


def test_plain_gzip_and_zstd_layers_may_stand_in_one_image(server: str, store: ImageStore) -> None:
    plains = [layer([("file", text)]) for text in (b"plain", b"gzip", b"zstd", b"zstd without a size")]
    engine = zstandard.ZstdCompressor()
    streamed = io.BytesIO()
    with engine.stream_writer(streamed, closefd=False) as writer:
        writer.write(plains[3])
    layers = [
        (documents.OCI_LAYER, plains[0], plains[0]),
        (f"{documents.OCI_LAYER}+gzip", gzip.compress(plains[1]), plains[1]),
        (f"{documents.OCI_LAYER}+zstd", engine.compress(plains[2]), plains[2]),
        (f"{documents.OCI_LAYER}+zstd", streamed.getvalue(), plains[3]),
    ]
    put_image(server, "mixed", layers, docker=False)
    image = registry.pull(store, f"{server}/app:mixed")
    assert content(image) == ["plain", "gzip", "zstd", "zstd without a size"]


def test_zstd_as_skopeo_makes_it(server: str, store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(tar_file(docker_archive([layer([("file", b"x" * 9999)])])))
    registry_server.skopeo(
        "copy", "--insecure-policy", "--dest-tls-verify=false", "--format", "oci",
        "--dest-compress-format", "zstd", f"docker-archive:{tmp_path}/image.tar", f"docker://{server}/app:z",
    )  # fmt: skip
    raw = json.loads(
        registry_server.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{server}/app:z")
    )
    assert raw["layers"][0]["mediaType"].endswith("+zstd"), "else this test shows nothing"
    assert content(registry.pull(store, f"{server}/app:z")) == ["x" * 9999]


def test_layers_are_shared_between_images_and_leave_with_the_last(
    server: str, store: ImageStore, tmp_path: Path
) -> None:
    shared = layer([("file", b"shared")])
    for number in (1, 2):
        own = layer([("file", b"%d" % number)])
        made = ImageStore(tmp_path / f"origin{number}")
        [image] = made.import_archive(io.BytesIO(tar_file(docker_archive([shared, own], ["app:v1"]))))
        push.push(made, image.id, target=f"{server}/app:v{number}")
    seen: set[str] = set()
    first = registry.pull(store, f"{server}/app:v1")
    registry.pull(store, f"{server}/app:v2", progress=lambda blob, done, size: seen.add(blob))
    assert len(seen) == 1, "the shared layer travels once"
    assert len(list((tmp_path / "store/layers").iterdir())) == 3
    store.remove(f"{server}/app:v1")
    assert not Path(first.layers[0]).exists() and Path(first.layers[1]).exists()
    store.remove(f"{server}/app:v2")
    assert not [*(tmp_path / "store/layers").iterdir(), *(tmp_path / "store/blobs/sha256").iterdir()]
