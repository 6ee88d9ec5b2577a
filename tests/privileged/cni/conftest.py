from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import network_lab
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cni_lab import Attach

from cni import conflist, skeleton
from cni.invoke import Invoker


@pytest.fixture
def node() -> Iterator[None]:
    with network_lab.node():
        yield


@pytest.fixture
def own_bin(tmp_path: Path) -> Path:
    skeleton.write_executables(tmp_path / "bin", sys.executable)
    return tmp_path / "bin"


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """The folder with the conflist that a node of ours writes."""
    body = conflist.bridge_network(
        name="kubelet-py",
        bridge="kpy0",
        subnets=["10.244.1.0/24"],
        cluster_cidrs=["10.244.0.0/16"],
        data_dir=tmp_path / "leases",
    )
    conflist.write(tmp_path / "net.d/10-kubelet-py.conflist", body)
    return tmp_path / "net.d"


@pytest.fixture
def attach(node: None, tmp_path: Path, own_bin: Path) -> Attach:
    """An invoker for a conflist of the given plugins; `first` are folders searched before ours."""

    def make(*plugins: Mapping[str, Any], version: str = "1.1.0", first: Sequence[Path] = ()) -> Invoker:
        folder = tmp_path / "net.d"
        conflist.write(
            folder / "10-test.conflist", {"cniVersion": version, "name": "net", "plugins": list(plugins)}
        )
        return Invoker(
            config_dir=folder, bin_dirs=[*first, own_bin], cache_dir=tmp_path / "cache", own_bin_dir=own_bin
        )

    return make


@pytest.fixture
def invoker(node: None, tmp_path: Path, own_bin: Path, network: Path) -> Invoker:
    return Invoker(config_dir=network, bin_dirs=[own_bin], cache_dir=tmp_path / "cache", own_bin_dir=own_bin)
