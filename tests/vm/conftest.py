"""The whole machine as a node: only in the throwaway VM of `hack/test --vm`, whose own network and files the
node may have."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import host_state
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parent))

from machine import Machine

VM = Path("/etc/kubelet-py-vm")


@pytest.fixture(scope="module")
def untouched() -> host_state.HostState:
    """The machine before the node's first start."""
    if not VM.exists():
        pytest.skip("the throwaway VM is missing (sudo ./hack/test --vm)")
    return host_state.read()


@pytest.fixture(scope="module")
def machine(untouched: host_state.HostState) -> Iterator[Machine]:
    """A node that is Ready, on a machine on which nothing was prepared for it."""
    machine = Machine()
    machine.import_busybox()
    done = machine.cli("up", "--detach", "--timeout", "300", check=False)
    assert done.code == 0, f"{done.out}{done.err}{machine.last_words()}"
    print(done.out)
    yield machine
    machine.cli("reset", "--yes")
