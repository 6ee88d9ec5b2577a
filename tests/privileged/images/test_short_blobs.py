"""Registries whose blobs are not as long as the manifest says: told as such, whatever HTTP made of it."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.images import push, registry
from runtime.images.errors import DigestMismatch
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.privileged.images.test_mirrors import _Door, door
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = registry_server.needed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


@pytest.fixture
def size(tmp_path: Path, server: str) -> int:
    """Of the only layer of app:v1, as it is in the registry."""
    data = layer([("noise", random.Random(1).randbytes(900_000))])
    store = ImageStore(tmp_path / "origin")
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive([data], ["app:v1"]))))
    push.push(store, image.id, target=f"{server}/app:v1")
    return max(
        file.stat().st_size for file in tmp_path.glob("registry/**/blobs/sha256/*/*/data") if file.is_file()
    )


class Cut(_Door):
    """Has only `has` bytes of large blobs. `lengths`: whether it tells how many bytes it sends, and has."""

    has = 9 << 16
    lengths = True
    announces_all = False
    announces_more = 0
    chunked = False

    def spoil(self) -> bool:
        if "/blobs/" not in self.path:
            return False
        whole: list[bytes] = []
        sent, self.wfile = self.wfile, io.BytesIO()
        wanted = self.headers["Range"]
        del self.headers["Range"]
        self.relay(lambda body: whole.append(body) or body)  # type: ignore[func-returns-value]
        self.wfile = sent
        body = whole[0]
        first = int(wanted[6:-1]) if wanted else 0
        if len(body) > 500_000:
            self.answer(body[: self.has], first, len(body))
        else:
            self.answer(body, first, len(body))
        self.close_connection = True
        return True

    def answer(self, body: bytes, first: int, whole: int) -> None:
        if first >= len(body) and first:
            self.send_response(416)
            if self.lengths:
                self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            total = len(body) if self.lengths else "*"
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{total}")
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif self.lengths or self.announces_all:
            self.send_header("Content-Length", str((whole if self.announces_all else len(body)) - first))
        self.end_headers()
        part = body[first:]
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part) if self.chunked else part)


@pytest.mark.parametrize(
    "how",
    [
        {"lengths": True},
        {"lengths": False},
        {"lengths": False, "announces_all": True},
        {"lengths": True, "announces_all": True},
        {"lengths": False, "chunked": True},
    ],
    ids=["length", "no length", "whole length, no range", "whole length", "chunked"],
)
def test_a_blob_shorter_than_the_manifest_says_is_told_as_such(
    tmp_path: Path, server: str, size: int, how: dict[str, Any]
) -> None:
    class Door(Cut):
        pass

    for key, value in how.items():
        setattr(Door, key, value)
    store = ImageStore(tmp_path / "store")
    wrong = f"blob sha256:[0-9a-f]{{64}} has {9 << 16} bytes, the manifest says {size}"
    with door(Door, server) as where, pytest.raises(DigestMismatch, match=wrong):
        registry.pull(store, f"{where}/app:v1", sleep=lambda _: None)
    assert store.list() == [] and not list((tmp_path / "store/partial").iterdir())


def test_a_blob_longer_than_the_manifest_says_is_not_fetched(
    tmp_path: Path, server: str, size: int
) -> None:
    class Long(Cut):
        def answer(self, body: bytes, first: int, whole: int) -> None:
            super().answer(body + b"more" if whole > 500_000 else body, first, whole)

    Long.has = 10**9
    steps: list[int] = []
    wrong = f"has {size + 4} bytes, the manifest says {size}"
    with door(Long, server) as where, pytest.raises(DigestMismatch, match=wrong):
        name = f"{where}/app:v1"
        registry.pull(ImageStore(tmp_path / "store"), name, progress=lambda _, done, __: steps.append(done))
    assert not steps


def test_a_line_that_breaks_without_lengths_is_resumed(tmp_path: Path, server: str, size: int) -> None:
    class Breaking(Cut):
        lengths, has = False, 10**9

        def answer(self, body: bytes, first: int, whole: int) -> None:
            if whole > 500_000 and not first:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body[:300_000])
            else:
                super().answer(body, first, whole)

    with door(Breaking, server) as where:
        image = registry.pull(ImageStore(tmp_path / "store"), f"{where}/app:v1", sleep=lambda _: None)
    assert image.layers


def test_a_server_that_sends_another_part_is_asked_for_the_whole(
    tmp_path: Path, server: str, size: int
) -> None:
    class Elsewhere(Cut):
        has = 10**9

        def answer(self, body: bytes, first: int, whole: int) -> None:
            if whole > 500_000 and not first and not self.asked.count(self.path) > 1:
                self.send_response(200)
                self.send_header("Content-Length", str(whole))
                self.end_headers()
                self.wfile.write(body[:300_000])
            elif first:
                super().answer(body, first - 100_000, whole)
            else:
                super().answer(body, 0, whole)

    with door(Elsewhere, server) as where:
        image = registry.pull(ImageStore(tmp_path / "store"), f"{where}/app:v1", sleep=lambda _: None)
    assert image.layers
