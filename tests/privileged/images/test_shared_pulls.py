"""Pulls of one image by several processes at the same time: each blob is fetched once, whoever dies."""

from __future__ import annotations

import contextlib
import io
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.images import push, registry
from runtime.images.errors import PullError
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.privileged.images.test_mirrors import _Door, door
from tests.unit.images.build import docker_archive, layer, tar_file

pytestmark = registry_server.needed
REPOSITORY = Path(__file__).resolve().parents[3]
SIZE = 2 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


@pytest.fixture
def image_id(tmp_path: Path, server: str) -> str:
    """Three layers of 2 MiB, in the registry as app:v1."""
    layers = [layer([(f"noise{n}", random.Random(n).randbytes(SIZE))]) for n in range(3)]
    store = ImageStore(tmp_path / "origin")
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive(layers, ["app:v1"]))))
    push.push(store, image.id, target=f"{server}/app:v1")
    return image.id


class Slow(_Door):
    """Sends large blobs as half, and the other half when `go` is set."""

    go: threading.Event
    halves: Counter[str]

    def spoil(self) -> bool:
        if "/blobs/" not in self.path or "Range" in self.headers:
            return False
        rest: list[bytes] = []

        def half(body: bytes) -> bytes:
            cut = len(body) // 2 if len(body) > SIZE // 2 else len(body)
            rest.append(body[cut:])
            return body[:cut]

        self.relay(half)
        if rest[0]:
            type(self).halves[self.path] += 1
            self.go.wait(300)
            with contextlib.suppress(ConnectionError):  # who asked may have been killed
                self.wfile.write(rest[0])
        return True


def until(what: Callable[[], bool], why: str) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError(why)


Run = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts the command, for the node below tmp_path/node."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "kubelet_py.cli.main", "image", "pull", "--root"]
        pull = subprocess.Popen(
            [*command, str(tmp_path / "node"), name],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(pull)
        return pull

    yield start
    for pull in started:
        pull.kill()
        pull.communicate()


@pytest.fixture
def slow(server: str) -> Iterator[tuple[type[Slow], str]]:
    class Door(Slow):
        go, halves = threading.Event(), Counter()

    with door(Door, server) as where:
        yield Door, f"{where}/app:v1"
        Door.go.set()


def blobs_asked(kind: type[_Door], image_id: str) -> Counter[str]:
    return Counter(path for path in kind.asked if "/blobs/" in path and image_id not in path)


def test_four_processes_fetch_each_layer_once(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    kind, name = slow
    pulls = [run(name) for _ in range(4)]
    config = f"/v2/app/blobs/{image_id}"
    until(lambda: kind.asked.count(config) == 4 and len(kind.halves) == 3, "all pulls are at the layers")
    time.sleep(0.5)  # so that each has looked at what the others do
    kind.go.set()
    outputs = [pull.communicate(timeout=120)[0] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0] * 4, outputs
    asked = blobs_asked(kind, image_id)
    assert len(asked) == 3 and set(asked.values()) == {1}, asked
    waited = [text for text in outputs if "waiting for another pull" in text]
    assert len(waited) == 3, outputs
    assert all(text.count(": done") == 3 for text in outputs), outputs
    images = tmp_path / "node/var/lib/kubelet-py/images"
    assert [image.id for image in ImageStore(images).list()] == [image_id]
    for folder in ("partial", "locks", "ingest"):
        assert not list((images / folder).iterdir()), folder


def test_the_second_goes_on_where_the_first_was_killed(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    kind, name = slow
    partial = tmp_path / "node/var/lib/kubelet-py/images/partial"
    first = run(name)
    until(
        lambda: sum(file.stat().st_size >= 1 << 20 for file in partial.glob("*")) == 3, "half of each is here"
    )
    second = run(name)
    until(lambda: kind.asked.count(f"/v2/app/blobs/{image_id}") == 2, "the second has come to the layers")
    time.sleep(0.5)
    kind.headers_seen.clear()
    first.send_signal(signal.SIGKILL)
    output = second.communicate(timeout=120)[0]
    assert first.wait() == -signal.SIGKILL and second.returncode == 0, output
    ranges = [seen["Range"] for seen in kind.headers_seen]
    assert len(ranges) == 3 and all(int(asked[6:-1]) >= 1 << 20 for asked in ranges), ranges
    assert output.count("waiting for another pull") == output.count(": downloading") == 3, output


def test_who_waits_can_be_stopped(slow: tuple[type[Slow], str], image_id: str, run: Run) -> None:
    kind, name = slow
    first = run(name)
    until(lambda: len(kind.halves) == 3, "the first has all layers in hand")
    second = run(name)
    until(lambda: kind.asked.count(f"/v2/app/blobs/{image_id}") == 2, "the second has come to the layers")
    time.sleep(0.5)
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=60)
    assert second.returncode == 130 and first.poll() is None
    third = run(name)
    kind.go.set()
    assert first.wait(60) == third.wait(60) == 0


def test_who_waits_for_a_silent_server_can_be_stopped(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    kind, name = slow
    pull = run(name)
    until(lambda: len(kind.halves) == 3, "all layers are on their way")
    time.sleep(0.5)
    pull.send_signal(signal.SIGINT)
    output = pull.communicate(timeout=45)[0]  # the server would be waited for for 60 s
    assert pull.returncode == 130 and "Traceback" not in output, output
    kept = tmp_path / "node/var/lib/kubelet-py/images/partial"
    assert [file.stat().st_size >= 1 << 20 for file in kept.iterdir()] == [True] * 3


def test_a_layer_that_came_meanwhile_is_not_unpacked_again(
    tmp_path: Path, server: str, image_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, unpacked = ImageStore(tmp_path / "store"), Counter[str]()
    together, original = threading.Barrier(3), ImageStore._unpack

    def counting(self: ImageStore, folder: Path, source: object) -> object:
        unpacked[source.diff_id] += 1  # type: ignore[attr-defined]
        return original(self, folder, source)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageStore, "_unpack", counting)
    failed: list[BaseException] = []

    def pull() -> None:
        try:
            together.wait()
            registry.pull(store, f"{server}/app:v1")
        except (PullError, threading.BrokenBarrierError) as error:
            failed.append(error)

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(unpacked) == 3 and set(unpacked.values()) == {1}


def test_prune_leaves_what_a_pull_is_writing(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    kind, name = slow
    images = tmp_path / "node/var/lib/kubelet-py/images"
    pull = run(name)
    until(lambda: len(kind.halves) == 3, "the pull has all layers in hand")
    (images / "partial/feed").write_bytes(b"of a pull that was killed")
    ImageStore(images).sweep()
    assert len(list((images / "partial").iterdir())) == 3
    kind.go.set()
    assert pull.wait(60) == 0 and len(blobs_asked(kind, image_id)) == 3
    assert set(blobs_asked(kind, image_id).values()) == {1}
