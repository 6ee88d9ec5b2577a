"""Pulls from Debian's docker-registry, filled by skopeo: nothing of ours on the other side of the door."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images import registry
from runtime.images.credentials import Credentials
from runtime.images.errors import DigestMismatch, PullNotFound, PullUnauthorized, RegistryUnavailable
from runtime.images.store import ImageStore

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(
        not Path("/usr/bin/docker-registry").exists(), reason="docker-registry is not installed"
    ),
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
]

# What `htpasswd -nbBC 4 ann secret` prints.
PASSWORDS = "ann:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, port: int, extra: str = "") -> subprocess.Popen[bytes]:
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{extra}"
    )
    process = subprocess.Popen(
        ["/usr/bin/docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(3000):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError("docker-registry did not start")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    process = start(tmp_path, port)
    yield f"localhost:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def push(tmp_path: Path, where: str, *, extra: tuple[str, ...] = ()) -> None:
    """Make a two-layer image by hand and push it with skopeo."""
    from tests.unit.images.build import layer, oci_layout, tar_file

    first = layer([("etc/", None), ("etc/name", b"first"), ("gone", b"x")])
    second = layer([("etc/name", b"second"), (".wh.gone", b"")])
    (tmp_path / "image.tar").write_bytes(tar_file(oci_layout([first, second])))
    source = f"oci-archive:{tmp_path}/image.tar"
    subprocess.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            *extra,
            source,
            f"docker://{where}",
        ],
        check=True,
        capture_output=True,
    )


def test_a_tag_is_pulled_and_unpacked(server: str, store: ImageStore, tmp_path: Path) -> None:
    push(tmp_path, f"{server}/team/app:v1")
    image = registry.pull(store, f"{server}/team/app:v1")
    assert image.repo_tags == (f"{server}/team/app:v1",)
    assert image.repo_digests[0].startswith(f"{server}/team/app@sha256:")
    assert [Path(folder, "etc/name").read_text() for folder in image.layers] == ["second", "first"]
    assert os.stat(f"{image.layers[0]}/gone").st_rdev == 0


def test_a_digest_is_pulled_without_a_tag(server: str, store: ImageStore, tmp_path: Path) -> None:
    push(tmp_path, f"{server}/team/app:v1")
    digest = registry.pull(store, f"{server}/team/app:v1").repo_digests[0]
    other = ImageStore(tmp_path / "other")
    image = registry.pull(other, digest)
    assert image.repo_tags == () and image.repo_digests == (digest,)
    assert other.lookup(digest) == image


def test_docker_schema_2_manifests_are_understood(server: str, store: ImageStore, tmp_path: Path) -> None:
    push(tmp_path, f"{server}/app:v2s2", extra=("--format", "v2s2"))
    assert len(registry.pull(store, f"{server}/app:v2s2").layers) == 2


def test_present_layers_are_not_fetched_again(server: str, store: ImageStore, tmp_path: Path) -> None:
    push(tmp_path, f"{server}/app:v1")
    seen: list[str] = []
    registry.pull(store, f"{server}/app:v1", progress=lambda digest, done, size: seen.append(digest))
    assert seen
    seen.clear()
    registry.pull(store, f"{server}/app:v1", progress=lambda digest, done, size: seen.append(digest))
    assert seen == []


def test_an_unknown_tag_is_not_found(server: str, store: ImageStore) -> None:
    with pytest.raises(PullNotFound, match="check the name"):
        registry.pull(store, f"{server}/nothing:here")


def test_nobody_listening_is_unavailable(store: ImageStore) -> None:
    with pytest.raises(RegistryUnavailable, match="refused"):
        registry.pull(store, f"localhost:{free_port()}/app")


def test_basic_credentials_are_needed_and_used(store: ImageStore, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "passwords").write_text(PASSWORDS)
    process = start(tmp_path, port, f"auth: {{htpasswd: {{realm: x, path: {tmp_path}/passwords}}}}\n")
    try:
        where = f"localhost:{port}/app:v1"
        push(tmp_path, where, extra=("--dest-creds", "ann:secret"))
        with pytest.raises(PullUnauthorized, match="no credentials"):
            registry.pull(store, where)
        with pytest.raises(PullUnauthorized):
            registry.pull(store, where, credentials=Credentials("ann", "wrong"))
        assert registry.pull(store, where, credentials=Credentials("ann", "secret")).layers
    finally:
        process.kill()
        process.wait()


def test_a_blob_changed_on_the_server_is_refused(server: str, store: ImageStore, tmp_path: Path) -> None:
    """I02: the digest of every blob is checked."""
    push(tmp_path, f"{server}/app:v1")
    blobs = sorted(
        tmp_path.glob("data/docker/registry/v2/blobs/sha256/*/*/data"), key=lambda p: p.stat().st_size
    )
    for blob in blobs:
        data = bytearray(blob.read_bytes())
        if data[:2] == b"\x1f\x8b":
            data[len(data) // 2] ^= 1
            blob.write_bytes(bytes(data))
    with pytest.raises(DigestMismatch):
        registry.pull(store, f"{server}/app:v1")
    assert store.list() == []


class _Recorder(http.server.BaseHTTPRequestHandler):
    """A stranger's host, which answers everything and remembers the headers it was sent."""

    seen: list[dict[str, str]]
    blobs: dict[str, bytes]

    def do_GET(self) -> None:
        type(self).seen.append({"path": self.path, **dict(self.headers)})
        body = type(self).blobs.get(self.path.rpartition("/")[2].partition("?")[0], b'{"token": "t0ken"}')
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_tokens_are_fetched_and_never_follow_a_redirect_to_another_host(
    store: ImageStore, tmp_path: Path
) -> None:
    """I02: the bearer token and the password stay with the registry and its token service."""
    from tests.unit.images.build import layer, oci_layout

    members = dict(oci_layout([layer([("file", b"content")])]))
    blobs = {name.rpartition("/")[2]: data for name, data in members.items() if name.startswith("blobs/")}
    index = json.loads(members["index.json"])["manifests"][0]

    class Stranger(_Recorder):
        seen: list[dict[str, str]] = []

    Stranger.blobs = blobs
    stranger = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger)

    class Registry(_Recorder):
        seen: list[dict[str, str]] = []

        def do_GET(self) -> None:
            type(self).seen.append({"path": self.path, **dict(self.headers)})
            if self.path.startswith("/token"):
                return super().do_GET()
            if self.headers.get("Authorization") != "Bearer t0ken":
                self.send_response(401)
                realm = f'Bearer realm="http://127.0.0.1:{self.server.server_port}/token",service="s",scope="r:x:pull"'
                self.send_header("WWW-Authenticate", realm)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            value = self.path.rpartition("/")[2]
            if "/manifests/" in self.path:
                body = blobs[index["digest"].partition(":")[2]]
                self.send_response(200)
                self.send_header("Content-Type", index["mediaType"])
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return None
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{stranger.server_port}/{value.partition(':')[2]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

    Registry.blobs = {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threads = [threading.Thread(target=item.serve_forever, daemon=True) for item in (server, stranger)]
    for thread in threads:
        thread.start()
    try:
        image = registry.pull(
            store, f"127.0.0.1:{server.server_port}/app:v1", credentials=Credentials("ann", "secret")
        )
    finally:
        for item in (server, stranger):
            item.shutdown()
            item.server_close()
    assert Path(image.layers[0], "file").read_bytes() == b"content"
    assert len(Stranger.seen) == 2
    assert not [request for request in Stranger.seen if "Authorization" in request]
    asked = [request for request in Registry.seen if request["path"].startswith("/token")]
    assert asked[0]["Authorization"].startswith("Basic ")
