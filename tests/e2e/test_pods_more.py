"""Ends and edges of a pod's life: nothing holds up a deletion, the node refuses what does not fit."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, Node, need_kubectl, pod

from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

DEAF = "trap '' TERM; sleep 3600"
POLITE = "trap 'exit 0' TERM; sleep 3600 & wait"
QUICK = 60.0  # far from the hour that these pods have to end


def events(node: Node, name: str) -> list[str]:
    found = node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    return [f"{event['reason']}: {event['message']}" for event in found.json()["items"]]


def wait_for_event(node: Node, name: str, reason: str) -> str:
    def look() -> str:
        return next((event for event in events(node, name) if event.startswith(f"{reason}:")), "")

    return str(node.until(f"event {reason}", look))


def delete_quickly(node: Node, name: str, *options: str) -> None:
    """Deleted, its containers dead and its folder gone, long before its grace is over."""
    uid = node.get("pod", name)["metadata"]["uid"]
    began = time.monotonic()
    node.kubectl("delete", "pod", name, *options)
    node.until("its folder gone", lambda: not (node.root / "var/lib/kubelet-py/pods" / uid).exists(), QUICK)
    assert time.monotonic() - began < QUICK


@pytest.fixture
def silent_registry() -> Iterator[int]:
    """A registry that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_pod_can_be_deleted_during_its_pull(node: Node, silent_registry: int) -> None:
    image = f"127.0.0.1:{silent_registry}/hangs:1"
    node.apply(pod("pulling", container={"image": image}, terminationGracePeriodSeconds=3600))
    wait_for_event(node, "pulling", "Pulling")
    delete_quickly(node, "pulling")


def test_a_pod_can_be_deleted_while_its_restart_is_held_back(node: Node) -> None:
    node.apply(pod("crashing", "exit 1", terminationGracePeriodSeconds=3600))
    wait_for_event(node, "crashing", "BackOff")
    delete_quickly(node, "crashing")


def test_a_pod_can_be_deleted_during_its_post_start_hook(node: Node) -> None:
    hook = {"lifecycle": {"postStart": {"exec": {"command": ["sleep", "3600"]}}}}
    node.apply(pod("hooked", POLITE, container=hook, terminationGracePeriodSeconds=3600))
    wait_for_event(node, "hooked", "Started")
    delete_quickly(node, "hooked")


@pytest.mark.parametrize("options", [("--grace-period=1",), ("--grace-period=0", "--force")])
@pytest.mark.parametrize("hook", [{}, {"lifecycle": {"preStop": {"sleep": {"seconds": 3600}}}}])
def test_a_shorter_grace_hastens_a_stop_under_way(
    node: Node, options: tuple[str, ...], hook: dict[str, Any]
) -> None:
    name = f"deaf{len(options)}{len(hook)}"
    node.apply(pod(name, DEAF, container=hook, terminationGracePeriodSeconds=3600))
    node.wait_running(name)
    node.kubectl("delete", "pod", name, "--wait=false")
    wait_for_event(node, name, "Killing")
    assert node.phase(name) == "Running", "it has an hour"
    delete_quickly(node, name, *options)


def test_what_has_ended_shows_while_the_rest_still_ends(node: Node) -> None:
    body = pod("halves", DEAF, terminationGracePeriodSeconds=3600)
    template = body["spec"]["containers"][0]
    body["spec"]["containers"].append(template | {"name": "polite", "command": ["sh", "-c", POLITE]})
    node.apply(body)
    node.wait_running("halves")
    node.kubectl("delete", "pod", "halves", "--wait=false")

    def states() -> dict[str, str]:
        entries = node.get("pod", "halves")["status"]["containerStatuses"]
        return {entry["name"]: next(iter(entry["state"])) for entry in entries}

    node.until("one ended", lambda: states() == {"main": "running", "polite": "terminated"}, QUICK)
    delete_quickly(node, "halves", "--grace-period=1")


