"""SCMP_ACT_NOTIFY in a pod: the listener goes to the profile's agent before the program starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import StartError
from tests.privileged.runtime_service.harness import Node
from tests.seccomp_agent import ENOMEDIUM, EXECVE, MKDIR, Agent

pytestmark = pytest.mark.privileged


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    made = Agent(tmp_path / "agent", lambda number: ENOMEDIUM if number == MKDIR else 0)
    yield made
    made.close()


def listening(path: Path) -> dict[str, Any]:
    rules = [{"names": ["mkdir", "execve"], "action": "SCMP_ACT_NOTIFY"}]
    return {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(path), "syscalls": rules}


def test_the_agent_answers_for_a_container_and_for_an_exec(node: Node, agent: Agent) -> None:
    container = node.run(
        node.sandbox(),
        ["sh", "-c", "busybox mkdir /new; echo $?; exec sleep 1000"],
        seccomp=listening(agent.path),
    )
    done = node.service.exec_sync(container, ["busybox", "mkdir", "/new"], 60)
    assert done.exit_code == 1 and b"No medium found" in done.stderr
    first, second = agent.states
    assert (first["state"]["id"], first["state"]["status"]) == (container, "creating")
    assert first["fds"] == ["seccompFd"] and first["pid"] == first["state"]["pid"] > 1
    assert second["state"]["status"] == "running"
    assert second["state"]["pid"] == first["pid"] != second["pid"]
    assert {MKDIR, EXECVE} <= set(agent.numbers)
    node.service.stop_container(container, 0)
    assert node.log(container).splitlines()[-1] == b"1"


def test_without_its_agent_a_container_does_not_start(node: Node, tmp_path: Path) -> None:
    container = node.create(node.sandbox(), ["true"], seccomp=listening(tmp_path / "nobody"))
    with pytest.raises(StartError, match=r"nobody: ENOENT \(is the agent running\?\)"):
        node.service.start_container(container)
    assert node.service.container(container).reason == "StartError"
    assert not list((tmp_path / "containers" / container).glob("*.fifo"))
