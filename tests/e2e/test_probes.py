"""Probes as a user sees them: who is started anew, who is ready and when.

All pods are made at once, and those that must be left alone are looked at when those that must not have been
started anew.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
from e2e_node import Node, pod
from resource_node import wait_for_event

from kubelet_py.pods.model import epoch

pytestmark = pytest.mark.e2e

TITLE = "[sig-node] Probing container"
DELAY = 6
SERVE = "mkdir /www; echo ok > /www/healthz; exec httpd -f -p 8080 -h /www"
# SETTINGS, HEADERS (:status 200), DATA (SERVING), HEADERS (end of stream): what a gRPC health server says.
SERVING = base64.b64encode(
    bytes.fromhex("000000040000000000")
    + bytes.fromhex("000001010400000001") + b"\x88"
    + bytes.fromhex("000007000000000001") + bytes.fromhex("00000000020801")
    + bytes.fromhex("000001010500000001") + b"\x88"
).decode()  # fmt: skip
HEALTH = {"exec": {"command": ["cat", "/tmp/health"]}}
HTTP = {"httpGet": {"path": "/healthz", "port": 8080}}
GRPC = {"grpc": {"port": 7000}}
HEALTHY = "echo ok > /tmp/health; exec sleep 3600"
SICK = "echo ok > /tmp/health; sleep 3; rm /tmp/health; exec sleep 3600"

RESTARTED = [
    ("exec-bad", SICK, HEALTH, 'should be restarted with a exec "cat /tmp/health" liveness probe'),
    ("http-bad", SERVE.replace("exec", "(sleep 3; rm /www/healthz) & exec"), HTTP,
     "should be restarted with a /healthz http liveness probe"),
    ("grpc-bad", SERVE, GRPC, "should be restarted with a GRPC liveness probe"),
]  # fmt: skip
LEFT_ALONE = [
    ("exec-good", HEALTHY, HEALTH, 'should *not* be restarted with a exec "cat /tmp/health" liveness probe'),
    ("tcp-good", SERVE, {"tcpSocket": {"port": 8080}},
     "should *not* be restarted with a tcp:8080 liveness probe"),
    ("http-good", SERVE, HTTP, "should *not* be restarted with a /healthz http liveness probe"),
    ("grpc-good", f"exec nc -ll -p 7000 -e sh -c 'echo {SERVING} | base64 -d; sleep 1'", GRPC,
     "should *not* be restarted with a GRPC liveness probe"),
]  # fmt: skip


def probed(name: str, command: str, probe: dict[str, Any], kind: str = "livenessProbe", **more: int) -> Any:
    # Not before the server listens; a busy machine gets its time for each look.
    settings = {"initialDelaySeconds": 3, "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5}
    return pod(name, command, container={kind: {**settings, **probe, **more}})


# Pods that have an hour to end, and probes that give them a second; one that ends well when it is told to; a
# command that hangs in two processes.
DEAF = "trap '' TERM; while :; do sleep 0.1; done"
HEEDS = "trap 'exit 0' TERM; sleep 3600 & wait"
HANGS = {"exec": {"command": ["sh", "-c", "sleep 3621 & sleep 3622"]}, "timeoutSeconds": 1}


def impatient(kind: str, probe: dict[str, Any]) -> Any:
    settings = {"periodSeconds": 1, "failureThreshold": 1, "terminationGracePeriodSeconds": 1}
    body = pod(f"deaf-{kind}", DEAF, container={f"{kind}Probe": settings | probe})
    return {**body, "spec": body["spec"] | {"terminationGracePeriodSeconds": 3600}}


@pytest.fixture(scope="module")
def probes(node: Node) -> Node:
    """All pods of this module, created."""
    node.apply(
        *(probed(name, command, probe) for name, command, probe, _ in RESTARTED + LEFT_ALONE),
        probed("delayed", HEALTHY, HEALTH, "readinessProbe", initialDelaySeconds=DELAY),
        probed("never", HEALTHY, {"exec": {"command": ["false"]}}, "readinessProbe"),
        impatient("startup", {"tcpSocket": {"port": 9}}),
        impatient("liveness", {"exec": {"command": ["false"]}}),
        probed("hangs", HEALTHY, HANGS, "readinessProbe", timeoutSeconds=1),
    )
    return node


def entry(node: Node, name: str) -> dict[str, Any]:
    found = node.get("pod", name)["status"].get("containerStatuses") or [{}]
    return dict(found[0])


def restarts(node: Node, name: str) -> int:
    return int(entry(node, name).get("restartCount", 0))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row[0], marks=pytest.mark.conformance(f"{TITLE} {row[3]}"), id=row[0])
        for row in RESTARTED
    ],
)
def test_one_that_fails_is_started_anew(probes: Node, name: str) -> None:
    probes.until(f"{name} started anew", lambda: restarts(probes, name) >= 1, 60)
    wait_for_event(probes, name, "Warning Unhealthy Liveness probe failed: ")
    wait_for_event(probes, name, "Normal Killing Container main failed liveness probe, will be restarted")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(row[0], marks=pytest.mark.conformance(f"{TITLE} {row[3]}"), id=row[0])
        for row in LEFT_ALONE
    ],
)
def test_one_that_succeeds_is_left_alone(probes: Node, name: str) -> None:
    for other, *_ in RESTARTED:
        probes.until(f"{other} started anew", lambda other=other: restarts(probes, other) >= 1, 60)
    assert entry(probes, name)["ready"] and restarts(probes, name) == 0
    events = probes.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}").out
    assert "Unhealthy" not in events


@pytest.mark.conformance(
    f"{TITLE} with readiness probe should not be ready before initial delay and never restart"
)
def test_ready_after_the_initial_delay(probes: Node) -> None:
    probes.until("ready", lambda: entry(probes, "delayed").get("ready"))
    status = probes.get("pod", "delayed")["status"]
    [ready] = [c for c in status["conditions"] if c["type"] == "Ready"]
    begun = status["containerStatuses"][0]["state"]["running"]["startedAt"]
    assert epoch(ready["lastTransitionTime"]) - epoch(begun) >= DELAY - 1, "both are whole seconds"
    assert restarts(probes, "delayed") == 0


@pytest.mark.conformance(f"{TITLE} with readiness probe that fails should never be ready and never restart")
def test_never_ready_and_never_started_anew(probes: Node) -> None:
    wait_for_event(probes, "never", "Warning Unhealthy Readiness probe failed: ")
    for other, *_ in RESTARTED:
        probes.until(f"{other} started anew", lambda other=other: restarts(probes, other) >= 1, 60)
    assert not entry(probes, "never")["ready"] and restarts(probes, "never") == 0
    assert probes.phase("never") == "Running"


@pytest.mark.conformance(f"{TITLE} should have monotonically increasing restart count")
def test_the_restart_count_only_grows(probes: Node) -> None:
    seen = [0]

    def look() -> bool:
        seen.append(restarts(probes, "exec-bad"))
        return seen[-1] >= 3

    probes.until("three restarts", look, 120)
    assert seen == sorted(seen)


@pytest.mark.parametrize("kind", ["startup", "liveness"])
def test_a_probe_has_a_grace_of_its_own(probes: Node, kind: str) -> None:
    name = f"deaf-{kind}"
    probes.until(f"{name} started anew", lambda: restarts(probes, name) >= 1)
    wait_for_event(probes, name, f"Warning Unhealthy {kind.capitalize()} probe failed: ")
    wait_for_event(probes, name, f"Normal Killing Container main failed {kind} probe, will be restarted")


def test_a_command_that_hangs_ends_with_all_that_it_started(probes: Node) -> None:
    wait_for_event(probes, "hangs", "Warning Unhealthy Readiness probe failed: command timed out: ")
    # One look at a time: were they left alone, there would be ever more of them.
    probes.until("three looks", lambda: _failures(probes) >= 3)
    assert probes.kubectl("exec", "hangs", "--", "ps").out.count("sleep 3621") <= 2
    assert not entry(probes, "hangs")["ready"] and restarts(probes, "hangs") == 0


def _failures(node: Node) -> int:
    found = node.kubectl("get", "events", "--field-selector", "involvedObject.name=hangs", "-o", "json")
    items = found.json()["items"]
    return sum(event.get("count") or 1 for event in items if event["reason"] == "Unhealthy")


def test_one_that_heeds_its_stop_signal_comes_back_too(probes: Node) -> None:
    """It ends with 0, which is no failure for OnFailure; but it was killed to be started anew."""
    sick = {"exec": {"command": ["false"]}}
    names = {"heeds-on-failure": "OnFailure", "heeds-never": "Never"}
    bodies = [probed(name, HEEDS, sick, failureThreshold=1) for name in names]
    for body in bodies:
        body["spec"]["restartPolicy"] = names[body["metadata"]["name"]]
    probes.apply(*bodies)
    probes.until("started anew", lambda: restarts(probes, "heeds-on-failure") >= 1)
    assert probes.phase("heeds-on-failure") == "Running"
    wait_for_event(
        probes, "heeds-on-failure", "Normal Killing Container main failed liveness probe, will be restarted"
    )
    probes.until("over", lambda: probes.phase("heeds-never") == "Succeeded")
    wait_for_event(probes, "heeds-never", "Normal Killing Container main failed liveness probe")
    assert restarts(probes, "heeds-never") == 0