def test_sidecars_stop_after_the_containers_they_serve(node: Node) -> None:
    out = node.root / "home/order"
    out.mkdir()

    def saying(name: str, first: str = "true") -> str:
        told = f"trap '{first}; echo {name} >> /out/said; exit 0' TERM; echo set"
        return f"{told}; sleep 3600 & wait"

    # The hooks of all run at once: that of a sidecar does not wait for its turn.
    hooks = "until [ $(cat /out/said | wc -l) = 2 ]; do sleep 0.1; done"

    mount = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    volume = {"volumes": [{"name": "out", "hostPath": {"path": str(out)}}]}
    body = pod("served", saying("main", hooks), container=mount, terminationGracePeriodSeconds=20, **volume)
    template = body["spec"]["containers"][0] | {"restartPolicy": "Always"}
    body["spec"]["initContainers"] = [
        template
        | {"name": name, "command": ["sh", "-c", saying(name)]}
        | {"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /out/said"]}}}}
        for name in ("first", "second")
    ]
    node.apply(body)
    node.wait_running("served")
    node.until("ready", lambda: node.get("pod", "served")["status"]["containerStatuses"][0]["ready"])
    logs = ("logs", "served", "--all-containers")
    node.until("their traps are set", lambda: node.kubectl(*logs, check=False).out == "set\n" * 3)
    node.kubectl("delete", "pod", "served")
    assert (out / "said").read_text().split() == ["hook", "hook", "main", "second", "first"]
    shutil.rmtree(out)


def test_a_pod_past_its_active_deadline_fails(node: Node) -> None:
    # Nobody looks whether it runs before: on a busy machine that look may come when it has failed.
    node.apply(pod("late", POLITE, activeDeadlineSeconds=5))
    node.until("Failed", lambda: node.phase("late") == "Failed", QUICK)
    status = node.get("pod", "late")["status"]
    assert status["reason"] == "DeadlineExceeded"
    assert status["message"] == "Pod was active on the node longer than the specified deadline"
    assert "terminated" in status["containerStatuses"][0]["state"]
    wait_for_event(node, "late", "DeadlineExceeded")
    node.kubectl("delete", "pod", "late")


def test_the_node_refuses_what_does_not_fit(node: Node) -> None:
    name = node.kubectl("get", "nodes", "-o", "name").out.strip().removeprefix("node/")
    port = {"ports": [{"containerPort": 80, "hostPort": 18080}]}
    node.apply(pod("first", POLITE, container=port))
    node.wait_running("first")
    large = {"resources": {"requests": {"cpu": "1k"}}}
    huge = {"resources": {"requests": {"memory": "1Pi"}}}
    node.apply(
        pod("large", container=large, nodeName=name),
        pod("huge", container=huge, nodeName=name),
        pod("clash", container=port, nodeName=name),
        pod("picky", nodeSelector={"no": "such"}, nodeName=name),
    )
    wanted = {"large": "OutOfcpu", "huge": "OutOfmemory", "clash": "NodePorts", "picky": "NodeAffinity"}
    for pod_name, reason in wanted.items():
        node.until("Failed", lambda pod_name=pod_name: node.phase(pod_name) == "Failed", QUICK)
        status = node.get("pod", pod_name)["status"]
        assert status["reason"] == reason
        assert status["message"].startswith("Pod was rejected: ")
        wait_for_event(node, pod_name, reason)
        assert reason in node.kubectl("get", "pod", pod_name).out, "kubectl shows the reason as STATUS"
    node.kubectl("delete", "pod", "first", *wanted)
    node.apply(pod("after", POLITE, container=port, nodeName=name))
    node.wait_running("after")
    node.kubectl("delete", "pod", "after")


def test_containers_of_a_pod_share_memory_and_pods_do_not(node: Node) -> None:
    body = pod("sharing", POLITE)
    template = body["spec"]["containers"][0]
    body["spec"]["containers"].append(template | {"name": "other"})
    node.apply(body, pod("apart", POLITE))
    node.wait_running("sharing", "apart")
    uid = node.get("pod", "sharing")["metadata"]["uid"]

    def run(name: str, container: str, line: str) -> str:
        return node.kubectl("exec", name, "-c", container, "--", "sh", "-c", line).out

    run("sharing", "main", "echo hello > /dev/shm/said")
    assert run("sharing", "other", "cat /dev/shm/said; stat -c %a /dev/shm") == "hello\n1777\n"
    options = run("sharing", "other", "grep ' /dev/shm ' /proc/mounts").split()[3].split(",")
    assert {"rw", "nosuid", "nodev", "noexec", "size=65536k"} <= set(options)
    assert run("apart", "main", "ls /dev/shm") == ""
    assert uid in Path("/proc/mounts").read_text()
    node.kubectl("delete", "pod", "sharing", "apart")
    assert uid not in Path("/proc/mounts").read_text()


