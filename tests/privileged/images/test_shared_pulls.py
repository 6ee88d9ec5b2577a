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

from runtime.images import locks, push, registry
from runtime.images import store as store_module
from runtime.images.errors import PullError
from runtime.images.partial import Partials
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


def _heed_interrupts() -> None:
    """Whatever this process does with SIGINT; what it starts would do the same."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class Pull:
    """The command, running, for the node in this folder."""

    def __init__(self, folder: Path, name: str, number: int) -> None:
        self._output = folder / f"output{number}"
        command = [sys.executable, "-m", "kubelet_py.cli.main", "image", "pull", "--root"]
        with open(self._output, "wb") as output:
            self.process = subprocess.Popen(
                [*command, str(folder / "node"), name], cwd=REPOSITORY, stdout=output, stderr=output,
                preexec_fn=_heed_interrupts,
            )  # fmt: skip

    def said(self) -> str:
        return self._output.read_text()

    def waits(self) -> int:
        return self.said().count("waiting for another pull")

    def end(self, signal_number: int | None = None) -> int:
        """Its exit code, after the signal; the server would be waited for for 60 s."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout=45)


Run = Callable[[str], Pull]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    started: list[Pull] = []

    def start(name: str) -> Pull:
        started.append(Pull(tmp_path, name, len(started)))
        return started[-1]

    yield start
    for pull in started:
        pull.process.kill()
        pull.process.wait()


@pytest.fixture
def slow(server: str) -> Iterator[tuple[type[Slow], str]]:
    class Door(Slow):
        go, halves = threading.Event(), Counter()

    with door(Door, server) as where:
        yield Door, f"{where}/app:v1"
        Door.go.set()


def halves_in(folder: Path) -> int:
    return sum(file.stat().st_size >= 1 << 20 for file in folder.glob("*"))


def blobs_asked(kind: type[_Door], image_id: str) -> Counter[str]:
    return Counter(path for path in kind.asked if "/blobs/" in path and image_id not in path)


def test_four_processes_fetch_each_layer_once(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    kind, name = slow
    pulls = [run(name) for _ in range(4)]
    until(lambda: sum(pull.waits() for pull in pulls) == 9, "of each layer one pull has it, and three wait")
    kind.go.set()
    codes, outputs = [pull.end() for pull in pulls], [pull.said() for pull in pulls]
    assert codes == [0] * 4, outputs
    asked = blobs_asked(kind, image_id)
    assert len(asked) == 3 and set(asked.values()) == {1}, asked
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
    until(lambda: halves_in(partial) == 3, "half of each layer is here")
    second = run(name)
    until(lambda: second.waits() == 3, "the second waits for all layers")
    kind.headers_seen.clear()
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    code, output = second.end(), second.said()
    assert code == 0, output
    ranges = [seen["Range"] for seen in kind.headers_seen]
    assert len(ranges) == 3 and all(int(asked[6:-1]) >= 1 << 20 for asked in ranges), ranges
    assert output.count("waiting for another pull") == output.count(": downloading") == 3, output


def test_who_waits_can_be_stopped(slow: tuple[type[Slow], str], image_id: str, run: Run) -> None:
    kind, name = slow
    first = run(name)
    until(lambda: len(kind.halves) == 3, "the first has all layers in hand")
    second = run(name)
    until(lambda: second.waits() == 3, "the second waits for all layers")
    assert second.end(signal.SIGINT) == 130 and first.process.poll() is None
    kind.go.set()
    assert first.end() == 0


def test_who_waits_for_a_silent_server_can_be_stopped(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run
) -> None:
    _, name = slow
    pull = run(name)
    kept = tmp_path / "node/var/lib/kubelet-py/images/partial"
    until(lambda: halves_in(kept) == 3, "half of each layer is here")
    assert pull.end(signal.SIGINT) == 130 and "Traceback" not in pull.said()
    assert halves_in(kept) == 3


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
    assert pull.end() == 0 and len(blobs_asked(kind, image_id)) == 3
    assert set(blobs_asked(kind, image_id).values()) == {1}


def test_nobody_waits_for_ever_for_a_pull_that_was_stopped(
    tmp_path: Path, slow: tuple[type[Slow], str], image_id: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z: the locks stay, of downloads and, here held by hand, of a layer that is unpacked."""
    kind, name = slow
    images = tmp_path / "node/var/lib/kubelet-py/images"
    stopped = run(name)
    until(lambda: halves_in(images / "partial") == 3, "half of each layer is here")
    stopped.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(store_module, "_PATIENCE", 0.2)
    store = ImageStore(images)
    store.partials = Partials(images / "partial", patience=0.2)
    layer_lock = images / "locks" / store_lock_name(tmp_path, image_id)
    kind.headers_seen.clear()
    with locks.held(layer_lock, 1.0):
        assert registry.pull(store, name).id == image_id
    ranges = [seen["Range"] for seen in kind.headers_seen if "Range" in seen]
    assert len(ranges) == 3 and all(int(asked[6:-1]) >= 1 << 20 for asked in ranges), ranges
    stopped.process.send_signal(signal.SIGCONT)
    kind.go.set()
    assert stopped.end() == 0
    assert [image.id for image in ImageStore(images).list()] == [image_id]
    for folder in ("partial", "locks", "ingest"):
        assert not list((images / folder).iterdir()), folder


def store_lock_name(tmp_path: Path, image_id: str) -> str:
    return ImageStore(tmp_path / "origin").diff_ids(image_id)[0].partition(":")[2]
