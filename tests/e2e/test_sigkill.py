"""SIGKILL of our processes while pods run: containers never notice, and everything is adopted."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

COUNT = 'trap "exit 0" TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1 & wait $!; done'


@pytest.fixture(scope="module")
def counted(node: Node) -> Node:
    node.apply(pod("counter", COUNT), pod("other"))
    node.wait_running("counter", "other")
    node.until("lines", lambda: len(lines(node)) > 3)
    return node


def lines(node: Node) -> list[int]:
    return [int(line) for line in node.kubectl("logs", "counter", check=False).out.split()]


def identity(node: Node) -> list[Any]:
    """What must not change: container ids, restart counts, start times, addresses of the pods."""
    pods = node.kubectl("get", "pods", "-o", "json").json()["items"]
    return [
        (
            p["metadata"]["name"],
            p["status"]["podIP"],
            [(c["containerID"], c["restartCount"], c["state"]) for c in p["status"]["containerStatuses"]],
        )
        for p in sorted(pods, key=lambda p: p["metadata"]["name"])
    ]


def running(node: Node) -> set[str]:
    """Ids of the containers that the API calls running."""
    pods = node.kubectl("get", "pods", "-o", "json").json()["items"]
    statuses = [status for pod in pods for status in pod["status"].get("containerStatuses", ())]
    return {status["containerID"] for status in statuses if "running" in status["state"]}


@pytest.mark.parametrize("victim", ["agent", "proxy", "controlplane"])
def test_containers_survive_the_sigkill_of(counted: Node, victim: str) -> None:
    node = counted
    before, seen = identity(node), len(lines(node))
    old = node.pid(victim)
    os.kill(old, signal.SIGKILL)
    node.until("a new process", lambda: _pid(node, victim) not in (None, old))
    node.until("API server", lambda: node.kubectl("get", "--raw", "/readyz", check=False).out == "ok")
    node.until(
        "exec works again", lambda: node.kubectl("exec", "counter", "--", "true", check=False).code == 0
    )
    node.until("new lines", lambda: len(lines(node)) > seen + 5)
    now = lines(node)
    assert now == list(range(len(now))), "log lines lost or doubled"
    assert identity(node) == before
    node.apply(pod(f"after-{victim}"))
    node.wait_running(f"after-{victim}")
    node.kubectl("delete", "pod", f"after-{victim}")


def _pid(node: Node, name: str) -> int | None:
    done = node.cli("status", "--pid", name, check=False)
    return int(done.out) if done.code == 0 else None


def test_a_pod_deleted_while_the_agent_is_dead_is_gone_afterwards(counted: Node) -> None:
    node = counted
    node.apply(pod("doomed"))
    node.wait_running("doomed")
    os.kill(node.pid("agent"), signal.SIGKILL)
    node.kubectl("delete", "pod", "doomed", "--force", "--grace-period=0")
    node.until("its container gone", lambda: "doomed" not in _sandboxes(node))


def _sandboxes(node: Node) -> str:
    texts = []
    for file in (node.root / "run/kubelet-py/sandboxes").glob("*/*.json"):
        try:
            texts.append(file.read_text())
        except FileNotFoundError:
            continue
    return "\n".join(texts)


def test_everything_killed_at_once_comes_back_with_the_same_pods(counted: Node) -> None:
    node = counted
    before = identity(node)
    for name in ("supervisor", "agent", "proxy", "controlplane"):
        os.kill(node.pid(name), signal.SIGKILL)
    node.cli("up", "--detach")
    # A new pod runs when the new processes do their work; until then the API only repeats what it knew.
    node.apply(pod("after-all"))
    node.wait_running("after-all")
    node.kubectl("delete", "pod", "after-all")
    assert node.kubectl("exec", "other", "--", "echo", "hi").out == "hi\n"
    node.until("same pods", lambda: identity(node) == before)


def test_down_and_up_bring_the_pods_back_as_after_a_reboot(counted: Node) -> None:
    node = counted
    before = running(node)
    node.apply(pod("once", COUNT, restartPolicy="Never"))
    node.wait_running("once")
    node.cli("down")
    assert _sandboxes(node) == ""
    node.cli("up", "--detach")
    # The API still says Running of the pods' former life: only new container ids tell of the new one.
    node.until("new containers", lambda: len(running(node)) == len(before) and not running(node) & before)
    assert node.kubectl("exec", "other", "--", "echo", "hi").out == "hi\n"
    # Of what ran once and may not run again nobody knows how it ended.
    node.until("once is over", lambda: node.phase("once") == "Failed")
    [entry] = node.get("pod", "once")["status"]["containerStatuses"]
    ended = entry["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("ContainerStatusUnknown", 137)
