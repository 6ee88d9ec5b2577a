"""Where a pod's processes may run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.privileged.runtime_service.conftest import node_in
from tests.privileged.runtime_service.harness import Node, shims

ALL = frozenset(os.sched_getaffinity(0))
FIRST = min(ALL)

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(len(ALL) < 2, reason="this machine has one processor only"),
]
SHOW = ["grep", "Cpus_allowed_list", "/proc/self/status"]


@pytest.fixture
def narrow(tmp_path: Path, rootfs: Path) -> Iterator[Node]:
    """Of an agent that may run on one processor, as a unit of systemd's with CPUAffinity= may."""
    os.sched_setaffinity(0, {FIRST})
    try:
        with node_in(tmp_path, rootfs, None) as made:
            yield made
    finally:
        os.sched_setaffinity(0, ALL)


def everything() -> bytes:
    """What SHOW prints for a process that may run anywhere."""
    for line in Path(f"/proc/{os.getppid()}/status").read_text().splitlines():
        if line.startswith("Cpus_allowed_list"):
            return f"{line}\n".encode()
    raise AssertionError("the kernel shows no list of processors")


def test_a_shim_runs_where_its_agent_may(narrow: Node) -> None:
    narrow.sandbox()
    assert {frozenset(os.sched_getaffinity(pid)) for pid in shims(narrow.folder)} == {frozenset({FIRST})}


def test_a_shim_and_its_pod_run_anywhere(node: Node) -> None:
    """Though an agent keeps forkserver and shim off its own processor until the shim has begun; of a first
    pod perhaps before the forkserver has."""
    for _ in range(3):
        sandbox = node.sandbox()
        container = node.run(sandbox, SHOW)
        node.ended(container)
        assert node.log(container) == everything()
        assert frozenset(os.sched_getaffinity(sandbox.pid)) == ALL
    assert {frozenset(os.sched_getaffinity(pid)) for pid in shims(node.folder)} == {ALL}
