"""Each verb of issue "First light", typed at a real node with two real kubectls."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2e_node import KUBECTLS, Done, Node, pod

pytestmark = pytest.mark.e2e
Kubectl = Callable[..., Done]


def deployment(name: str, replicas: int = 2, command: str = "exec sleep 3600") -> dict[str, Any]:
    template = pod(name, f"trap 'exit 0' TERM; {command} & wait")
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
        },
    }


@pytest.fixture
def name(kubectl: Any) -> str:
    """A name of its own per client, so that both can use one node."""
    return "t" + kubectl.version.replace(".", "")


@pytest.fixture
def running(node: Node, kubectl: Kubectl, name: str) -> Any:
    """A running pod that prints a line a second and obeys SIGTERM."""
    script = (
        "trap 'exit 0' TERM; i=0; while [ $i -lt 600 ]; do echo line $i; i=$((i+1)); sleep 1 & wait $!; done"
    )
    node.apply(pod(name, script))
    node.wait_running(name)
    yield name
    node.kubectl("delete", "pod", name, "--ignore-not-found", "--force", "--grace-period=0")


def test_version_and_api_resources(kubectl: Kubectl) -> None:
    assert "Server Version" in kubectl("version").out
    resources = kubectl("api-resources").out
    for kind in ("Pod", "Deployment", "EndpointSlice", "Lease"):
        assert kind in resources


def test_get_in_all_forms(node: Node, kubectl: Kubectl, running: str) -> None:
    line = kubectl("get", "pod", running, "--no-headers").out.split()
    assert line[:4] == [running, "1/1", "Running", "0"]
    wide = kubectl("get", "pod", running, "-o", "wide").out
    assert "10.244.0." in wide and "NOMINATED NODE" in wide
    assert kubectl("get", "pod", running, "-o", "json").json()["kind"] == "Pod"
    assert "kind: Pod" in kubectl("get", "pod", running, "-o", "yaml").out
    assert kubectl("get", "pod", running, "-o", "name").out.strip() == f"pod/{running}"
    assert running in kubectl("get", "pods", "-A").out
    assert running in kubectl("get", "pods", "-l", f"app={running}").out
    assert running not in kubectl("get", "pods", "-l", f"app!={running}").out
    nodes = kubectl("get", "nodes").out
    assert " Ready " in nodes


def test_get_watch_shows_a_pod_come_and_go(node: Node, kubectl: Any, running: str) -> None:
    argv = node.kubectl_argv("get", "pods", "-w", "--no-headers", version=kubectl.version)
    shown, name = node.home / "watched", f"{running}w"
    with shown.open("w") as out:
        watch = subprocess.Popen(argv, stdout=out, env=node.environment())
    try:
        # The watch goes on from the list, so what comes after that is seen.
        node.until("the list", lambda: running in shown.read_text())
        node.apply(pod(name, "exit 0", restartPolicy="Never"))
        node.until("pod Succeeded", lambda: node.phase(name) == "Succeeded")
        kubectl("delete", "pod", name)
        node.until("its end is seen", lambda: "Completed" in shown.read_text())
    finally:
        watch.terminate()
        watch.wait(10)
    seen = [line.split()[2] for line in shown.read_text().splitlines() if line.startswith(name)]
    assert seen[0] in ("Pending", "ContainerCreating")


def test_describe_shows_conditions_and_events(node: Node, kubectl: Kubectl, running: str) -> None:
    node.until("its events", lambda: "Started" in kubectl("describe", "pod", running).out)
    text = kubectl("describe", "pod", running).out
    for part in ("Conditions:", "Scheduled", "Pulled", "Created", "Started", "QoS Class"):
        assert part in text
    assert "Allocatable:" in kubectl("describe", "node").out


def test_create_and_delete(kubectl: Kubectl, name: str) -> None:
    assert "created" in kubectl("create", "configmap", name, "--from-literal=a=1").out
    assert kubectl("get", "configmap", name, "-o", "jsonpath={.data.a}").out == "1"
    again = kubectl("create", "configmap", name, "--from-literal=a=1", check=False)
    assert again.code == 1 and "already exists" in again.err
    assert "deleted" in kubectl("delete", "configmap", name).out
    assert "NotFound" in kubectl("get", "configmap", name, check=False).err
    kubectl("create", "secret", "generic", name, "--from-literal=p=q")
    assert kubectl("get", "secret", name, "-o", "jsonpath={.data.p}").out == "cQ=="
    kubectl("delete", "secret", name)


def test_apply_patch_label_annotate_edit(node: Node, kubectl: Kubectl, name: str) -> None:
    body = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: '1', b: '2'}}\n"
    assert "created" in kubectl("apply", "-f", "-", stdin=body).out
    assert "unchanged" in kubectl("apply", "-f", "-", stdin=body).out
    assert "configured" in kubectl("apply", "-f", "-", stdin=body.replace(", b: '2'", "")).out
    assert kubectl("get", "cm", name, "-o", "json").json()["data"] == {"a": "1"}
    kubectl("patch", "cm", name, "-p", '{"data":{"c":"3"}}')
    kubectl("patch", "cm", name, "--type=merge", "-p", '{"data":{"a":null}}')
    kubectl("patch", "cm", name, "--type=json", "-p", '[{"op":"add","path":"/data/d","value":"4"}]')
    assert kubectl("get", "cm", name, "-o", "json").json()["data"] == {"c": "3", "d": "4"}
    kubectl("label", "cm", name, "color=red")
    kubectl("annotate", "cm", name, "note=hello")
    metadata = kubectl("get", "cm", name, "-o", "json").json()["metadata"]
    assert metadata["labels"] == {"color": "red"} and metadata["annotations"]["note"] == "hello"
    kubectl("label", "cm", name, "color-")
    kubectl("edit", "cm", name, env={"KUBE_EDITOR": "sed -i s/hello/edited/"})
    assert kubectl("get", "cm", name, "-o", "jsonpath={.metadata.annotations.note}").out == "edited"
    kubectl("delete", "cm", name)


def test_server_side_dry_run_changes_nothing(kubectl: Kubectl, name: str) -> None:
    body = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}dry}}\n"
    assert "server dry run" in kubectl("apply", "--dry-run=server", "-f", "-", stdin=body).out
    assert "NotFound" in kubectl("get", "cm", name + "dry", check=False).err


def test_deployment_scale_rollout_undo_set_image(node: Node, kubectl: Kubectl, name: str) -> None:
    name += "d"
    node.apply(deployment(name))
    kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
    assert kubectl("get", "deployment", name, "--no-headers").out.split()[1] == "2/2"
    kubectl("scale", f"deployment/{name}", "--replicas=3")
    kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
    node.until(
        "three pods", lambda: len(kubectl("get", "pods", "-l", f"app={name}", "-o", "name").out.split()) == 3
    )
    kubectl("set", "image", f"deployment/{name}", "main=docker.io/library/busybox:latest")
    kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
    path = "jsonpath={.spec.template.spec.containers[0].image}"
    assert kubectl("get", "deployment", name, "-o", path).out == "docker.io/library/busybox:latest"
    kubectl("rollout", "undo", f"deployment/{name}")
    kubectl("rollout", "status", f"deployment/{name}", "--timeout=60s")
    assert kubectl("get", "deployment", name, "-o", path).out == "busybox"
    assert "REVISION" in kubectl("rollout", "history", f"deployment/{name}").out
    kubectl("delete", "deployment", name)
    node.until("pods gone", lambda: kubectl("get", "pods", "-l", f"app={name}", "-o", "name").out == "")


def test_logs_in_all_forms(node: Node, kubectl: Any, running: str) -> None:
    node.until("three lines", lambda: "line 2" in kubectl("logs", running).out)
    assert kubectl("logs", running).out.startswith("line 0\nline 1\n")
    assert len(kubectl("logs", running, "--tail=2").out.splitlines()) == 2
    stamped = kubectl("logs", running, "--timestamps", "--tail=1").out
    assert stamped[4] == "-" and stamped.split()[0].endswith("Z")
    assert "line 0\n" not in kubectl("logs", running, "--since=1s").out, "two lines later"
    assert "line 0" in kubectl("logs", "-l", f"app={running}", "--tail=-1").out
    argv = node.kubectl_argv("logs", "-f", running, version=kubectl.version)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=node.environment()) as follow:
        assert follow.stdout is not None
        first = [follow.stdout.readline() for _ in range(4)]
        assert first == [f"line {i}\n" for i in range(4)]
        node.kubectl("delete", "pod", running)
        assert follow.wait(15) == 0


def restarts(node: Node, name: str) -> int:
    """How often the container was started again; 0 before the node has reported anything."""
    statuses = node.get("pod", name)["status"].get("containerStatuses", [])
    return sum(status["restartCount"] for status in statuses)


def test_logs_previous(node: Node, kubectl: Kubectl, name: str) -> None:
    name += "p"
    script = "echo once $(cat /data/n 2>/dev/null); echo x >> /data/n"
    script += "; [ $(wc -l < /data/n) -gt 1 ] && sleep 600; exit 3"
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    node.apply(pod(name, script, container=mount, volumes=[{"name": "data", "emptyDir": {}}]))
    node.until("restarted", lambda: restarts(node, name) == 1)
    assert kubectl("logs", name, "--previous").out == "once\n"
    node.until("second log", lambda: kubectl("logs", name).out == "once x\n")
    kubectl("delete", "pod", name)


def test_exec_with_input_output_and_exit_code(kubectl: Kubectl, running: str) -> None:
    assert kubectl("exec", running, "--", "echo", "hello").out == "hello\n"
    assert kubectl("exec", "-i", running, "--", "cat", stdin="from outside\n").out == "from outside\n"
    failed = kubectl("exec", running, "--", "sh", "-c", "echo oops >&2; exit 7", check=False)
    assert failed.code == 7 and "oops" in failed.err
    missing = kubectl("exec", running, "--", "no-such-program", check=False)
    assert missing.code != 0 and "no-such-program" in missing.err


def run_on_terminal(
    argv: list[str], send: bytes, env: dict[str, str], until: bytes, seconds: float = 20
) -> bytes:
    """Run argv on a pty of its own, send `send` once something was printed, read until `until` or the end."""
    master, slave = pty.openpty()
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True)
    os.close(slave)
    output, sent, deadline = b"", False, time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            try:
                chunk = os.read(master, 4096)
            except OSError:
                break
            output += chunk
            if not sent and (b"#" in output or b"$" in output or b"prompt" in output):
                os.write(master, send)
                sent = True
            if sent and until in output.replace(send.strip(), b""):
                break
        process.wait(10)
    finally:
        process.kill()
        os.close(master)
    return output


def test_exec_on_a_terminal(node: Node, kubectl: Any, running: str) -> None:
    argv = node.kubectl_argv("exec", "-it", running, "--", "sh", version=kubectl.version)
    output = run_on_terminal(argv, b"tty; exit\n", node.environment(), b"/dev/pts/0\r\n")
    assert b"/dev/pts/0" in output


def test_attach_to_standard_input(node: Node, kubectl: Kubectl, name: str) -> None:
    name += "a"
    node.apply(pod(name, "read x; echo got $x; sleep 600", container={"stdin": True}))
    node.wait_running(name)
    argv = node.kubectl_argv("attach", "-i", name, version=kubectl.version)  # type: ignore[attr-defined]
    attach = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=node.environment()
    )
    assert attach.stdin and attach.stdout
    attach.stdin.write("fish\n")
    attach.stdin.flush()
    assert "got fish" in attach.stdout.readline()
    attach.terminate()
    attach.communicate(timeout=10)
    kubectl("delete", "pod", name, "--force", "--grace-period=0")


def test_run_interactively_and_remove(kubectl: Kubectl, name: str) -> None:
    argv = (
        "run",
        name + "r",
        "-i",
        "--rm",
        "--restart=Never",
        "--image=busybox",
        "--image-pull-policy=Never",
    )
    done = kubectl(*argv, "--", "cat", stdin="through the pod\n")
    assert "through the pod" in done.out
    assert "NotFound" in kubectl("get", "pod", name + "r", check=False).err


def test_expose_makes_a_service_with_endpoints(node: Node, kubectl: Kubectl, running: str) -> None:
    kubectl("expose", "pod", running, "--port=80", "--target-port=8080")
    address = node.get("pod", running)["status"]["podIP"]
    node.until(
        "endpoints",
        lambda: (
            address
            in kubectl("get", "endpoints", running, "-o", "jsonpath={.subsets[*].addresses[*].ip}").out
        ),
    )
    assert address in kubectl("describe", "service", running).out
    kubectl("delete", "service", running)


def test_wait_for_condition_and_deletion(node: Node, kubectl: Kubectl, name: str) -> None:
    node.apply(pod(name + "c"))
    kubectl("wait", "--for=condition=Ready", f"pod/{name}c", "--timeout=60s")
    kubectl("delete", "pod", name + "c", "--wait=false")
    kubectl("wait", "--for=delete", f"pod/{name}c", "--timeout=60s")


def test_explain(kubectl: Kubectl) -> None:
    text = kubectl("explain", "pod.spec.containers").out
    assert "imagePullPolicy" in text


@pytest.mark.parametrize("version", sorted(KUBECTLS))
def test_every_kubectl_there_is_creates_runs_and_deletes(node: Node, version: str) -> None:
    name = "v" + version.replace(".", "")
    node.kubectl("create", "deployment", name, "--image=busybox", version=version)
    node.kubectl("delete", "deployment", name, version=version)
    node.kubectl(
        "run", name, "--image=busybox", "--image-pull-policy=Never", "--", "sleep", "600", version=version
    )
    node.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s", version=version)
    assert node.kubectl("exec", name, "--", "hostname", version=version).out.strip() == name
    node.kubectl("delete", "pod", name, "--force", "--grace-period=0", version=version)
