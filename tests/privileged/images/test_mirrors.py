"""Mirrors, proxies and bad connections, with real registries behind doors that misbehave on purpose."""

from __future__ import annotations

import http.client
import http.server
import io
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kubelet_py.cli.main import main
from runtime.images import push, registry
from runtime.images.errors import DigestMismatch, PullNotFound, RegistryUnavailable
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = registry_server.needed
BLOB = 3 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


@pytest.fixture
def image_id(server: str, tmp_path: Path) -> str:
    """An image with one large layer and some small ones, in the registry as team/app:v1."""
    layers = [layer([("noise", random.Random(1).randbytes(BLOB))])]
    layers += [layer([(f"small{number}", bytes([number]) * 999)]) for number in range(4)]
    store = ImageStore(tmp_path / "origin")
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive(layers, ["team/app:v1"]))))
    push.push(store, image.id, target=f"{server}/team/app:v1")
    return image.id


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


class _Door(http.server.BaseHTTPRequestHandler):
    """Hands every GET to the registry behind it; subclasses spoil the answers."""

    protocol_version = "HTTP/1.1"
    behind = ""
    asked: list[str]
    headers_seen: list[dict[str, str]]

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        type(self).headers_seen.append(dict(self.headers))
        if not self.spoil():
            self.relay()

    def spoil(self) -> bool:
        return False

    def relay(self, change: Callable[[bytes], bytes] = lambda body: body) -> None:
        connection = http.client.HTTPConnection(self.behind)
        wanted = {key: value for key, value in self.headers.items() if key in ("Accept", "Range")}
        path = urlsplit(self.path).path
        connection.request("GET", path, headers=wanted)
        answer = connection.getresponse()
        body = change(answer.read())
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key in ("Content-Type", "Docker-Content-Digest", "Content-Range", "Content-Length"):
                self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def door(kind: type[_Door], behind: str) -> Iterator[str]:
    kind.behind, kind.asked, kind.headers_seen = behind, [], []
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def hosts(tmp_path: Path, domain: str, text: str) -> Path:
    file = tmp_path / "etc/kubelet-py/registries" / domain / "hosts.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file.parent.parent


def test_a_mirror_over_plain_http_serves_another_registrys_images(
    server: str, image_id: str, tmp_path: Path, store: ImageStore
) -> None:
    """docker.io is not there at all: everything comes from the mirror, asked in the registry's name."""

    class Mirror(_Door):
        pass

    with door(Mirror, server) as where:
        text = f'[host."http://{where}"]\n[host."http://{where}".header]\nx-lab = "yes"\n'
        folder = hosts(tmp_path, "docker.io", text)
        image = registry.pull(store, "team/app:v1", hosts_dir=folder)
        assert image.id == image_id and image.repo_tags == ("docker.io/team/app:v1",)
        assert all(path.endswith("?ns=docker.io") for path in Mirror.asked)
        assert all(seen["x-lab"] == "yes" for seen in Mirror.headers_seen)
        # The command line reads the same file, below --root.
        assert main(["image", "pull", "--root", str(tmp_path), "--quiet", "team/app:v1"]) == 0


def test_credentials_of_the_registry_are_not_for_its_mirrors(
    server: str, image_id: str, tmp_path: Path, store: ImageStore
) -> None:
    from runtime.images.credentials import Credentials

    class Mirror(_Door):
        def spoil(self) -> bool:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="mirror"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

    with door(Mirror, server) as where:
        folder = hosts(tmp_path, server, f'[host."http://{where}"]\n')
        name = f"{server}/team/app:v1"
        assert registry.pull(store, name, hosts_dir=folder, credentials=Credentials("a", "b")).id == image_id
        assert Mirror.asked and not [seen for seen in Mirror.headers_seen if "Authorization" in seen]


def test_a_mirror_that_lacks_the_image_lies_or_is_dead_is_passed_over(
    server: str, image_id: str, tmp_path: Path, store: ImageStore
) -> None:
    class Liar(_Door):
        def spoil(self) -> bool:
            if "/blobs/" not in self.path:
                return False
            self.relay(lambda body: body[:-1] + b"?")
            return True

    dead = registry_server.free_port()
    with registry_server.registry(tmp_path / "empty") as empty, door(Liar, server) as liar:
        text = "".join(f'[host."http://{where}"]\n' for where in (f"127.0.0.1:{dead}", empty, liar))
        folder = hosts(tmp_path, server, text)
        assert registry.pull(store, f"{server}/team/app:v1", hosts_dir=folder).id == image_id
        assert [path for path in Liar.asked if "/blobs/" in path]
    with pytest.raises(PullNotFound):
        registry.pull(store, f"{server}/team/nothing:v1", hosts_dir=folder)


