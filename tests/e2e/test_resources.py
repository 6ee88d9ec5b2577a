"""What pods may use, as the kernel has it: QoS cgroups, limits, OOM, admission, preemption, local storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import Node, pod
from resource_node import (
    asking,
    capacity_bytes,
    cgroup,
    number,
    running_node,
    status,
    the_node,
    wait_failed,
    wait_for_event,
)

pytestmark = pytest.mark.e2e
MI = 1 << 20
CONFIG = {
    "podPidsLimit": 40,
    "kubeReserved": {"memory": "1Gi", "cpu": "100m"},
    "systemReserved": {"memory": "1Gi", "cpu": "100m", "ephemeral-storage": "1Gi"},
    "evictionHard": {"memory.available": "64Mi"},
    "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
}
HOLD = "trap 'exit 0' TERM; sleep 3600 & wait"


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, CONFIG) as made:
        yield made


def uid(node: Node, name: str) -> str:
    return str(node.get("pod", name)["metadata"]["uid"])


def container_id(node: Node, name: str) -> str:
    return str(status(node, name)["containerStatuses"][0]["containerID"].partition("://")[2])


def test_allocatable_is_capacity_less_what_is_kept_back_and_enforced(node: Node) -> None:
    found = the_node(node)["status"]
    reserved = 2048 * MI
    assert found["capacity"]["memory"] == f"{capacity_bytes() // 1024}Ki"
    assert found["allocatable"]["memory"] == f"{(capacity_bytes() - reserved - 64 * MI) // 1024}Ki"
    cores = int(found["capacity"]["cpu"])
    assert found["allocatable"]["cpu"] == f"{cores * 1000 - 200}m"
    limit = number(cgroup(node, "memory") / "memory.limit_in_bytes")
    assert limit == (capacity_bytes() - reserved) // 4096 * 4096
    assert number(cgroup(node, "cpu") / "cpu.shares") == (cores * 1000 - 200) * 1024 // 1000
    name = the_node(node)["metadata"]["name"]
    wait_for_event(node, name, "Normal NodeAllocatableEnforced Updated Node Allocatable limit across pods")
    wait_for_event(node, name, f"Normal NodeReady Node {name} status is now: NodeReady")


@pytest.mark.conformance(
    "[sig-node] Pods Extended Pods Set QOS Class should be set on Pods with matching resource requests and "
    "limits for memory and cpu"
)
def test_qos_classes_have_their_places_and_weights(node: Node) -> None:
    both = {"cpu": "100m", "memory": "64Mi"}
    node.apply(
        asking(pod("guaranteed", HOLD), requests=both, limits=both),
        asking(pod("burstable", HOLD), requests={"cpu": "200m"}, limits={"memory": "64Mi", "cpu": "500m"}),
        asking(pod("burst-more", HOLD), requests={"cpu": "300m"}),
        pod("besteffort", HOLD),
    )
    names = ("guaranteed", "burstable", "burst-more", "besteffort")
    node.wait_running(*names)
    classes = [status(node, name)["qosClass"] for name in names]
    assert classes == ["Guaranteed", "Burstable", "Burstable", "BestEffort"]
    cpu = cgroup(node, "cpu")
    assert number(cpu / "burstable/cpu.shares") == 512, "the sum of the Burstable pods' requests"
    assert number(cpu / "besteffort/cpu.shares") == 2
    places = [f"pod{uid(node, 'guaranteed')}", f"burstable/pod{uid(node, 'burstable')}"]
    places += [f"besteffort/pod{uid(node, 'besteffort')}"]
    assert [number(cpu / place / "cpu.shares") for place in places] == [102, 204, 2]
    assert [number(cpu / place / "cpu.cfs_quota_us") for place in places] == [10000, 50000, -1]
    memory = cgroup(node, "memory")
    assert number(memory / places[0] / "memory.limit_in_bytes") == 64 * MI
    assert number(memory / places[1] / container_id(node, "burstable") / "memory.limit_in_bytes") == 64 * MI
    assert number(memory / places[2] / "memory.limit_in_bytes") > capacity_bytes()
    assert number(cgroup(node, "pids", places[2]) / "pids.max") == 40, "podPidsLimit"
    ask = ("cat", "/proc/1/oom_score_adj")
    scores = [node.kubectl("exec", name, "--", *ask).out.strip() for name in names[1:]]
    # 64Mi of the node's memory are less than a thousandth here, or a little more on a small machine.
    assert scores[1:] == ["999", "1000"] and int(scores[0]) >= 900
    node.kubectl("delete", "pod", *names)
    node.until("shares given back", lambda: number(cpu / "burstable/cpu.shares") == 2)


def test_a_container_over_its_memory_limit_is_oomkilled_and_says_so(node: Node) -> None:
    greedy = pod("greedy", "dd if=/dev/zero of=/dev/null bs=100M count=1", restartPolicy="Never")
    node.apply(asking(greedy, limits={"memory": "20Mi"}))
    node.until("Failed", lambda: node.phase("greedy") == "Failed")
    ended = status(node, "greedy")["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_a_fork_bomb_ends_at_the_pods_limit(node: Node) -> None:
    script = "i=0; while [ $i -lt 60 ]; do sleep 60 & i=$((i+1)); done; echo all of them"
    node.apply(pod("bomb", script, restartPolicy="Never"))
    node.until("over", lambda: node.phase("bomb") in ("Failed", "Succeeded"))
    assert "all of them" not in node.kubectl("logs", "bomb").out


def test_a_pod_that_does_not_fit_is_refused_with_the_numbers(node: Node) -> None:
    name = the_node(node)["metadata"]["name"]
    node.apply(asking(pod("wide", HOLD, nodeName=name), requests={"cpu": "900"}))
    found = wait_failed(node, "wide", "OutOfcpu")
    assert found["message"].startswith(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 900000, used: "
    )


def test_a_critical_pod_pushes_out_the_pod_whose_end_is_enough(node: Node) -> None:
    """Also end to end: the victim ends within its grace and only then the critical pod starts."""
    found = the_node(node)
    most = int(found["allocatable"]["cpu"].removesuffix("m")) if "allocatable" in found else 0
    most = most or int(found["status"]["allocatable"]["cpu"].removesuffix("m"))
    node.apply(
        asking(pod("victim", HOLD), requests={"cpu": f"{most - 300}m"}),
        asking(pod("small", HOLD), requests={"cpu": "50m"}),
    )
    node.wait_running("victim", "small")
    critical = pod(
        "critical", HOLD, namespace="kube-system", nodeName=found["metadata"]["name"],
        priorityClassName="system-node-critical",
    )  # fmt: skip
    node.apply(asking(critical, requests={"cpu": "1"}))
    ended = wait_failed(node, "victim", "Preempting")
    assert ended["message"] == "Preempted in order to admit critical pod"
    condition = next(c for c in ended["conditions"] if c["type"] == "DisruptionTarget")
    assert (condition["status"], condition["reason"]) == ("True", "TerminationByKubelet")
    node.until("critical runs", lambda: node.phase("critical", "kube-system") == "Running")
    assert node.phase("small") == "Running"
    wait_for_event(node, "victim", "Warning Preempting Preempted in order to admit critical pod")
    node.kubectl("delete", "pod", "critical", "-n", "kube-system")
    node.kubectl("delete", "pod", "victim", "small")


FILL = "dd if=/dev/zero of={} bs=1M count=8; " + HOLD


@pytest.mark.parametrize(
    ("name", "file", "spec", "limits", "message"),
    [
        (
            "volume",
            "/v/file",
            {"volumes": [{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}]},
            {},
            'Usage of EmptyDir volume "v" exceeds the limit "4Mi". ',
        ),
        (
            "layer",
            "/file",
            {},
            {"ephemeral-storage": "4Mi"},
            "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ",
        ),
    ],
)
def test_a_pod_over_its_local_storage_is_evicted(
    node: Node, name: str, file: str, spec: dict[str, Any], limits: dict[str, str], message: str
) -> None:
    body = pod(name, FILL.format(file), **spec)
    if spec:
        body["spec"]["containers"][0]["volumeMounts"] = [{"name": "v", "mountPath": "/v"}]
    node.apply(asking(body, limits=limits))
    found = wait_failed(node, name, "Evicted")
    assert found["message"] == message
    assert wait_for_event(node, name, "Warning Evicted").strip() == f"Warning Evicted {message}".strip()


def test_a_shorter_longest_wait_between_restarts(node: Node) -> None:
    """Four restarts would take 70 s with upstream's 10 s that double."""
    node.apply(pod("looping", "exit 1"))

    def restarts() -> int:
        entries = status(node, "looping").get("containerStatuses") or [{}]
        return int(entries[0].get("restartCount", 0))

    node.until("five restarts", lambda: restarts() >= 5, 60)
    wait_for_event(node, "looping", "Warning BackOff Back-off restarting failed container")
    node.kubectl("delete", "pod", "looping")
