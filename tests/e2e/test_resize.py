"""In-place resize by kubectl: the kernel's limits change under the running container, or it starts anew."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import KUBECTLS, Node, pod
from resource_node import asking, cgroup, number, running_node, status, the_node, wait_for_event

pytestmark = pytest.mark.e2e
MI = 1 << 20
HOLD = "trap 'exit 0' TERM; sleep 3600 & wait"
SMALL = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "128Mi"}}
NEW = [version for version in KUBECTLS if version in ("1.32", "1.33")]


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, {}) as made:
        yield made


def resize(node: Node, name: str, resources: dict[str, Any], *, check: bool = True) -> Any:
    if not NEW:
        pytest.skip("no kubectl of 1.32 or newer beside the one on PATH (--subresource resize)")
    body = json.dumps({"spec": {"containers": [{"name": "main", "resources": resources}]}})
    argv = ("patch", "pod", name, "--subresource", "resize", "--patch", body)
    return node.kubectl(*argv, version=NEW[-1], check=check)


def container(node: Node, name: str) -> Any:
    return status(node, name)["containerStatuses"][0]


def limits(node: Node, name: str) -> tuple[int, int, int, int]:
    """shares, quota and memory of the container, and the pod's memory."""
    pod = f"burstable/pod{node.get('pod', name)['metadata']['uid']}"
    own = container(node, name)["containerID"].partition("://")[2]
    return (
        number(cgroup(node, "cpu", pod) / own / "cpu.shares"),
        number(cgroup(node, "cpu", pod) / own / "cpu.cfs_quota_us"),
        number(cgroup(node, "memory", pod) / own / "memory.limit_in_bytes") // MI,
        number(cgroup(node, "memory", pod) / "memory.limit_in_bytes") // MI,
    )


def resize_conditions(node: Node, name: str) -> dict[str, str]:
    found = status(node, name)["conditions"]
    return {c["type"]: c.get("reason", "") for c in found if c["type"].startswith("PodResize")}


def test_a_running_container_gets_more_and_less_without_a_restart(node: Node) -> None:
    node.apply(asking(pod("plain", HOLD), **SMALL))
    node.wait_running("plain")
    assert limits(node, "plain") == (102, 20000, 128, 128)
    before = container(node, "plain")
    assert before["allocatedResources"] == SMALL["requests"] and before["resources"] == SMALL
    more = {"requests": {"cpu": "300m", "memory": "96Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}}
    resize(node, "plain", more)
    node.until("more", lambda: limits(node, "plain") == (307, 50000, 256, 256))
    node.until("status", lambda: container(node, "plain")["resources"] == more)
    assert container(node, "plain")["allocatedResources"] == more["requests"]
    less = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"cpu": "100m", "memory": "256Mi"}}
    resize(node, "plain", less)
    node.until("less", lambda: limits(node, "plain") == (51, 10000, 256, 256))
    node.until("status", lambda: container(node, "plain")["resources"] == less)
    # The same by hand: kubectl sends what the editor has made of it.
    edit = {"KUBE_EDITOR": "sed -i s/100m/150m/"}
    node.kubectl("edit", "pod", "plain", "--subresource", "resize", version=NEW[-1], env=edit)
    node.until("a little more", lambda: limits(node, "plain") == (51, 15000, 256, 256))
    after = container(node, "plain")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert resize_conditions(node, "plain") == {}
    assert number(cgroup(node, "cpu", "burstable/cpu.shares")) == 51
    node.kubectl("delete", "pod", "plain")


def test_a_container_restarts_where_its_policy_says_so(node: Node) -> None:
    policy = {"resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}
    body = pod("again", HOLD, container=policy, restartPolicy="OnFailure")
    node.apply(asking(body, **SMALL))
    node.wait_running("again")
    resize(node, "again", {"limits": {"cpu": "300m", "memory": "128Mi"}})
    node.until("cpu", lambda: limits(node, "again")[1] == 30000)
    assert container(node, "again")["restartCount"] == 0, "the policy is for memory"
    resize(node, "again", {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}})
    node.until("restarted", lambda: container(node, "again")["restartCount"] == 1)
    node.until("running", lambda: "running" in container(node, "again")["state"])
    node.until("less", lambda: limits(node, "again") == (102, 30000, 64, 64))
    wait_for_event(node, "again", "Normal Killing Container main resize requires restart")
    node.until("nothing under way", lambda: resize_conditions(node, "again") == {})
    node.kubectl("delete", "pod", "again")


def test_what_does_not_fit_is_deferred_or_infeasible(node: Node) -> None:
    cores = int(the_node(node)["status"]["capacity"]["cpu"])
    node.apply(
        asking(pod("neighbour", HOLD), requests={"cpu": f"{cores * 1000 - 600}m"}),
        asking(pod("wishful", HOLD), requests={"cpu": "100m"}),
    )
    node.wait_running("neighbour", "wishful")
    resize(node, "wishful", {"requests": {"cpu": str(cores + 1)}})
    node.until("infeasible", lambda: resize_conditions(node, "wishful") == {"PodResizePending": "Infeasible"})
    pending = next(c for c in status(node, "wishful")["conditions"] if c["type"] == "PodResizePending")
    numbers = f"requested: {cores * 1000 + 1000}, capacity: {cores * 1000}"
    assert pending["message"] == f"Node didn't have enough capacity: cpu, {numbers}"
    assert container(node, "wishful")["allocatedResources"] == {"cpu": "100m"}
    resize(node, "wishful", {"requests": {"cpu": f"{cores * 1000 - 500}m"}})
    node.until("deferred", lambda: resize_conditions(node, "wishful") == {"PodResizePending": "Deferred"})
    assert container(node, "wishful")["allocatedResources"] == {"cpu": "100m"}
    node.kubectl("delete", "pod", "neighbour")
    wanted = {"cpu": f"{cores * 1000 - 500}m"}
    node.until("there is room", lambda: container(node, "wishful")["allocatedResources"] == wanted)
    node.until("no condition", lambda: resize_conditions(node, "wishful") == {})
    assert container(node, "wishful")["restartCount"] == 0
    node.kubectl("delete", "pod", "wishful")


def test_a_wish_that_was_refused_is_none_for_the_next_agent(node: Node) -> None:
    node.apply(asking(pod("kept", HOLD), **SMALL))
    node.wait_running("kept")
    resize(node, "kept", {"requests": {"cpu": "500"}, "limits": {"cpu": "500"}})
    node.until("infeasible", lambda: resize_conditions(node, "kept") == {"PodResizePending": "Infeasible"})
    before = limits(node, "kept")
    agent = node.pid("agent")
    os.kill(agent, signal.SIGKILL)
    node.until("another agent", lambda: node.cli("status", "--pid", "agent", check=False).out.strip() not in
               ("", str(agent)))  # fmt: skip
    # A resize that it does agree to shows that it has looked at the pod.
    resize(node, "kept", {"requests": {"cpu": "100m"}, "limits": {"cpu": "250m"}})
    node.until("cpu", lambda: limits(node, "kept")[1] == 25000)
    assert limits(node, "kept") == (before[0], 25000, *before[2:])
    node.until("no condition", lambda: resize_conditions(node, "kept") == {})
    assert container(node, "kept")["allocatedResources"] == SMALL["requests"]
    done = resize(node, "kept", {"requests": {"memory": "128Mi"}, "limits": {"cpu": "100m"}}, check=False)
    assert done.code != 0 and "Pod QOS Class may not change as a result of resizing" in done.err
    node.kubectl("delete", "pod", "kept")
