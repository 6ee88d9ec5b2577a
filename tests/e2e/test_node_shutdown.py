"""`kubelet-py node shutdown`: ordinary pods end before critical ones, and the node refuses new ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2e_node import REPOSITORY, Node, pod
from resource_node import running_node, status, the_node, wait_failed, wait_for_event

pytestmark = pytest.mark.e2e
DEAF = "trap '' TERM; while true; do sleep 1; done"
POLITE = "trap 'exit 0' TERM; sleep 3600 & wait"


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    periods = {"shutdownGracePeriod": "8s", "shutdownGracePeriodCriticalPods": "4s"}
    with running_node(uplink, periods) as made:
        yield made


def ready(node: Node) -> tuple[str, str]:
    found = next(c for c in the_node(node)["status"]["conditions"] if c["type"] == "Ready")
    return found["status"], found["message"]


def ended_at(node: Node, name: str, namespace: str = "default") -> str:
    entries = node.get("pod", name, namespace)["status"]["containerStatuses"]
    return str(entries[0]["state"].get("terminated", {}).get("finishedAt", ""))


def test_the_pods_end_by_priority_and_the_node_says_so(node: Node) -> None:
    node.apply(
        pod("deaf", DEAF, terminationGracePeriodSeconds=3600),
        pod("polite", POLITE, terminationGracePeriodSeconds=3600),
        pod("critical", POLITE, namespace="kube-system", priorityClassName="system-cluster-critical"),
    )
    node.wait_running("deaf", "polite")
    node.until("critical runs", lambda: node.phase("critical", "kube-system") == "Running")
    name = the_node(node)["metadata"]["name"]
    argv = [sys.executable, "-m", "kubelet_py", "node", "shutdown", "--root", str(node.root)]
    command = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=node.environment(), cwd=REPOSITORY
    )
    with command:
        node.until("NotReady", lambda: ready(node) == ("False", "node is shutting down"))
        polite = wait_failed(node, "polite", "Terminated")
        assert polite["message"] == "Pod was terminated in response to imminent node shutdown."
        condition = next(c for c in polite["conditions"] if c["type"] == "DisruptionTarget")
        assert condition["reason"] == "TerminationByKubelet"
        node.apply(pod("late", nodeName=name, tolerations=[{"operator": "Exists"}]))
        late = wait_failed(node, "late", "NodeShutdown")
        assert late["message"] == "Pod was rejected: Pod was rejected as the node is shutting down."
        assert command.wait(60) == 0
        assert command.stdout is not None and "All pods have ended" in command.stdout.read()
    wait_failed(node, "deaf", "Terminated")
    assert node.get("pod", "critical", "kube-system")["status"]["reason"] == "Terminated"
    last = ended_at(node, "critical", "kube-system")
    assert ended_at(node, "polite") < ended_at(node, "deaf") <= last, "the critical one when the others have"
    wait_for_event(node, name, "Normal Shutdown Shutdown manager detected shutdown event")
    again = node.cli("node", "shutdown")
    assert "already" in again.out


def test_the_next_agent_takes_pods_again(node: Node) -> None:
    node.cli("down")
    node.cli("up", "--detach", "--kubelet-config", str(node.root / "kubelet.json"))
    assert ready(node)[0] == "True"
    node.apply(pod("fresh", POLITE))
    node.wait_running("fresh")
    assert status(node, "polite")["phase"] == "Failed", "what ended stays ended"


def test_without_an_agent_the_command_says_what_to_do(node: Node) -> None:
    node.cli("down")
    done = node.cli("node", "shutdown", check=False)
    assert done.code == 1 and "no agent runs here" in done.err
