"""What a container does at the edges of its life: postStart and preStop hooks, and its last words."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, pod
from resource_node import wait_for_event

pytestmark = pytest.mark.e2e

HOOK = "[sig-node] Container Lifecycle Hook when create a pod with lifecycle hook should execute"
RUNTIME = (
    "[sig-node] Container Runtime blackbox test on terminated container should report termination message"
)
# An HTTP server that writes down what it was asked.
ANSWER = (
    'while read -r line; do line=${line%"$(printf "\\r")"}; [ -z "$line" ] && break; '
    'echo "$line" >> /tmp/asked; done; printf "HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n"'
)
POLITE = "trap 'exit 0' TERM; sleep 3600 & wait"


@pytest.fixture(scope="module")
def server(node: Node) -> str:
    """The address of a pod that keeps every request's lines in /tmp/asked."""
    node.apply(pod("server", ["nc", "-ll", "-p", "8080", "-e", "sh", "-c", ANSWER]))
    node.wait_running("server")
    address: str = node.get("pod", "server")["status"]["podIP"]
    return address


def asked(node: Node, line: str) -> bool:
    found = node.kubectl("exec", "server", "--", "cat", "/tmp/asked", check=False)
    return line in found.out.splitlines()


@pytest.fixture
def out(node: Node) -> Iterator[Path]:
    """A folder of the host that a test's pods write to, as /out."""
    folder = node.root / "home/out"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def writing(
    name: str, lifecycle: dict[str, Any], out: Path, command: str = POLITE, **spec: Any
) -> dict[str, Any]:
    mounts = {"volumeMounts": [{"name": "out", "mountPath": "/out"}], "lifecycle": lifecycle}
    volumes = [{"name": "out", "hostPath": {"path": str(out)}}]
    return pod(name, command, container=mounts, volumes=volumes, **spec)


def shell(line: str) -> dict[str, Any]:
    return {"exec": {"command": ["sh", "-c", line]}}


@pytest.mark.conformance(f"{HOOK} poststart exec hook properly")
def test_a_pod_runs_when_its_post_start_hook_has_ended(node: Node, out: Path) -> None:
    node.apply(writing("poststart", {"postStart": shell("sleep 1; echo $HOSTNAME > /out/said")}, out))
    node.wait_running("poststart")
    assert (out / "said").read_text() == "poststart\n"
    node.kubectl("delete", "pod", "poststart")


@pytest.mark.conformance(f"{HOOK} prestop exec hook properly")
@pytest.mark.conformance("[sig-node] PreStop should call prestop when killing a pod")
def test_a_pre_stop_hook_ends_before_the_container_is_told(node: Node, out: Path) -> None:
    command = "trap 'echo told >> /out/said; exit 0' TERM; echo up > /out/up; sleep 3600 & wait"
    hook = {"preStop": shell("sleep 1; echo hook >> /out/said")}
    node.apply(writing("prestop", hook, out, command, terminationGracePeriodSeconds=20))
    node.until("its trap is set", (out / "up").exists)
    node.kubectl("delete", "pod", "prestop")
    assert (out / "said").read_text() == "hook\ntold\n"


@pytest.mark.conformance(f"{HOOK} poststart http hook properly")
@pytest.mark.conformance(f"{HOOK} prestop http hook properly")
def test_http_hooks_ask_the_host_that_they_name(node: Node, server: str) -> None:
    def ask(word: str) -> dict[str, Any]:
        headers = [{"name": "X-Who", "value": word}]
        return {
            "httpGet": {"host": server, "port": 8080, "path": f"/echo?msg={word}", "httpHeaders": headers}
        }

    lifecycle = {"postStart": ask("poststart"), "preStop": ask("prestop")}
    node.apply(pod("http", POLITE, container={"lifecycle": lifecycle}))
    node.wait_running("http")
    for line in ("GET /echo?msg=poststart HTTP/1.1", "X-Who: poststart", "User-Agent: kube-lifecycle/1.32"):
        assert asked(node, line), line
    assert not asked(node, "X-Who: prestop")
    node.kubectl("delete", "pod", "http")
    node.until("asked at its end", lambda: asked(node, "GET /echo?msg=prestop HTTP/1.1"))


def test_a_pre_stop_sleep_holds_back_the_stop(node: Node, out: Path) -> None:
    command = "trap 'exit 0' TERM; echo up > /out/up; sleep 3600 & wait"
    hook = {"preStop": {"sleep": {"seconds": 3}}}
    node.apply(writing("sleeper", hook, out, command, terminationGracePeriodSeconds=30))
    node.until("its trap is set", (out / "up").exists)
    began = time.monotonic()
    node.kubectl("delete", "pod", "sleeper")
    assert time.monotonic() - began >= 3


def test_a_failed_post_start_hook_ends_its_container_and_keeps_its_output_from_the_events(node: Node) -> None:
    hook = {"postStart": shell("echo a secret; exit 7")}
    node.apply(pod("unlucky", POLITE, container={"lifecycle": hook}))
    wait_for_event(node, "unlucky", "Warning FailedPostStartHook PostStartHook failed")

    def restarted() -> bool:
        entries = node.get("pod", "unlucky")["status"].get("containerStatuses") or ()
        return any(entry["restartCount"] >= 1 for entry in entries)

    node.until("started anew", restarted)
    select = ("events", "--field-selector", "involvedObject.name=unlucky", "-o", "json")
    node.until("event Killing", lambda: "Killing" in node.kubectl("get", *select).out)
    assert "a secret" not in node.kubectl("get", *select).out
    node.kubectl("delete", "pod", "unlucky")


FALLBACK = {"terminationMessagePolicy": "FallbackToLogsOnError"}
CUSTOM = {
    "terminationMessagePath": "/dev/termination-custom-log",
    "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": False},
}
MESSAGES = [
    pytest.param(
        "custom", CUSTOM, "echo -n DONE > /dev/termination-custom-log", "DONE", "Succeeded",
        marks=pytest.mark.conformance(
            f"{RUNTIME} if TerminationMessagePath is set as non-root user and at a non-default path"
        ),
    ),
    pytest.param(
        "from-log", FALLBACK, "echo -n DONE; exit 1", "DONE", "Failed",
        marks=pytest.mark.conformance(
            f"{RUNTIME} from log output if TerminationMessagePolicy FallbackToLogsOnError is set"
        ),
    ),
    pytest.param(
        "empty", FALLBACK, "echo DONE; exit 0", "", "Succeeded",
        marks=pytest.mark.conformance(
            f"{RUNTIME} as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set"
        ),
    ),
    pytest.param(
        "from-file", FALLBACK, "echo -n OK > /dev/termination-log; echo DONE; exit 0", "OK", "Succeeded",
        marks=pytest.mark.conformance(
            f"{RUNTIME} from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set"
        ),
    ),
    pytest.param("file-only", {}, "echo DONE; exit 1", "", "Failed"),
    pytest.param(
        "long", {}, "for i in $(seq 0 599); do echo line $i; done > /dev/termination-log; exit 1",
        "".join(f"line {n}\n" for n in range(600))[-4096:], "Failed",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "line", "message", "phase"), MESSAGES)
def test_termination_message(
    node: Node, name: str, settings: dict[str, Any], line: str, message: str, phase: str
) -> None:
    node.apply(pod(name, line, container=settings, restartPolicy="Never"))
    node.until(phase, lambda: node.phase(name) == phase)
    ended = node.get("pod", name)["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended.get("message", "") == message
    node.kubectl("delete", "pod", name)
