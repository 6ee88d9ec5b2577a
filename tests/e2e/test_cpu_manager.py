"""The static CPU policy on the real kernel: a processor of one's own, the rest for others, a killed agent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import Node, pod
from resource_node import asking, running_node

from kubelet_py.node import cpu_topology
from kubelet_py.node.cpu_topology import CPUS
from kubelet_py.paths import NodePaths

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one processor only"),
]
ALL = frozenset(os.sched_getaffinity(0))
FIRST = min(ALL)
CONFIG = {"cpuManagerPolicy": "static", "reservedSystemCPUs": str(FIRST)}


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, CONFIG) as made:
        yield made


def allowed(node: Node, name: str) -> CPUS:
    """Where the container's first process may run, by the kernel's word."""
    text = node.kubectl("exec", name, "--", "grep", "Cpus_allowed_list", "/proc/1/status").out
    return cpu_topology.parse(text.split()[1])


def saved(node: Node) -> Any:
    return json.loads((NodePaths(node.root).state / "cpu_manager_state").read_text())


def test_a_processor_of_its_own_and_the_rest_for_all_others(node: Node) -> None:
    node.apply(pod("shares"))
    node.wait_running("shares")
    assert allowed(node, "shares") == ALL
    amounts = {"cpu": "1", "memory": "32Mi"}
    node.apply(asking(pod("own"), requests=amounts, limits=amounts))
    node.wait_running("own")
    own = allowed(node, "own")
    assert len(own) == 1 and FIRST not in own
    node.until("the other one shares the rest", lambda: allowed(node, "shares") == ALL - own)
    uid = node.get("pod", "own")["metadata"]["uid"]
    assert list(saved(node)["entries"]) == [uid]

    killed = node.pid("agent")
    os.kill(killed, signal.SIGKILL)
    node.until("another agent", lambda: node.cli("status", "--pid", "agent", check=False).out.strip() not in
               ("", str(killed)))  # fmt: skip
    node.apply(pod("late"))
    node.wait_running("late")  # by the new agent
    assert (allowed(node, "late"), allowed(node, "own")) == (ALL - own, own)

    node.kubectl("delete", "pod", "own")
    node.until("all is shared again", lambda: allowed(node, "shares") == ALL == allowed(node, "late"))
    assert "entries" not in saved(node)
