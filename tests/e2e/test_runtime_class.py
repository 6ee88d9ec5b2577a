"""Pods under other OCI runtimes, chosen by RuntimeClass: Debian's runc and crun, and our own command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_node import KUBECTLS, Node, need_kubectl, pod

from runtime.oci_launcher import write

pytestmark = pytest.mark.e2e

HANDLERS = ("runc", "crun", "own")
COUNT = 'trap "exit 0" TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.1 & wait $!; done'


@pytest.fixture(scope="module")
def node(unstarted_node: Node) -> Node:
    """Up, with a runtimes.toml and a RuntimeClass for each of its handlers."""
    own = unstarted_node.root / "kubelet-py-oci"
    write(own, own.with_suffix(".code"))
    tables = [f'[runtimes.own]\nruntime_path = "{own}"\nhybrid_cgroups = true\n']
    for name in ("runc", "crun"):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"needs {name} (apt-get install {name})")
        tables.append(f'[runtimes.{name}]\nruntime_path = "{path}"\n')
    strange = unstarted_node.root / "strange"
    strange.write_text(
        STRANGE.replace("FOLDER", str(unstarted_node.root)).replace("RUNC", shutil.which("runc") or "")
    )
    strange.chmod(0o755)
    tables.append(f'[runtimes.strange]\nruntime_path = "{strange}"\n')
    folder = unstarted_node.root / "etc/kubelet-py"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtimes.toml").write_text("".join(tables))
    unstarted_node.cli("up", "--detach")
    unstarted_node.apply(*(runtime_class(name) for name in (*HANDLERS, "strange", "kata")))
    return unstarted_node


def runtime_class(handler: str) -> dict[str, Any]:
    metadata = {"name": f"with-{handler}"}
    return {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": handler}


@pytest.fixture(params=HANDLERS)
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def under(handler: str, name: str, command: Any = ("sleep", "3600"), **spec: Any) -> dict[str, Any]:
    return pod(f"{handler}-{name}", command, runtimeClassName=f"with-{handler}", **spec)


def known(node: Node, handler: str) -> set[str]:
    """The containers that the runtime itself keeps a record of."""
    folder = node.root / "run/kubelet-py/oci" / handler
    return set(os.listdir(folder)) if folder.is_dir() else set()


def container_status(node: Node, name: str) -> dict[str, Any]:
    """An empty one until the node has said something."""
    found: list[dict[str, Any]] = node.get("pod", name)["status"].get("containerStatuses") or []
    return found[0] if found else {"restartCount": 0, "ready": False, "state": {}}


def waiting_for(node: Node, name: str) -> str:
    waiting = container_status(node, name)["state"].get("waiting") or {}
    return str(waiting.get("reason", ""))


def container_id(node: Node, name: str) -> str:
    return str(container_status(node, name)["containerID"]).partition("://")[2]


def cgroups_of(uid: str) -> list[str]:
    done = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", f"pod{uid}"], capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.conformance(
    "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass without PodOverhead"
)
def test_a_pods_life_from_running_to_gone(node: Node, handler: str) -> None:
    name = f"{handler}-life"
    node.apply(under(handler, "life", "echo started; sleep 3600"))
    node.wait_running(name)
    identity = container_id(node, name)
    assert identity in known(node, handler), "the container is not the runtime's"
    node.until("its log", lambda: node.kubectl("logs", name).out == "started\n")
    done = node.kubectl("exec", name, "--", "sh", "-c", "echo in; hostname; exit 7", check=False)
    assert (done.code, done.out) == (7, f"in\n{name}\n")
    missing = node.kubectl("exec", name, "--", "no-such-program", check=False)
    assert missing.code != 0 and "no-such-program" in missing.err
    piped = node.kubectl("exec", "-i", name, "--", "cat", stdin="hello")
    assert piped.out == "hello"
    uid = node.get("pod", name)["metadata"]["uid"]
    assert cgroups_of(uid)
    node.kubectl("delete", "pod", name)
    node.until("the runtime's record gone", lambda: identity not in known(node, handler))
    node.until("its cgroups gone", lambda: not cgroups_of(uid))


def test_exec_on_a_terminal(node: Node, handler: str) -> None:
    name = f"{handler}-tty"
    node.apply(under(handler, "tty"))
    node.wait_running(name)
    argv = node.kubectl_argv("exec", "-it", name, "--", "sh", "-c", "tty; stty size; exit 3")
    done = subprocess.run(
        ["script", "-qec", " ".join(f"'{word}'" for word in argv), "/dev/null"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=node.environment(),
        timeout=60,
    )
    assert b"/dev/pts/" in done.stdout, done.stdout
    assert done.returncode == 3


def test_exit_codes_and_crash_loop(node: Node, handler: str) -> None:
    name = f"{handler}-crash"
    node.apply(under(handler, "crash", "echo dying; exit 3"))
    node.until("a second crash", lambda: container_status(node, name)["restartCount"] >= 1, 60)

    node.until("CrashLoopBackOff", lambda: waiting_for(node, name) == "CrashLoopBackOff", 60)
    ended = container_status(node, name)["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (3, "Error")
    assert node.kubectl("logs", name, "--previous").out == "dying\n"
    node.kubectl("delete", "pod", name)
    node.until("no record left", lambda: not any("crash" in text for text in known(node, handler)))


def test_container_that_runs_out_of_memory_is_oomkilled(node: Node, handler: str) -> None:
    name = f"{handler}-hog"
    limit = {"resources": {"limits": {"memory": "24Mi"}}}
    node.apply(under(handler, "hog", "exec tail /dev/zero", container=limit, restartPolicy="Never"))
    node.until("pod Failed", lambda: node.phase(name) == "Failed", 60)
    ended = container_status(node, name)["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_failing_probe_restarts_the_container(node: Node, handler: str) -> None:
    name = f"{handler}-probed"
    check = {"exec": {"command": ["cat", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 2}
    ready = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    probes = {"livenessProbe": check, "readinessProbe": ready}
    node.apply(
        under(handler, "probed", "touch /tmp/alive; sleep 5; rm /tmp/alive; sleep 3600", container=probes)
    )
    node.until("ready", lambda: container_status(node, name)["ready"])
    node.until("restarted", lambda: container_status(node, name)["restartCount"] >= 1, 60)


def test_grace_is_given_and_the_preset_identity_holds(node: Node, handler: str) -> None:
    """What our own launch does for a pod is done for this one: user, read-only root, no new privileges."""
    name = f"{handler}-user"
    context = {"runAsUser": 1000, "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False}
    script = "id -u; touch /x; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; sleep 3600"
    node.apply(under(handler, "user", script, container={"securityContext": context}))
    node.wait_running(name)
    text = node.until("its output", lambda: (t := node.kubectl("logs", name).out).count("\n") >= 4 and t)
    lines = [line.replace("\t", " ") for line in text.splitlines()]
    assert lines[0] == "1000"
    assert "Read-only file system" in text
    assert "NoNewPrivs: 1" in lines and "Seccomp: 2" in lines


def test_every_kind_of_pod_runs(node: Node, handler: str) -> None:
    """Privileged, on the host's namespaces, with one PID namespace, guaranteed, with init and volume."""
    need_kubectl("1.23", "debug")
    limits = {"resources": {"limits": {"cpu": "100m", "memory": "64Mi"}}}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    first = {"name": "first", "image": "busybox", "imagePullPolicy": "IfNotPresent", **mount}
    node.apply(
        under(handler, "privileged", container={"securityContext": {"privileged": True}}),
        under(handler, "host", hostNetwork=True, hostPID=True, hostIPC=True),
        under(handler, "shared", shareProcessNamespace=True),
        under(handler, "guaranteed", container=limits),
        under(
            handler,
            "volume",
            initContainers=[{**first, "command": ["sh", "-c", "echo first > /data/file"]}],
            volumes=[{"name": "data", "emptyDir": {}}],
            container=mount,
        ),
    )
    names = [f"{handler}-{kind}" for kind in ("privileged", "host", "shared", "guaranteed", "volume")]
    node.wait_running(*names)
    node.kubectl("exec", names[0], "--", "sh", "-c", "mkdir /x && mount -t tmpfs x /x")
    assert "kubelet-py-shim" in node.kubectl("exec", names[1], "--", "ps").out
    assert "pause" in node.kubectl("exec", names[2], "--", "ps").out
    assert node.kubectl("exec", names[4], "-c", "main", "--", "cat", "/data/file").out == "first\n"
    beside = ("debug", names[3], "--image=busybox", "--image-pull-policy=IfNotPresent", "--target=main")
    node.kubectl(*beside, "-c", "beside", "--", "sh", "-c", "ps; sleep 3600")
    logs = ("logs", names[3], "-c", "beside")
    node.until("the target's ps", lambda: "sleep 3600" in node.kubectl(*logs, check=False).out)
    plan = node.cli("inspect", "plan", names[3]).out
    assert "create --bundle" in plan and "overlay" not in plan
    node.kubectl("delete", "pod", *names)


