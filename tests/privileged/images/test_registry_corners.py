"""What registries may do and Debian's does not: asked of one that is made up for each test."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from runtime.images import manifest, registry
from runtime.images.credentials import Credentials
from runtime.images.errors import ManifestError, PullUnauthorized
from runtime.images.store import ImageStore
from tests.unit.images.build import config_for, layer, tar_of

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="layers are unpacked by root"),
]


def digest(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def pointer(media_type: str, data: bytes, algorithm: str = "sha256", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data, algorithm), "size": len(data), **more}


class Registry(http.server.BaseHTTPRequestHandler):
    """Serves `contents` by tag or digest."""

    contents: dict[str, tuple[str, bytes]]
    asked: list[tuple[str, str]]
    where = ""
    address_family = socket.AF_INET

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers.get("Authorization", "")))
        if not self.spoil():
            self.serve()

    def spoil(self) -> bool:
        return False

    def serve(self) -> None:
        media_type, data = self.contents.get(urlsplit(self.path).path.rpartition("/")[2], ("", b""))
        first = int(self.headers["Range"][6:-1]) if "Range" in self.headers else 0
        self.send_response((206 if first else 200) if media_type else 404)
        self.send_header("Content-Type", media_type)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        self.wfile.write(data[first:])

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def serving(kind: type[Registry], contents: dict[str, tuple[str, bytes]]) -> Iterator[str]:
    class Server(http.server.ThreadingHTTPServer):
        address_family = kind.address_family
        daemon_threads = True

    kind.contents, kind.asked = contents, []
    host = "::1" if kind.address_family == socket.AF_INET6 else "127.0.0.1"
    made = Server((host, 0), kind)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    kind.where = f"[{host}]:{made.server_port}" if ":" in host else f"{host}:{made.server_port}"
    try:
        yield kind.where
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


LAYERS = [layer([("noise", random.Random(5).randbytes(300_000))]), tar_of([])]


def image(algorithm: str = "sha256") -> dict[str, tuple[str, bytes]]:
    """An image of a large and an empty layer, as v1 and by its digest."""
    config, packed = config_for(LAYERS), [gzip.compress(item, 1, mtime=0) for item in LAYERS]
    document = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": pointer(manifest.OCI_CONFIG, config, algorithm),
            "layers": [pointer(f"{manifest.OCI_LAYER}+gzip", item, algorithm) for item in packed],
        }
    ).encode()
    found = {digest(data, algorithm): ("application/octet-stream", data) for data in (config, *packed)}
    return {
        **found,
        "v1": (manifest.OCI_MANIFEST, document),
        digest(document, algorithm): (manifest.OCI_MANIFEST, document),
    }


def test_a_token_that_expires_in_the_middle_of_a_blob_is_renewed(tmp_path: Path) -> None:
    class Expiring(Registry):
        tokens: list[str] = []

        def spoil(self) -> bool:
            if self.path.startswith("/token"):
                self.tokens.append(f"t{len(self.tokens)}")
                body = json.dumps({"token": self.tokens[-1], "expires_in": 60}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return True
            if not self.tokens or self.headers.get("Authorization") != f"Bearer {self.tokens[-1]}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Negotiate")
                self.send_header("WWW-Authenticate", 'Basic realm="people"')
                scope = "repository:app:pull repository:base:pull"
                realm = f"http://{self.where}/token"
                bearer = f'Bearer realm="{realm}", service=lab, scope="{scope}"'
                self.send_header("WWW-Authenticate", bearer)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
            data = self.contents.get(self.path.rpartition("/")[2], ("", b""))[1]
            if len(data) > 200_000 and "Range" not in self.headers:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:200_000])
                self.tokens.append("expired")
                return True
            return False

    with serving(Expiring, image()) as where:
        store = ImageStore(tmp_path)
        pulled = registry.pull(
            store, f"{where}/app:v1", credentials=Credentials("ann", "secret"), sleep=lambda _: None
        )
        asked = [parse_qs(urlsplit(path).query) for path, _ in Expiring.asked if path.startswith("/token")]
        sent = [given for path, given in Expiring.asked if not path.startswith("/token")]
    assert Path(pulled.layers[-1], "noise").stat().st_size == 300_000
    assert len(asked) >= 2 and not any(given.startswith("Basic") for given in sent)
    for query in asked:
        assert query == {"service": ["lab"], "scope": ["repository:app:pull", "repository:base:pull"]}


def test_without_a_token_service_the_password_is_sent(tmp_path: Path) -> None:
    class Basic(Registry):
        def spoil(self) -> bool:
            if self.headers.get("Authorization") == Credentials("ann", "secret").basic():
                return False
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Negotiate, Basic realm="people"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

    with serving(Basic, image()) as where:
        store, name = ImageStore(tmp_path), f"{where}/app:v1"
        assert registry.pull(store, name, credentials=Credentials("ann", "secret")).layers
        with pytest.raises(PullUnauthorized, match="no credentials"):
            registry.pull(store, name)


def test_sha512_digests_are_checked_like_others(tmp_path: Path) -> None:
    contents = image("sha512")
    named = next(name for name, (kind, _) in contents.items() if kind and name.startswith("sha512:"))
    document = contents["v1"][1]
    with serving(Registry, contents) as where:
        by_tag = registry.pull(ImageStore(tmp_path / "one"), f"{where}/app:v1")
        name = f"{where}/app@{digest(document, 'sha512')}"
        by_digest = registry.pull(ImageStore(tmp_path / "two"), name)
        assert by_tag.id == by_digest.id and by_digest.repo_digests == (name,)
        assert ImageStore(tmp_path / "two").lookup(name) == by_digest
        contents[named] = (contents[named][0], contents[named][1][:-1] + b"?")
        with pytest.raises((ManifestError, registry.DigestMismatch)):
            registry.pull(ImageStore(tmp_path / "three"), f"{where}/app:v1")


def test_attestations_in_an_index_are_passed_over(tmp_path: Path) -> None:
    contents = image()
    document = contents["v1"][1]
    host = manifest.host_platform()
    real = {"os": host.os, "architecture": host.architecture}
    other = {"os": "unknown", "architecture": "unknown"}
    notes = {"vnd.docker.reference.type": "attestation-manifest"}
    inner = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_INDEX,
            "manifests": [
                pointer(manifest.OCI_MANIFEST, b"{}", platform=other, annotations=notes),
                pointer(manifest.OCI_MANIFEST, document, platform=real),
            ],
        }
    ).encode()
    outer = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_INDEX,
            "manifests": [pointer(manifest.OCI_INDEX, inner, platform=real)],
        }
    ).encode()
    contents |= {
        digest(inner): (manifest.OCI_INDEX, inner),
        digest(outer): (manifest.OCI_INDEX, outer),
        "v2": (manifest.OCI_INDEX, outer),
    }
    with serving(Registry, contents) as where:
        pulled = registry.pull(ImageStore(tmp_path), f"{where}/app:v2")
    assert len(pulled.layers) == 2 and pulled.repo_digests == (f"{where}/app@{digest(outer)}",)


def test_artifacts_are_refused_by_what_they_are(tmp_path: Path) -> None:
    empty = b"{}"
    chart = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "artifactType": "application/vnd.cncf.helm.chart",
            "config": pointer("application/vnd.cncf.helm.config.v1+json", empty),
            "layers": [pointer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", empty)],
        }
    ).encode()
    with serving(Registry, {"v1": (manifest.OCI_MANIFEST, chart)}) as where:
        with pytest.raises(ManifestError, match=r"helm\.config\.v1\+json' is no container image"):
            registry.pull(ImageStore(tmp_path), f"{where}/chart:v1")
        assert len(Registry.asked) == 1, "nothing more is fetched of it"


def test_an_ipv6_address_is_a_registry_too(tmp_path: Path) -> None:
    class Six(Registry):
        address_family = socket.AF_INET6

    with serving(Six, image()) as where:
        assert where.startswith("[::1]:")
        pulled = registry.pull(ImageStore(tmp_path), f"{where}/app:v1")
    assert pulled.repo_tags == (f"{where}/app:v1",)
