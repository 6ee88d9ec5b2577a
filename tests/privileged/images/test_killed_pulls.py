"""Pulls that are killed, that break off, and that meet: the store is whole, and the next pull goes on."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.images import push, registry
from runtime.images.errors import RegistryUnavailable
from runtime.images.partial import Partials
from runtime.images.store import ImageStore
from tests.privileged.images import registry_server
from tests.privileged.images.pull_killer import described
from tests.privileged.images.test_mirrors import _Door, door
from tests.unit.images.build import docker_archive, info, layer, tar_file, tar_of

pytestmark = registry_server.needed
REPOSITORY = Path(__file__).resolve().parents[3]
NOISE = random.Random(7).randbytes(2 << 20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with registry_server.registry(tmp_path / "registry") as where:
        yield where


def put(tmp_path: Path, server: str, name: str, layers: list[bytes]) -> str:
    """Push an image of these layers; its full name."""
    store = ImageStore(tmp_path / f"origin-{name.replace('/', '-')}")
    [image] = store.import_archive(io.BytesIO(tar_file(docker_archive(layers, [f"{name}:v1"]))))
    push.push(store, image.id, target=f"{server}/{name}:v1")
    return f"{server}/{name}:v1"


@pytest.fixture
def name(tmp_path: Path, server: str) -> str:
    """Two layers: one large file; folders, links, a whiteout, and a name twice (so the archive is kept)."""
    links = [
        (info("d", type=b"5", mode=0o750), b""),
        (info("d/f", uid=7), b"one"),
        (info("d/l", type=b"2", linkname="f"), b""),
        (info("d/h", type=b"1", linkname="d/f"), b""),
        (info("d/.wh.gone"), b""),
        (info("twice"), b"first"),
        (info("twice"), b"second"),
    ]
    return put(tmp_path, server, "app", [layer([("noise", NOISE)]), tar_of(links)])


@pytest.fixture
def reference(tmp_path: Path, name: str) -> Path:
    registry.pull(ImageStore(tmp_path / "reference"), name)
    return tmp_path / "reference"


def test_a_pull_killed_before_any_of_its_acts_leaves_a_store_that_pulls_again(
    tmp_path: Path, name: str, reference: Path
) -> None:
    command = [sys.executable, "-m", "tests.privileged.images.pull_killer"]
    done = subprocess.run(
        [*command, str(tmp_path / "stores"), name, str(reference), "2"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] > 30, "the acts of a pull are seen"
    assert found["resumed"] > 3, "some kills left a part of a download, and it was used up"


def test_the_command_killed_at_any_moment_pulls_the_same_in_the_end(
    tmp_path: Path, name: str, reference: Path
) -> None:
    root = tmp_path / "node"
    command = [sys.executable, "-m", "kubelet_py.cli.main", "image", "pull", "--root", str(root), name]
    began = time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    span = time.monotonic() - began
    images = root / "var/lib/kubelet-py/images"
    for number in range(8):
        shutil.rmtree(images)
        pull = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            pull.wait(span * (number + 3) / 11)  # not before Python has started
        except subprocess.TimeoutExpired:
            pull.send_signal(signal.SIGKILL)
        pull.wait()
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        assert described(images) == described(reference)


def test_pulls_of_images_that_share_layers_meet(tmp_path: Path, server: str) -> None:
    shared, root = layer([("noise", NOISE)]), tmp_path / "node"
    tops = {f"team/app{number}": layer([("n", b"%d" % number)]) for number in (1, 2)}
    names = [put(tmp_path, server, name, [shared, top]) for name, top in tops.items()]
    command = [sys.executable, "-m", "kubelet_py.cli.main", "image", "pull", "--root", str(root)]
    pulls = [
        subprocess.Popen([*command, name], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for name in [*names, *names, *names]
    ]
    errors = [pull.communicate(timeout=120)[1].decode() for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0] * 6, errors
    images = root / "var/lib/kubelet-py/images"
    store = ImageStore(images)
    assert sorted(image.repo_tags[0] for image in store.list()) == names
    assert len(list(images.glob("layers/*"))) == 3, "the shared layer is there once"
    assert not list(images.glob("ingest/*")) and store.sweep() == 0


class _Breaking(_Door):
    """Sends the beginning of large blobs and hangs up, until it is mended."""

    mended = False

    def spoil(self) -> bool:
        if self.mended or "/blobs/" not in self.path:
            return False
        self.relay(lambda body: body[:300_000] if len(body) > 500_000 else body)
        self.close_connection = True
        return True


def test_what_a_failed_pull_got_is_not_fetched_again(tmp_path: Path, name: str, server: str) -> None:
    class Door(_Breaking):
        pass

    store = ImageStore(tmp_path / "store")
    with door(Door, server) as where:
        mine = f"{where}/app:v1"
        with pytest.raises(RegistryUnavailable, match="stopped at"):
            registry.pull(store, mine, sleep=lambda _: None)
        kept = {file.name: file.stat().st_size for file in (tmp_path / "store/partial").iterdir()}
        large = max(kept, key=lambda digest: kept[digest])
        assert kept[large] > 1 << 20
        Door.mended = True
        Door.headers_seen.clear()
        steps: list[int] = []

        def watch(digest: str, done: int, size: int) -> None:
            if large in digest:
                steps.append(done)

        registry.pull(store, mine, progress=watch)
        ranges = [headers["Range"] for headers in Door.headers_seen if "Range" in headers]
    assert ranges == [f"bytes={kept[large]}-"] and min(steps) > kept[large]
    assert not list((tmp_path / "store/partial").iterdir())


def test_a_kept_part_that_is_wrong_is_thrown_away(tmp_path: Path, name: str) -> None:
    """It is hashed like everything else, and the blob then fetched from its start."""
    reference = registry.pull(ImageStore(tmp_path / "other"), name)
    manifest = ImageStore(tmp_path / "other").manifests(reference.id)[-1]
    layers = json.loads(manifest)["layers"]
    for size in (10, layers[0]["size"], layers[0]["size"] + 10):
        store = ImageStore(tmp_path / f"store{size}")
        partial = tmp_path / f"store{size}/partial"
        partial.mkdir(parents=True)
        (partial / layers[0]["digest"].partition(":")[2]).write_bytes(b"x" * size)
        assert registry.pull(store, name).id == reference.id


def test_old_parts_are_dropped_and_prune_drops_all(tmp_path: Path) -> None:
    store, now = ImageStore(tmp_path), [1000.0]
    folder = tmp_path / "partial"
    folder.mkdir()
    partials = Partials(folder, clock=lambda: now[0])
    (folder / "aa").write_bytes(b"part")
    now[0] = (folder / "aa").stat().st_mtime + 3600
    assert partials.drop() == 0
    now[0] += 86400
    assert partials.drop() == 4 and not list(folder.iterdir())
    (folder / "bb").write_bytes(b"part")
    store.sweep()
    assert not list(folder.iterdir())
