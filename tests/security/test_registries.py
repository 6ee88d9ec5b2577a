"""Registries that lie in ways of their own: checklist "Images", I02, beyond what test_images.py tries."""

from __future__ import annotations

import http.server
import io
import json
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.images import registry
from runtime.images.credentials import Credentials
from runtime.images.errors import ImageError, ManifestError, PullUnauthorized
from runtime.images.store import ImageStore
from runtime.images.unpack import unpack_layer
from tests.privileged.runtime_service.harness import Node
from tests.security.test_images import Registry, lying
from tests.unit.images.build import info, oci_layout, tar_of

__all__ = ["lying"]

pytestmark = pytest.mark.privileged

Answer = tuple[int, bytes, list[tuple[str, str]]]


class Server(http.server.ThreadingHTTPServer):
    """Answers by a function of the path; `seen` are paths and headers."""

    def __init__(self) -> None:
        self.answer: Callable[[str], Answer] = lambda path: (404, b"", [])
        self.seen: list[tuple[str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def challenge(self) -> tuple[str, str]:
        return "WWW-Authenticate", f'Bearer realm="http://{self.address}/token",service="s"'


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        code, body, headers = self.server.answer(self.path)
        self.send_response(code)
        for header in [*headers, ("Content-Length", str(len(body)))]:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def pull(folder: Path, name: str) -> None:
    mine = Credentials(username="user", password="secret")
    registry.pull(ImageStore(folder / "store"), name, credentials=mine, sleep=lambda _: None)


def test_I02_only_the_registry_says_where_credentials_go(
    lying: Registry, server: Server, tmp_path: Path
) -> None:
    """I02, CVE-2020-15157: where a blob is redirected to, somebody may ask for a token of a service of his
    own, and credentials would be shown there."""
    server.answer = lambda path: (401, b"", [server.challenge()])
    lying.redirect = f"http://{server.address}/blob"
    with pytest.raises(PullUnauthorized):
        pull(tmp_path, lying.name)
    assert {path for path, _ in server.seen} == {"/blob"}
    assert not any("Authorization" in headers for _, headers in server.seen)


def test_I02_a_challenge_without_end_is_not_searched_for_ever(server: Server, tmp_path: Path) -> None:
    """I02: 60,000 letters in which a name could begin anywhere: minutes, in which no other thread runs."""
    letters = [("WWW-Authenticate", "Bearer " + "a" * 60_000)] * 40
    server.answer = lambda path: (401, b"", letters)
    with pytest.raises(PullUnauthorized, match="unknown challenge"):
        pull(tmp_path, f"{server.address}/app:v1")


def test_I02_a_token_has_a_size_limit(server: Server, tmp_path: Path) -> None:
    """I02: nor can a token service fill the memory."""

    def answer(path: str) -> Answer:
        if path.startswith("/token"):
            return 200, json.dumps({"token": "t", "more": "x" * (2 << 20)}).encode(), []
        return 401, b"", [server.challenge()]

    server.answer = answer
    with pytest.raises(ManifestError, match="token has more than"):
        pull(tmp_path, f"{server.address}/app:v1")


NESTED = b"[" * 4000


@pytest.mark.parametrize("where", ["error", "token"])
def test_I02_answers_that_are_nested_deeply_are_refused(server: Server, tmp_path: Path, where: str) -> None:
    """I02: JSON within JSON until Python's stack is full is bad JSON, and no crash of who pulls."""

    def answer(path: str) -> Answer:
        if where == "error":
            return 404, b'{"errors":' + NESTED, []
        return (200, NESTED, []) if path.startswith("/token") else (401, b"", [server.challenge()])

    server.answer = answer
    with pytest.raises(ImageError):
        pull(tmp_path, f"{server.address}/app:v1")


@pytest.fixture
def open_to_all(tmp_path: Path) -> Iterator[Path]:
    """A folder that every user of the host may enter, as /var/lib is."""
    closed = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o1]
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path, *closed)}
    for folder, mode in modes.items():
        folder.chmod(mode | 0o11)
    yield tmp_path
    for folder, mode in modes.items():
        folder.chmod(mode)


def reaches(path: Path) -> bool:
    found = subprocess.run(["stat", str(path)], user=1000, group=1000, extra_groups=[], capture_output=True)
    return found.returncode == 0


def test_I01_setuid_files_of_images_are_out_of_reach_of_the_hosts_users(
    open_to_all: Path, node: Node
) -> None:
    """I01, CVE-2021-41103, CVE-2021-41091: or a user of the host runs, as the host's root, what a container's
    root has made."""
    top = info(".", tarfile.DIRTYPE, mode=0o777), b""
    layers = [tar_of([top, (info("su", mode=0o4755), b"#!/bin/sh")])]
    members = oci_layout(layers, "app:v1")
    store = ImageStore(open_to_all / "store")
    (image,) = store.import_archive(io.BytesIO(tar_of((info(name), data) for name, data in members)))
    inside = Path(image.layers[0], "su")
    assert inside.stat().st_mode & stat.S_ISUID and not reaches(inside)
    container = node.run(node.sandbox(), ["sh", "-c", "echo > /su; sleep 60"])
    upper = node.folder / "containers" / container / "upper"
    assert reaches(node.folder) and upper.is_dir() and not reaches(upper)


def test_I01_a_tree_that_is_deeper_than_our_stack_is_replaced(tmp_path: Path) -> None:
    """I01: a file in place of 1,500 folders in each other; removing them must not end in RecursionError."""
    names = ["/".join("a" * count) for count in range(1, 1500)]
    members = [(info(name, tarfile.DIRTYPE, mode=0o755), b"") for name in names]
    (tmp_path / "layer").mkdir()
    unpack_layer(io.BytesIO(tar_of([*members, (info("a"), b"x")])), tmp_path / "layer")
    assert (tmp_path / "layer/a").read_bytes() == b"x"


def test_I02_documents_of_archives_that_are_nested_deeply_are_refused(tmp_path: Path) -> None:
    """I02: as above, in a docker-archive."""
    with pytest.raises(ImageError, match="not JSON"):
        ImageStore(tmp_path / "store").import_archive(io.BytesIO(tar_of([(info("manifest.json"), NESTED)])))
