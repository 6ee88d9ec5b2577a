"""Where a pod's processes may run: containers on all that their cgroups allow, a shim where its agent may."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.values import SandboxConfig
from tests.privileged.runtime_service.conftest import node_in
from tests.privileged.runtime_service.harness import ROOT_CGROUP, Node, shims

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


@pytest.mark.parametrize("tty", [False, True], ids=["prepared", "executed"])
def test_a_container_does_not_inherit_the_agents_processors(narrow: Node, tty: bool) -> None:
    """As with runc and crun: its cgroup says where it runs."""
    sandbox = narrow.sandbox()
    container = narrow.run(sandbox, SHOW, tty=tty)
    assert narrow.ended(container).exit_code == 0
    assert narrow.log(container).replace(b"\r", b"") == everything()
    assert {frozenset(os.sched_getaffinity(pid)) for pid in shims(narrow.folder)} == {frozenset({FIRST})}


def test_nor_does_one_that_was_held(narrow: Node) -> None:
    config = SandboxConfig(
        name="pod", namespace="test", uid="u1", hostname="pod", cgroup_parent=f"{ROOT_CGROUP}/pod"
    )
    start = narrow.service.begin_pod_sandbox(config)
    held = narrow.service.hold_container(start, narrow.config(SHOW))
    assert held is not None
    start.finish()
    narrow.service.release_container(held)
    narrow.ended(held.id)
    assert narrow.log(held.id) == everything()


def test_nor_does_an_exec(narrow: Node) -> None:
    """The first is executed, the next has a program."""
    container = narrow.run(narrow.sandbox(), ["sleep", "100"])
    for _ in range(3):
        assert narrow.service.exec_sync(container, SHOW, 20).stdout == everything()


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
