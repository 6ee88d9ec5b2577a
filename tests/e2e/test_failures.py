"""What goes wrong says so the way a Kubernetes user knows it, and nothing half-made stays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from e2e_node import REPOSITORY, Node, pod

pytestmark = pytest.mark.e2e


def waiting_reason(node: Node, name: str) -> str:
    statuses = node.get("pod", name)["status"].get("containerStatuses", [])
    return str(statuses[0]["state"].get("waiting", {}).get("reason", "")) if statuses else ""


def events(node: Node, name: str) -> str:
    return node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}").out


@pytest.fixture(scope="module", autouse=True)
def held(node: Node) -> Iterator[None]:
    """A pod that cannot start, from the first test to the last."""
    node.apply(pod("held", container={"envFrom": [{"configMapRef": {"name": "never-made"}}]}))
    yield
    node.kubectl("delete", "pod", "held", "--wait=false")


def test_crashing_container_is_backed_off_with_its_exit_code(node: Node) -> None:
    node.apply(pod("crash", "exit 3"))
    node.until("CrashLoopBackOff", lambda: waiting_reason(node, "crash") == "CrashLoopBackOff")
    status = node.get("pod", "crash")["status"]["containerStatuses"][0]
    assert status["lastState"]["terminated"]["exitCode"] == 3
    assert status["lastState"]["terminated"]["reason"] == "Error"
    node.until("the event", lambda: "BackOff" in events(node, "crash"))
    node.kubectl("delete", "pod", "crash")


def test_image_that_nobody_has(node: Node) -> None:
    node.apply(pod("noimage", container={"image": "localhost:1/none:latest"}))
    node.until(
        "ErrImagePull", lambda: waiting_reason(node, "noimage") in ("ErrImagePull", "ImagePullBackOff")
    )
    held_back = 'ImagePullBackOff Back-off pulling image "localhost:1/none:latest": ErrImagePull: '

    def waits() -> str:  # now and then it is being pulled again
        entry = node.get("pod", "noimage")["status"]["containerStatuses"][0]
        return "{reason} {message}".format_map({"message": "", **entry["state"]["waiting"]})

    node.until("ImagePullBackOff and why", lambda: waits().startswith(held_back))
    node.until("the event", lambda: "Failed" in events(node, "noimage"))
    node.apply(pod("never", container={"image": "not-here", "imagePullPolicy": "Never"}))
    node.until("ErrImageNeverPull", lambda: waiting_reason(node, "never") == "ErrImageNeverPull")
    node.apply(pod("invalid", container={"image": "UPPER//case"}))
    node.until("InvalidImageName", lambda: waiting_reason(node, "invalid") == "InvalidImageName")
    pairs = (("noimage", "ErrImagePull"), ("noimage", "ImagePullBackOff"), ("never", "ErrImageNeverPull"),
             ("invalid", "InvalidImageName"))  # fmt: skip
    for name, reason in pairs:
        said = f"Error: {reason}"
        node.until(said, lambda name=name, said=said: said in events(node, name))
    node.kubectl("delete", "pod", "noimage", "never", "invalid")


def test_missing_config_map_holds_the_container_until_it_appears(node: Node) -> None:
    env = {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]}
    node.apply(pod("waits", container=env))
    node.until("config error", lambda: waiting_reason(node, "waits") == "CreateContainerConfigError")
    waiting = node.get("pod", "waits")["status"]["containerStatuses"][0]["state"]["waiting"]
    assert waiting["message"] == 'configmap "late" not found'
    node.kubectl("create", "configmap", "late", "--from-literal=a=1")
    node.wait_running("waits")
    assert "A=1" in node.kubectl("exec", "waits", "--", "env").out
    node.kubectl("delete", "pod", "waits")


def test_program_that_is_not_in_the_image(node: Node) -> None:
    node.apply(pod("noprogram", ["/no/such/program"], restartPolicy="Never"))
    node.until("Failed", lambda: node.phase("noprogram") == "Failed")
    state = node.get("pod", "noprogram")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert state["exitCode"] == 128 and "no/such/program" in state["message"]
    node.kubectl("delete", "pod", "noprogram")


def test_unknown_field_wrong_type_and_missing_image_name_their_fields(node: Node) -> None:
    unknown = pod("bad", container={"imagee": "x"})
    done = node.kubectl("create", "-f", "-", stdin=json.dumps(unknown), check=False)
    assert done.code == 1 and 'unknown field "spec.containers[0].imagee"' in done.err
    wrong = pod("bad", terminationGracePeriodSeconds="soon")
    done = node.kubectl("create", "-f", "-", stdin=json.dumps(wrong), check=False)
    assert done.code == 1 and "terminationGracePeriodSeconds" in done.err
    missing = pod("Bad_Name", container={"image": ""})
    done = node.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(missing), check=False)
    assert "metadata.name" in done.err and "spec.containers[0].image: Required value" in done.err
    assert node.kubectl("get", "pod", "bad", check=False).code == 1


def test_pod_too_big_for_the_node_stays_pending_and_says_why(node: Node) -> None:
    node.apply(pod("big", container={"resources": {"requests": {"cpu": "1000"}}}))
    node.until("event", lambda: "Insufficient cpu" in events(node, "big"))
    assert node.phase("big") == "Pending"
    node.kubectl("delete", "pod", "big")


def test_container_over_its_memory_limit_is_oom_killed(node: Node) -> None:
    hog = "exec tail -c 200m /dev/zero"
    node.apply(
        pod("hog", hog, restartPolicy="Never", container={"resources": {"limits": {"memory": "20Mi"}}})
    )
    node.until("Failed", lambda: node.phase("hog") == "Failed")
    state = node.get("pod", "hog")["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (state["reason"], state["exitCode"]) == ("OOMKilled", 137)
    node.kubectl("delete", "pod", "hog")


def test_failing_liveness_probe_restarts_and_readiness_takes_out(node: Node) -> None:
    probe: dict[str, Any] = {
        "exec": {"command": ["test", "-e", "/ok"]},
        "periodSeconds": 1,
        "timeoutSeconds": 30,  # a busy machine is not a failure
        "failureThreshold": 1,
    }
    start = "touch /ok; trap 'exit 0' TERM; sleep 600 & wait"
    made = probe | {"failureThreshold": 60}  # the file, which the container makes itself
    node.apply(pod("alive", start, container={"livenessProbe": probe, "startupProbe": made}),
               pod("ready", start, container={"readinessProbe": probe}))  # fmt: skip
    node.kubectl("wait", "--for=condition=Ready", "pod/alive", "pod/ready", "--timeout=60s")
    node.kubectl("exec", "ready", "--", "rm", "/ok")
    node.kubectl("wait", "--for=condition=Ready=false", "pod/ready", "--timeout=60s")
    assert node.get("pod", "ready")["status"]["containerStatuses"][0]["restartCount"] == 0
    node.kubectl("exec", "alive", "--", "rm", "/ok")
    node.until(
        "restart", lambda: node.get("pod", "alive")["status"]["containerStatuses"][0]["restartCount"] >= 1
    )
    for reason in ("Unhealthy", "Killing"):  # events come up to a second late
        node.until(f"event {reason}", lambda reason=reason: reason in events(node, "alive"))
    node.kubectl("delete", "pod", "alive", "ready")


def test_second_up_is_refused_in_one_line(node: Node) -> None:
    done = node.cli("up", "--detach", check=False)
    assert done.code == 1 and done.err.count("\n") == 1
    assert "A node already runs here" in done.err and "kubelet-py down" in done.err


def test_port_in_use_is_named(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        argv = ["up", "--root", str(other), "--detach", "--bind-address", "127.0.0.1", "--secure-port", port]
        done = node._run([sys.executable, "-m", "kubelet_py", *argv], check=False, timeout=30)
    assert done.code == 1 and "EADDRINUSE" in done.err and f"127.0.0.1:{port}" in done.err


def test_without_iptables_up_says_what_to_install(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("noiptables")
    argv = [sys.executable, "-m", "kubelet_py", "up", "--root", str(root), "--detach"]
    done = node._run(argv, check=False, timeout=30, env={"PATH": str(root)})
    assert done.code == 1 and "apt-get install iptables" in done.err


def test_without_root_up_says_so(node: Node) -> None:
    # Imported before the change of user: another user may not be able to read this interpreter's library.
    code = "import os, sys; from kubelet_py.cli.main import build_parser, main; build_parser(); "
    code += "os.setuid(65534); sys.exit(main(['up']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 1 and "sudo kubelet-py up" in done.stderr


def test_full_disk_is_refused_before_anything_is_made(
    node: Node, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("full")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(root)], check=True)
    try:
        argv = [sys.executable, "-m", "kubelet_py", "up", "--root", str(root), "--detach"]
        argv += ["--secure-port", "7443", "--kubelet-port", "11250", "--proxy-healthz-port", "11256"]
        done = node._run(argv, check=False, timeout=30)
        assert done.code == 1 and "free" in done.err
        assert not os.path.exists(root / "etc/kubelet-py/admin.conf")
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_container_that_cannot_be_made_is_tried_less_and_less_often(node: Node) -> None:
    """After 1, 2, 4 and 8 seconds, and then every ten, as upstream tries."""

    def tries() -> list[datetime]:
        log = (node.root / "var/log/kubelet-py/agent.log").read_text()
        lines = [line for line in log.splitlines() if "reason=CreateContainerConfigError" in line]
        lines = [line for line in lines if "pod=held_default" in line]
        return [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") for line in lines]

    def longest_wait() -> float:
        return max(((b - a).total_seconds() for a, b in pairwise(tries())), default=0.0)

    # News of the pod bring a look forward, in between.
    node.until("a wait of eight seconds", lambda: longest_wait() >= 7.5)