def test_a_mirror_without_resolve_is_asked_only_by_digest(
    server: str, image_id: str, tmp_path: Path, store: ImageStore
) -> None:
    class Mirror(_Door):
        pass

    with door(Mirror, server) as where:
        folder = hosts(tmp_path, server, f'[host."http://{where}"]\ncapabilities = ["pull"]\n')
        registry.pull(store, f"{server}/team/app:v1", hosts_dir=folder)
        assert Mirror.asked and all("sha256:" in path for path in Mirror.asked)


def test_a_transfer_that_breaks_off_goes_on_where_it_was_with_the_next_server(
    server: str, image_id: str, tmp_path: Path, store: ImageStore
) -> None:
    ranges: list[str] = []

    class Breaking(_Door):
        def spoil(self) -> bool:
            if "/blobs/" not in self.path:
                return False

            def half(body: bytes) -> bytes:
                self.close_connection = True
                return body[: len(body) // 2]

            ranges.append(self.headers.get("Range", ""))
            self.relay(half)
            return True

    got: dict[str, list[int]] = {}
    pauses: list[float] = []
    with door(Breaking, server) as where:
        folder = hosts(tmp_path, server, f'[host."http://{where}"]\n')
        image = registry.pull(
            store,
            f"{server}/team/app:v1",
            hosts_dir=folder,
            sleep=pauses.append,
            progress=lambda digest, done, size: got.setdefault(digest, []).append(done),
        )
    assert image.id == image_id
    assert [item for item in ranges if item.startswith("bytes=")], ranges
    large = max(got.values(), key=lambda steps: steps[-1])
    assert large == sorted(set(large)), "no byte was counted twice"
    assert pauses and max(pauses) > min(pauses)


def test_a_server_without_ranges_and_one_that_is_busy_are_borne_with(
    server: str, image_id: str, store: ImageStore
) -> None:
    class Busy(_Door):
        seen: dict[str, int] = {}

        def spoil(self) -> bool:
            path = self.path
            self.seen[path] = self.seen.get(path, 0) + 1
            if self.seen[path] > 1:
                return False
            self.send_response(503)
            self.send_header("Retry-After", "7")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

    pauses: list[float] = []
    with door(Busy, server) as where:
        assert registry.pull(store, f"{where}/team/app:v1", sleep=pauses.append).id == image_id
    assert pauses and set(pauses) == {7.0}


def test_a_registry_that_stays_busy_is_unavailable_after_some_tries(store: ImageStore) -> None:
    class Busy(_Door):
        def spoil(self) -> bool:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True

    pauses: list[float] = []
    with door(Busy, "") as where, pytest.raises(RegistryUnavailable, match="503"):
        registry.pull(store, f"{where}/team/app:v1", sleep=pauses.append)
    assert pauses == [0.5, 1.0, 2.0]


def test_layers_travel_at_the_same_time(server: str, image_id: str, store: ImageStore) -> None:
    together, met = threading.Barrier(3), threading.Event()

    class Waiting(_Door):
        def spoil(self) -> bool:
            small = "/blobs/" in self.path and image_id.partition(":")[2] not in self.path
            if small and not met.is_set():
                try:
                    together.wait(10)
                except threading.BrokenBarrierError:
                    return False
                met.set()
            return False

    with door(Waiting, server) as where:
        assert registry.pull(store, f"{where}/team/app:v1").id == image_id
    assert met.is_set()


def test_the_environments_proxy_is_used_but_never_for_loopback(
    server: str, image_id: str, tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proxy(_Door):
        pass

    with door(Proxy, server) as where:
        monkeypatch.setenv("http_proxy", f"http://{where}")
        monkeypatch.setenv("no_proxy", "quiet.example")
        folder = hosts(tmp_path, "lab.example:5000", 'server = "http://lab.example:5000"\n')
        name = "lab.example:5000/team/app:v1"
        assert registry.pull(store, name, hosts_dir=folder).id == image_id
        assert all(path.startswith("http://lab.example:5000/v2/") for path in Proxy.asked)
        Proxy.asked.clear()
        registry.pull(ImageStore(tmp_path / "other"), f"{server}/team/app:v1")
        assert Proxy.asked == []


def test_a_layer_that_every_server_spoils_is_refused(server: str, image_id: str, store: ImageStore) -> None:
    class Liar(_Door):
        def spoil(self) -> bool:
            if "/blobs/" not in self.path:
                return False
            self.relay(lambda body: b"?" + body[1:])
            return True

    with door(Liar, server) as where, pytest.raises(DigestMismatch):
        registry.pull(store, f"{where}/team/app:v1")
    assert store.list() == []