def test_resize_in_place_goes_through_the_runtime(node: Node, handler: str) -> None:
    name = f"{handler}-grows"
    newer = [version for version in KUBECTLS if version in ("1.32", "1.33")]
    if not newer:
        pytest.skip("no kubectl of 1.32 or newer beside the one on PATH (--subresource resize)")
    small = {"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}}
    node.apply(under(handler, "grows", container={"resources": small}))
    node.wait_running(name)
    before = container_status(node, name)
    large = {"requests": {"memory": "32Mi"}, "limits": {"memory": "96Mi"}}
    body = json.dumps({"spec": {"containers": [{"name": "main", "resources": large}]}})
    argv = ("patch", "pod", name, "--subresource", "resize", "--patch", body)
    node.kubectl(*argv, version=newer[-1])
    node.until("resized", lambda: container_status(node, name)["resources"]["limits"]["memory"] == "96Mi")
    folder = node.root / "var/lib/kubelet-py/containers" / container_id(node, name)
    asked = json.loads((folder / "resources.json").read_text())
    assert asked["memory"]["limit"] == 96 << 20, "the runtime was not asked"
    assert container_status(node, name)["containerID"] == before["containerID"]


def test_containers_survive_the_sigkill_of_the_agent(node: Node) -> None:
    node.apply(*(under(handler, "count", COUNT) for handler in HANDLERS))
    names = [f"{handler}-count" for handler in HANDLERS]
    node.wait_running(*names)
    before = {name: container_status(node, name) for name in names}

    def lines(name: str) -> list[int]:
        return [int(line) for line in node.kubectl("logs", name, check=False).out.split()]

    for name in names:
        node.until("lines", lambda name=name: len(lines(name)) > 3)
    old = node.pid("agent")
    os.kill(old, signal.SIGKILL)
    node.until("a new agent", lambda: _pid(node) not in (None, old))
    for name in names:
        argv = ("exec", name, "--", "true")
        node.until("exec works again", lambda argv=argv: node.kubectl(*argv, check=False).code == 0)
        seen = len(lines(name))
        node.until("new lines", lambda name=name, seen=seen: len(lines(name)) > seen + 3)
        now = lines(name)
        assert now == list(range(len(now))), "log lines lost or doubled"
        assert container_status(node, name)["containerID"] == before[name]["containerID"]
        assert container_status(node, name)["restartCount"] == 0
    node.kubectl("delete", "pod", *names)
    for name in names:
        identity = before[name]["containerID"].partition("://")[2]
        node.until("record gone", lambda i=identity, n=name: i not in known(node, n.partition("-")[0]))


def _pid(node: Node) -> int | None:
    done = node.cli("status", "--pid", "agent", check=False)
    return int(done.out) if done.code == 0 else None


@pytest.mark.conformance("[sig-node] RuntimeClass should reject a Pod requesting a deleted RuntimeClass")
def test_a_class_that_is_gone_is_no_class(node: Node) -> None:
    node.apply(runtime_class("own") | {"metadata": {"name": "short-lived"}})
    node.kubectl("delete", "runtimeclass", "short-lived")
    body = json.dumps(pod("late", runtimeClassName="short-lived"))
    refused = node.kubectl("create", "-f", "-", stdin=body, check=False)
    assert refused.code == 1 and 'RuntimeClass "short-lived" not found' in refused.err


@pytest.mark.conformance(
    "[sig-node] RuntimeClass should schedule a Pod requesting a RuntimeClass and initialize its Overhead"
)
def test_a_classes_overhead_is_its_pods(node: Node) -> None:
    overhead = {"cpu": "10m", "memory": "1Mi"}
    node.apply(runtime_class("own") | {"metadata": {"name": "heavy"}, "overhead": {"podFixed": overhead}})
    node.apply(pod("heavy", runtimeClassName="heavy"))
    node.wait_running("heavy")
    assert node.get("pod", "heavy")["spec"]["overhead"] == overhead
    node.kubectl("delete", "pod", "heavy")
    node.kubectl("delete", "runtimeclass", "heavy")


@pytest.mark.conformance("[sig-node] RuntimeClass should support RuntimeClasses API operations")
def test_the_life_of_a_class(node: Node) -> None:
    path = "/apis/node.k8s.io/v1/runtimeclasses"
    group = node.kubectl("get", "--raw", "/apis/node.k8s.io/v1").json()
    [kind] = [entry for entry in group["resources"] if entry["name"] == "runtimeclasses"]
    every = {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
    assert set(kind["verbs"]) == every
    labels = {"made": "by-test"}
    made = [runtime_class("own") | {"metadata": {"name": f"api-{n}", "labels": labels}} for n in range(3)]
    node.apply(*made)
    listed = node.kubectl("get", "--raw", f"{path}?labelSelector=made%3Dby-test").json()
    assert [item["metadata"]["name"] for item in listed["items"]] == ["api-0", "api-1", "api-2"]
    patch = '{"metadata":{"annotations":{"patched":"true"}}}'
    node.kubectl("patch", "runtimeclass", "api-0", "--type=merge", "-p", patch)
    read = node.kubectl("get", "--raw", f"{path}/api-0").json()
    read["metadata"]["annotations"]["updated"] = "true"
    node.kubectl("replace", "-f", "-", stdin=json.dumps(read))
    notes = node.kubectl("get", "--raw", f"{path}/api-0").json()["metadata"]["annotations"]
    assert (notes["patched"], notes["updated"]) == ("true", "true")
    version = listed["metadata"]["resourceVersion"]
    node.kubectl("delete", "runtimeclass", "api-0")
    node.kubectl("delete", "--raw", f"{path}?labelSelector=made%3Dby-test")
    assert node.kubectl("get", "--raw", f"{path}?labelSelector=made%3Dby-test").json()["items"] == []
    query = f"watch=1&resourceVersion={version}&timeoutSeconds=1&labelSelector=made%3Dby-test"
    told = [json.loads(line) for line in node.kubectl("get", "--raw", f"{path}?{query}").out.splitlines()]
    kinds = [event["type"] for event in told]
    assert kinds == ["MODIFIED", "MODIFIED", "DELETED", "DELETED", "DELETED"]


@pytest.mark.conformance("[sig-node] RuntimeClass should reject a Pod requesting a non-existent RuntimeClass")
def test_unknown_class_is_forbidden_and_unknown_handler_an_event(node: Node) -> None:
    body = pod("classless", runtimeClassName="no-such-class")
    (node.root / "classless.json").write_text(json.dumps(body))
    refused = node.kubectl("apply", "-f", str(node.root / "classless.json"), check=False)
    assert refused.code == 1
    text = 'pods "classless" is forbidden: pod rejected: RuntimeClass "no-such-class" not found'
    assert text in refused.err
    node.apply(under("kata", "pod"))
    selector = "involvedObject.name=kata-pod,reason=FailedCreatePodSandBox"

    def message() -> str:
        return node.kubectl(
            "get", "events", "--field-selector", selector, "-o", "jsonpath={.items[*].message}"
        ).out

    told = node.until("FailedCreatePodSandBox", message)
    assert 'no runtime for "kata" is configured' in told
    assert node.phase("kata-pod") == "Pending"
    node.kubectl("delete", "pod", "kata-pod")


def test_classes_are_listed_and_the_node_names_its_handlers(node: Node, kubectl: Any) -> None:
    lines = [line.split() for line in kubectl("get", "runtimeclasses").out.splitlines()]
    assert lines[0] == ["NAME", "HANDLER", "AGE"]
    assert ["with-crun", "crun"] in [line[:2] for line in lines]
    [only] = node.kubectl("get", "nodes", "-o", "json").json()["items"]
    assert {h["name"] for h in only["status"]["runtimeHandlers"]} == {"", "strange", *HANDLERS}


def test_a_table_that_makes_no_sense_keeps_the_agent_from_starting(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "etc/kubelet-py"
    folder.mkdir(parents=True)
    (folder / "runtimes.toml").write_text('[runtimes.x]\nruntime_path = "/nonexistent"\n')
    argv = [sys.executable, "-m", "kubelet_py.agent", "--root", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, env=node.environment(), timeout=60)
    assert done.returncode == 1
    assert "runtimes.x: runtime_path /nonexistent is no executable file" in done.stderr


STRANGE = """#!/bin/sh
[ -e FOLDER/sane ] && exec RUNC "$@"
exit 0
"""


def test_a_runtime_that_does_nothing_is_an_event_and_the_pod_comes_when_it_is_mended(
    node: Node, tmp_path: Path
) -> None:
    """Exit code 0 and no container; then the program is gone; then it is there again and does its work."""
    program = node.root / "strange"
    name = "strange-pod"
    node.apply(under("strange", "pod"))

    def told(*parts: str) -> bool:
        selector = f"involvedObject.name={name},reason=Failed"
        found = node.kubectl("get", "events", "--field-selector", selector, "-o", "json").json()["items"]
        return any(all(part in event["message"] for part in parts) for event in found)

    node.until("an event", lambda: told("Error: OCI runtime create failed: it left no process"))
    reasons = ("RunContainerError", "CrashLoopBackOff")
    node.until("why it waits", lambda: waiting_for(node, name) in reasons)
    program.rename(program.with_suffix(".gone"))
    node.until("another", lambda: told("Error: Could not run OCI runtime", "ENOENT"), 90)
    (node.root / "sane").touch()
    program.with_suffix(".gone").rename(program)
    node.until("running", lambda: "running" in container_status(node, name)["state"], 120)
    assert node.kubectl("exec", name, "--", "echo", "in").out == "in\n"
    uid = node.get("pod", name)["metadata"]["uid"]
    program.unlink()  # it is stopped and cleared away without
    node.kubectl("delete", "pod", name)
    node.until("its cgroups gone", lambda: not cgroups_of(uid))
    node.until("the runtime's records gone", lambda: known(node, "strange") == set())
