"""Real pressure on a real node: memory of all pods, processes; who goes, what is said, and how it ends.

Memory is made scarce by what the node may give its pods (systemReserved leaves 700 MiB; the machine's own
memory belongs to others), processes by a threshold a little below what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_node import Node, pod
from resource_node import (
    asking,
    capacity_bytes,
    conditions,
    running_node,
    status,
    taints,
    the_node,
    wait_failed,
    wait_for_event,
)

pytestmark = pytest.mark.e2e
MI = 1 << 20
PODS_MI = 700
SPARE_PIDS = 1000


def pids_left() -> int:
    kernel = Path("/proc/sys/kernel")
    most = min(int((kernel / name).read_text()) for name in ("pid_max", "threads-max"))
    return most - int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    config = {
        "systemReserved": {"memory": str(capacity_bytes() - PODS_MI * MI)},
        "evictionHard": {"memory.available": "100Mi", "pid.available": str(pids_left() - SPARE_PIDS)},
        # Time to see the pressure and to try a pod under it, also where many share the machine.
        "evictionPressureTransitionPeriod": "8s",
    }
    with running_node(uplink, config) as made:
        yield made


def holding(name: str, megabytes: int, request: str) -> object:
    """A pod that keeps so much memory: files in a volume in memory are memory of the container."""
    script = f"dd if=/dev/zero of=/mem/file bs=1M count={megabytes}; trap 'exit 0' TERM; sleep 3600 & wait"
    body = pod(name, script, volumes=[{"name": "mem", "emptyDir": {"medium": "Memory"}}])
    body["spec"]["containers"][0]["volumeMounts"] = [{"name": "mem", "mountPath": "/mem"}]
    return asking(body, requests={"memory": request})


def test_the_pod_that_exceeds_its_request_by_more_goes_first(node: Node) -> None:
    name = the_node(node)["metadata"]["name"]
    node.apply(holding("modest", 120, "100Mi"))
    node.wait_running("modest")
    node.apply(holding("greedy", 500, "64Mi"))
    found = wait_failed(node, "greedy", "Evicted")
    assert found["message"].startswith(
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: "
    )
    assert "Container main was using " in found["message"]
    assert found["message"].endswith(", request is 64Mi, has larger consumption of memory. ")
    disruption = next(c for c in found["conditions"] if c["type"] == "DisruptionTarget")
    assert (disruption["status"], disruption["reason"]) == ("True", "TerminationByKubelet")
    wait_for_event(node, "greedy", "Warning Evicted The node was low on resource: memory. ")
    wait_for_event(node, name, "Warning EvictionThresholdMet Attempting to reclaim memory")
    wait_for_event(node, name, f"Normal NodeHasInsufficientMemory Node {name} status is now: ")
    assert node.phase("modest") == "Running"


def test_memory_pressure_shows_refuses_best_effort_and_passes(node: Node) -> None:
    name = the_node(node)["metadata"]["name"]
    node.kubectl("delete", "pod", "again", "besteffort", "--ignore-not-found")  # of a first try
    node.apply(holding("again", 560, "64Mi"))
    pressed = "True KubeletHasInsufficientMemory"
    node.until("pressure", lambda: conditions(node)["MemoryPressure"] == pressed)
    node.apply(pod("besteffort", nodeName=name))
    taint = "node.kubernetes.io/memory-pressure:NoSchedule"
    node.until("taint", lambda: taint in taints(node))
    refused = wait_failed(node, "besteffort", "Evicted")
    assert refused["message"] == "Pod was rejected: The node had condition: [MemoryPressure]. "
    wait_failed(node, "again", "Evicted")
    calm = "False KubeletHasSufficientMemory"
    node.until("no pressure", lambda: conditions(node)["MemoryPressure"] == calm)
    node.until("no taint", lambda: taint not in taints(node))
    wait_for_event(node, name, f"Normal NodeHasSufficientMemory Node {name} status is now: ")


def test_a_pod_of_many_processes_is_evicted(node: Node) -> None:
    count = SPARE_PIDS + 500
    script = f"i=0; while [ $i -lt {count} ]; do sleep 600 & i=$((i+1)); done; wait"
    node.apply(asking(pod("crowd", script), requests={"memory": "64Mi"}))
    found = wait_failed(node, "crowd", "Evicted")
    assert found["message"].startswith("The node was low on resource: pids. Threshold quantity: ")
    node.until("pressure", lambda: conditions(node)["PIDPressure"] == "False KubeletHasSufficientPID")
    assert status(node, "modest")["phase"] == "Running"
