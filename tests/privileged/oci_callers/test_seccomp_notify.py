"""SCMP_ACT_NOTIFY: an agent gets the listener, answers for the kernel, and nothing starts without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundle import Bundle

from tests.seccomp_agent import ENOMEDIUM, EXECVE, MKDIR, Agent

pytestmark = pytest.mark.privileged


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    made: list[Agent] = []
    yield made
    for agent in made:
        agent.close()


def profile(bundle: Bundle, path: Path, names: list[str], **more: Any) -> None:
    seccomp = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "listenerMetadata": "words for the agent",
        "syscalls": [{"names": names, "action": "SCMP_ACT_NOTIFY"}],
        **more,
    }
    bundle.change(lambda config: config["linux"].update(seccomp=seccomp))


@pytest.mark.parametrize("new_privileges", [False, True])
@pytest.mark.parametrize("killable", [False, True])
def test_the_agent_answers_for_the_kernel(
    bundle: Bundle, tmp_path: Path, agents: list[Agent], new_privileges: bool, killable: bool
) -> None:
    agent = Agent(tmp_path / "agent", lambda number: ENOMEDIUM if number == MKDIR else 0)
    agents.append(agent)
    flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"] if killable else []
    # execve, and write, which says "ready" and "started": neither may need what is not answered yet.
    profile(bundle, agent.path, ["mkdir", "execve", "write"], flags=flags)
    bundle.change(lambda config: config["process"].update(noNewPrivileges=not new_privileges))
    done = bundle.run("mkdir /new; echo $?")
    assert done.stdout == "1\n" and "No medium found" in done.stderr
    state = agent.states[0]
    assert (state["fds"], state["metadata"]) == (["seccompFd"], "words for the agent")
    assert (state["state"]["id"], state["state"]["status"]) == (bundle.identity, "creating")
    assert state["pid"] == state["state"]["pid"] > 1
    assert {MKDIR, EXECVE} <= set(agent.numbers)


def test_create_hands_the_listener_over_and_exec_another(
    bundle: Bundle, tmp_path: Path, agents: list[Agent]
) -> None:
    agent = Agent(tmp_path / "agent", lambda number: ENOMEDIUM if number == MKDIR else 0)
    agents.append(agent)
    profile(bundle, agent.path, ["mkdir"])
    bundle.args("sleep", "1000")
    assert bundle.create().returncode == 0, bundle.output()
    assert [state["state"]["status"] for state in agent.states] == ["creating"]
    assert bundle("start", bundle.identity).returncode == 0
    done = bundle("exec", bundle.identity, "sh", "-c", "mkdir /new; echo $?")
    assert done.stdout == "1\n", done.stderr
    second = agent.states[1]
    assert second["state"]["status"] == "running" and second["state"]["pid"] == bundle.pid() != second["pid"]


def test_with_a_user_namespace_and_hooks(bundle: Bundle, tmp_path: Path, agents: list[Agent]) -> None:
    agent = Agent(tmp_path / "agent", lambda number: ENOMEDIUM if number == MKDIR else 0)
    agents.append(agent)
    profile(bundle, agent.path, ["mkdir", "execve"])
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    bundle.namespace("user", uidMappings=mapping, gidMappings=mapping)
    for folder, names, files in os.walk(bundle.root):
        for name in (".", *names, *files):
            os.chown(f"{folder}/{name}", 100000, 100000, follow_symlinks=False)
    bundle.change(lambda config: config.update(hooks={"createRuntime": [{"path": "/bin/true"}]}))
    done = bundle.run("mkdir /new; echo $?")
    assert done.stdout == "1\n", done.stderr


def test_without_an_agent_nothing_is_made(bundle: Bundle, tmp_path: Path) -> None:
    profile(bundle, tmp_path / "nobody", ["mkdir"])
    bundle.args("true")
    assert bundle.create().returncode == 1
    assert "nobody: ENOENT (is the agent running?)" in bundle.output()
    assert "does not exist" in bundle("state", bundle.identity).stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"listenerPath": ""}, "listenerMetadata: listenerPath is missing"),
        ({"listenerPath": "", "listenerMetadata": ""}, "listenerPath must be an absolute path"),
        ({"listenerPath": "here"}, "must be an absolute path"),
        ({"listenerPath": 7}, "must be strings"),
    ],
)
def test_a_profile_that_cannot_notify_is_refused(
    bundle: Bundle, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    profile(bundle, tmp_path / "agent", ["mkdir"], **changes)
    assert words in bundle.run("true").stderr


def test_the_flag_of_listeners_needs_one(bundle: Bundle, tmp_path: Path) -> None:
    rule = [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]
    profile(bundle, tmp_path / "agent", [], syscalls=rule, flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])
    assert "no rule has SCMP_ACT_NOTIFY" in bundle.run("true").stderr
