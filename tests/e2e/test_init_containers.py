"""Init containers, and those that stay: order, failure, the end of a pod whose sidecars still run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

TITLE = "[sig-node] InitContainer [NodeConformance] should"
STAY = "exec sleep 3600"


def with_init(name: str, policy: str, init: dict[str, str], main: str) -> dict[str, Any]:
    body = pod(name, main, restartPolicy=policy)
    template = body["spec"]["containers"][0]
    body["spec"]["initContainers"] = [
        template | {"name": each, "command": ["sh", "-c", line]} for each, line in init.items()
    ]
    return body


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in status["conditions"]}


def reached(node: Node, name: str, phase: str) -> dict[str, Any]:
    node.until(f"{name} {phase}", lambda: node.phase(name) == phase)
    status: dict[str, Any] = node.get("pod", name)["status"]
    return status


@pytest.mark.conformance(f"{TITLE} invoke init containers on a RestartNever pod")
def test_a_pod_that_never_restarts(node: Node) -> None:
    node.apply(with_init("never", "Never", {"init1": "true", "init2": "true"}, "true"))
    status = reached(node, "never", "Succeeded")
    assert conditions(status)["Initialized"]["status"] == "True"
    for entry in status["initContainerStatuses"]:
        assert entry["ready"] and entry["state"]["terminated"]["exitCode"] == 0
    ends = [entry["state"]["terminated"] for entry in status["initContainerStatuses"]]
    assert ends[0]["finishedAt"] <= ends[1]["startedAt"]
    node.kubectl("delete", "pod", "never")


@pytest.mark.conformance(f"{TITLE} invoke init containers on a RestartAlways pod")
def test_a_pod_that_always_restarts(node: Node) -> None:
    node.apply(with_init("always", "Always", {"init1": "true", "init2": "true"}, STAY))
    status = reached(node, "always", "Running")
    assert conditions(status)["Initialized"]["status"] == "True"
    assert [entry["restartCount"] for entry in status["initContainerStatuses"]] == [0, 0]
    assert all(entry["state"]["terminated"]["exitCode"] == 0 for entry in status["initContainerStatuses"])
    node.kubectl("delete", "pod", "always")


@pytest.mark.conformance(f"{TITLE} not start app containers if init containers fail on a RestartAlways pod")
def test_a_failing_init_container_is_tried_again_and_nothing_after_it_starts(node: Node) -> None:
    node.apply(with_init("blocked", "Always", {"init1": "exit 1", "init2": "true"}, STAY))

    def init() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = node.get("pod", "blocked")["status"].get("initContainerStatuses", [])
        return found

    # Upstream waits for three restarts, which its back-off makes half a minute of.
    node.until("three restarts", lambda: init() and init()[0]["restartCount"] >= 3, 90)
    status = node.get("pod", "blocked")["status"]
    assert status["phase"] == "Pending"
    initialized = conditions(status)["Initialized"]
    assert (initialized["status"], initialized["reason"]) == ("False", "ContainersNotInitialized")
    assert initialized["message"] == "containers with incomplete status: [init1 init2]"
    assert status["initContainerStatuses"][1]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    node.kubectl("delete", "pod", "blocked")


@pytest.mark.conformance(
    f"{TITLE} not start app containers and fail the pod if init containers fail on a RestartNever pod"
)
def test_a_failing_init_container_fails_a_pod_that_never_restarts(node: Node) -> None:
    node.apply(with_init("failed", "Never", {"init1": "true", "init2": "exit 4"}, "true"))
    status = reached(node, "failed", "Failed")
    initialized = conditions(status)["Initialized"]
    assert (initialized["status"], initialized["reason"]) == ("False", "ContainersNotInitialized")
    assert initialized["message"] == "containers with incomplete status: [init2]"
    assert status["initContainerStatuses"][1]["state"]["terminated"]["exitCode"] == 4
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    node.kubectl("delete", "pod", "failed")


@pytest.fixture
def out(node: Node) -> Iterator[Path]:
    folder = node.root / "home/out"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def saying(body: dict[str, Any], out: Path) -> dict[str, Any]:
    """All containers of the pod write to /out."""
    mount = {"volumeMounts": [{"name": "out", "mountPath": "/out"}]}
    body["spec"]["volumes"] = [{"name": "out", "hostPath": {"path": str(out)}}]
    for container in body["spec"]["containers"] + body["spec"]["initContainers"]:
        container |= mount
    return body


def sidecar(name: str) -> str:
    return (
        f"trap 'echo stop {name} >> /out/said; exit 0' TERM; "
        f"echo start {name} >> /out/said; touch /tmp/up; sleep 3600 & wait"
    )


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_pod_with_an_end_ends_though_its_sidecars_run(node: Node, out: Path, policy: str) -> None:
    """Each sidecar has started before what comes after it; they stop last, in reverse order."""
    name = f"job-{policy.lower()}"
    lines = {"one": sidecar("one"), "middle": "echo middle >> /out/said", "two": sidecar("two")}
    body = saying(with_init(name, policy, lines, "echo main >> /out/said"), out)
    body["spec"]["terminationGracePeriodSeconds"] = 20
    up = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    for container in body["spec"]["initContainers"]:
        if container["name"] != "middle":
            container |= {"restartPolicy": "Always", "startupProbe": up}
    node.apply(body)
    status = reached(node, name, "Succeeded")
    said = (out / "said").read_text().splitlines()
    assert said == ["start one", "middle", "start two", "main", "stop two", "stop one"]
    assert [entry["restartCount"] for entry in status["initContainerStatuses"]] == [0, 0, 0]
    assert conditions(status)["Initialized"]["reason"] == "PodCompleted"
    node.kubectl("delete", "pod", name)


def test_a_sidecar_that_ends_comes_back_in_a_pod_that_never_restarts(node: Node, out: Path) -> None:
    # Main begins when the sidecar was seen to run, as upstream; so it runs until main has begun.
    until_main = "until [ -e /out/up ]; do sleep 0.1; done"
    body = saying(with_init("lively", "Never", {"side": until_main}, f"touch /out/up; {STAY}"), out)
    body["spec"]["initContainers"][0]["restartPolicy"] = "Always"
    node.apply(body)

    def side() -> dict[str, Any]:
        found = node.get("pod", "lively")["status"].get("initContainerStatuses") or [{}]
        return dict(found[0])

    node.until("started anew", lambda: side().get("restartCount", 0) >= 1)
    node.until("main runs", lambda: node.phase("lively") == "Running")
    node.until("held back", lambda: side()["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")
    assert side()["lastState"]["terminated"]["reason"] == "Completed"
    node.kubectl("delete", "pod", "lively")
