"""The kernel's OOM killer inside a container: what ends it, what only hurts it, and who is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime.service import Event
from runtime.state import read_json
from tests.privileged.runtime_service.harness import Node, wait_for

pytestmark = pytest.mark.privileged

LIMITS: dict[str, Any] = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
HOG = "tail /dev/zero"  # keeps a line without end in memory
LIMPS = ["sh", "-c", f"{HOG}; echo limps on; while ! [ -e /go ]; do sleep 0.02; done; exit 3"]


def told(node: Node, container: str) -> list[Event]:
    return [event for event in node.events if event.type == "oom" and event.container_id == container]


def test_killed_child_is_told_once_while_its_container_goes_on(node: Node) -> None:
    container = node.run(node.sandbox(), LIMPS, resources=LIMITS)
    wait_for(lambda: b"limps on\n" in node.log(container), 30)
    wait_for(lambda: told(node, container))
    assert node.service.container(container).state == "RUNNING"
    assert [event.exit_code for event in told(node, container)] == [None]
    node.service.exec_sync(container, ["sh", "-c", "> /go"], 10)
    assert node.ended(container).exit_code == 3
    assert len(told(node, container)) == 1


def test_killed_exec_is_told_as_a_child_is(node: Node) -> None:
    container = node.run(node.sandbox(), ["sleep", "1000"], resources=LIMITS)
    done = node.service.exec_sync(container, ["sh", "-c", f"{HOG}; exit 4"], 30)
    assert done.exit_code in (4, 137)
    wait_for(lambda: told(node, container))
    assert node.service.container(container).state == "RUNNING"


def test_containers_own_end_is_told_with_its_code_and_only_once(node: Node) -> None:
    container = node.run(node.sandbox(), ["sh", "-c", f"exec {HOG}"], resources=LIMITS)
    ended = node.ended(container, 30)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    wait_for(lambda: [event.exit_code for event in told(node, container)] == [137])


def test_kill_while_no_agent_listened_is_told_to_the_next(node: Node) -> None:
    script = f"while ! [ -e /go ]; do sleep 0.02; done; {HOG}; echo limps on; sleep 1000"
    container = node.run(node.sandbox(), ["sh", "-c", script], resources=LIMITS)
    pid = node.service.container(container).pid
    node.service.close()
    Path(f"/proc/{pid}/root/go").touch()
    saved = node.folder / "containers" / container / "state.json"
    wait_for(lambda: (read_json(str(saved)) or {})["oom_kills"] == 1, 30)
    assert not told(node, container)
    node.service = node.fresh()
    node.service.start()
    wait_for(lambda: told(node, container))
    assert [event.exit_code for event in told(node, container)] == [None]


def test_neighbours_kill_is_not_ones_own(node: Node) -> None:
    sandbox = node.sandbox()
    spared = node.run(sandbox, ["sleep", "1000"], resources=LIMITS)
    hurt = node.run(sandbox, LIMPS, resources=LIMITS)
    wait_for(lambda: told(node, hurt), 30)
    assert not told(node, spared)


def test_watching_leaves_no_descriptor(node: Node) -> None:
    sandbox = node.sandbox()
    state = read_json(str(node.folder / "run" / "sandboxes" / sandbox.id / "state.json")) or {}
    opened = f"/proc/{state['shim']['pid']}/fd"
    before = len(os.listdir(opened))
    for _ in range(3):
        node.ended(node.run(sandbox, ["true"], resources=LIMITS))
    wait_for(lambda: len(os.listdir(opened)) <= before)  # then, pause's worker may still have been there