@pytest.mark.conformance(
    "[sig-node] Ephemeral Containers [NodeConformance] should update the ephemeral containers in an existing "
    "pod"
)
@pytest.mark.conformance(
    "[sig-node] Ephemeral Containers [NodeConformance] will start an ephemeral container in an existing pod"
)
def test_a_debug_container_sees_its_targets_processes(node: Node) -> None:
    need_kubectl("1.23", "debug")
    node.apply(pod("target", "trap 'exit 0' TERM; sleep 3611 & wait"))
    node.wait_running("target")
    node.kubectl(
        "debug", "target", "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=main",
        "-c", "look", "--", "sh", "-c", "ps; sleep 60",
    )  # fmt: skip

    def seen() -> str:
        return node.kubectl("logs", "target", "-c", "look", check=False).out

    node.until("its processes", lambda: "sleep 3611" in seen())
    node.kubectl(
        "debug", "target", "--image=busybox", "--image-pull-policy=IfNotPresent", "-c", "again", "--",
        "echo", "second",
    )  # fmt: skip
    node.until(
        "the second one, too",
        lambda: node.kubectl("logs", "target", "-c", "again", check=False).out == "second\n",
    )
    added = node.get("pod", "target")["spec"]["ephemeralContainers"]
    assert [container["name"] for container in added] == ["look", "again"]
    node.kubectl(
        "debug", "target", "--copy-to=copy", "--share-processes", "--image=busybox",
        "--image-pull-policy=IfNotPresent", "-c", "beside", "--", "sh", "-c", "ps; sleep 60",
    )  # fmt: skip
    node.until(
        "a copy whose containers share their processes",
        lambda: "sleep 3611" in node.kubectl("logs", "copy", "-c", "beside", check=False).out,
    )
    node.kubectl("delete", "pod", "copy", "--grace-period=1", "--wait=false")
    node.kubectl("delete", "pod", "target", "--grace-period=1")


def test_the_burstable_cgroup_weighs_what_its_pods_ask_for(node: Node) -> None:
    file = Path("/sys/fs/cgroup/cpu", NodePaths(node.root).cgroup_root, "kubepods/burstable/cpu.shares")
    if not file.exists():
        pytest.skip("no v1 cpu hierarchy to read cpu.shares from")
    assert file.read_text() == "2\n"
    asking = {"resources": {"requests": {"cpu": "250m"}}}
    node.apply(pod("half", POLITE, container=asking), pod("other-half", POLITE, container=asking))
    node.wait_running("half", "other-half")
    assert file.read_text() == "512\n"
    node.kubectl("delete", "pod", "half", "other-half")
    node.until("nothing", lambda: file.read_text() == "2\n", QUICK)


def test_a_grpc_probe_makes_a_pod_ready(node: Node) -> None:
    settings, healthy = bytes.fromhex("000000040000000000"), bytes.fromhex("00000700000000000100000000020801")
    # A pod on the host's network is asked at the node's own address, which is its podIP.
    with socket.create_server((NODE_IP, 0)) as server:
        probe = {"grpc": {"port": server.getsockname()[1]}, "periodSeconds": 1}
        body = pod("grpc", POLITE, container={"readinessProbe": probe}, hostNetwork=True)
        serving = threading.Event()

        def answer() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client, contextlib.suppress(ConnectionError):  # the node may have given up waiting
                    client.recv(4096)
                    if serving.is_set():
                        client.sendall(settings + healthy)

        threading.Thread(target=answer, daemon=True).start()
        node.apply(body)
        node.wait_running("grpc")

        def ready() -> bool:
            return bool(node.get("pod", "grpc")["status"]["containerStatuses"][0]["ready"])

        failed = "Unhealthy: Readiness probe failed: error: health rpc failed"
        node.until("a failure", lambda: any(event.startswith(failed) for event in events(node, "grpc")))
        assert not ready()
        serving.set()
        node.until("ready", ready, 15)
        node.kubectl("delete", "pod", "grpc")
