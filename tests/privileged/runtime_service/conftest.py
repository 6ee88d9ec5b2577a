"""A runtime service of its own per test, a busybox root, and the proof that nothing is left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.cgroups import detect
from runtime.values import OciRuntime
from tests.privileged.runtime_service.harness import (
    APPLETS,
    BUSYBOX,
    ROOT_CGROUP,
    Node,
    shims,
    wait_for,
)


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not BUSYBOX.exists():
        pytest.skip("needs /usr/bin/busybox (apt-get install busybox-static)")
    root = tmp_path_factory.mktemp("rootfs")
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc"):
        (root / name).mkdir()
    shutil.copy(BUSYBOX, root / "bin" / "busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\n")
    root.chmod(0o755)
    return root


@pytest.fixture
def runtime() -> OciRuntime | None:
    """What runs the containers: our own. A module may say otherwise."""
    return None


@pytest.fixture
def node(tmp_path: Path, rootfs: Path, runtime: OciRuntime | None) -> Iterator[Node]:
    with node_in(tmp_path, rootfs, runtime) as made:
        yield made


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, rootfs: Path) -> Iterator[Node]:
    """One for all tests of a module."""
    with node_in(tmp_path_factory.mktemp("node"), rootfs, None) as made:
        yield made


@contextmanager
def node_in(tmp_path: Path, rootfs: Path, runtime: OciRuntime | None) -> Iterator[Node]:
    driver = detect()
    made = Node(tmp_path, rootfs, driver, None, runtime=runtime)  # type: ignore[arg-type]
    made.service = made.fresh()
    made.service.start()
    yield made
    made.service.close()
    made.fresh().remove_everything()
    if driver.exists(ROOT_CGROUP):
        driver.remove(ROOT_CGROUP, recursive=True)
    wait_for(lambda: not shims(tmp_path))
    assert not list((tmp_path / "run" / "sandboxes").iterdir())
    assert not list((tmp_path / "containers").iterdir())
