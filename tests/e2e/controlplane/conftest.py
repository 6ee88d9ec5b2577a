"""A control plane in a process of its own, with controllers and fake nodes (control_plane.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from control_plane import Cluster, FakeNode, Kubectl, Process
from e2e_node import KUBECTLS, main_kubectls


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """A control plane without controllers, not started."""
    found = Process(tmp_path, controllers="none")
    yield found
    found.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A whole control plane with two fake nodes, for a module of tests."""
    process = Process(tmp_path_factory.mktemp("cluster"), controllers="all")
    process.start()
    found = Cluster(process)
    found.nodes = [FakeNode(found.client, name) for name in ("n1", "n2")]
    try:
        yield found
    finally:
        for node in found.nodes:
            node.stop()
        process.kill()
        found.client.close()


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    return cluster.new_namespace()


@pytest.fixture(params=main_kubectls() or ["none"])
def kubectl(request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path) -> Kubectl:
    if request.param == "none":
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [KUBECTLS[request.param], f"--kubeconfig={cluster.process.folder / 'admin.conf'}", *argv]
        environment = os.environ | {"HOME": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    return run
