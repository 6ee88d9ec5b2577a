"""kubectl's less trodden paths, with both kinds of client: cut logs, sizes of terminals, cp, paging, diff."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Done, Node, pod
from on_terminal import OnTerminal

pytestmark = pytest.mark.e2e
Kubectl = Callable[..., Done]

COUNT = "trap 'exit 0' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2 & wait $!; done"


@pytest.fixture
def name(kubectl: Any) -> str:
    return "e" + kubectl.version.replace(".", "")


@pytest.fixture(scope="module")
def counter(node: Node) -> Iterator[str]:
    """A pod that prints a numbered line five times a second, and echoes what is sent to port 7000."""
    node.apply(pod("counter", f"nc -ll -p 7000 -e cat & {COUNT}"))
    node.wait_running("counter")
    yield "counter"
    node.kubectl("delete", "pod", "counter")


def test_questions_are_sent_as_objects(kubectl: Kubectl) -> None:
    """Their kinds cannot be patched, so newer kubectls ask first whether they are custom resources."""
    asked = {"user": "jane", "resourceAttributes": {"verb": "get", "resource": "pods"}}
    for group, kind, spec in (
        ("authorization.k8s.io", "SubjectAccessReview", asked),
        ("authentication.k8s.io", "TokenReview", {"token": "nonsense"}),
    ):
        body = {"apiVersion": f"{group}/v1", "kind": kind, "spec": spec}
        told = kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(body)).json()["status"]
        assert not told.get("allowed", told.get("authenticated", False))


def deployment(name: str, replicas: int = 2, **spec: Any) -> dict[str, Any]:
    template = pod(name, "trap 'exit 0' TERM; sleep 3600 & wait")
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template["spec"]},
            **spec,
        },
    }


def numbers(text: str) -> list[int]:
    return [int(line.split()[-1]) for line in text.splitlines()]


def test_logs_since_and_limit_bytes(node: Node, kubectl: Kubectl, counter: str) -> None:
    node.until("ten lines", lambda: len(numbers(kubectl("logs", counter).out)) > 10)
    stamped = [line.split() for line in kubectl("logs", counter, "--timestamps").out.splitlines()]
    middle = stamped[len(stamped) // 2]
    since = kubectl("logs", counter, f"--since-time={middle[0]}").out
    # The parameter has whole seconds: it begins somewhere in that second, which has five lines.
    assert int(middle[-1]) - 6 <= numbers(since)[0] <= int(middle[-1])
    asked = datetime.fromtimestamp(time.time() - 1, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    recent = ("logs", counter, "--since=1s", "--timestamps")
    lines = node.until("lines of the last second", lambda: kubectl(*recent).out.splitlines())
    assert lines[0] >= asked, "no line that was older when it was asked"
    assert kubectl("logs", counter, "--limit-bytes=10").out == "line 0\nlin"
    assert numbers(kubectl("logs", counter, "--tail=3", "--limit-bytes=1000").out)[0] > 0
    assert kubectl("logs", counter, "--tail=0").out == ""
    assert "line 0" in kubectl("logs", counter, "-c", "main", "--prefix").out
    wrong = kubectl("logs", counter, "-c", "nobody", check=False)
    assert wrong.code == 1 and "container nobody is not valid for pod counter" in wrong.err
    never = kubectl("logs", counter, "--previous", check=False)
    assert never.code == 1 and "previous terminated container" in never.err


def test_following_logs_ends_at_a_restart_and_previous_has_the_rest(
    node: Node, kubectl: Any, name: str, tmp_path: Path
) -> None:
    name += "f"
    node.apply(pod(name, "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.1; done; exit 1"))
    node.wait_running(name)
    argv = node.kubectl_argv("logs", "-f", name, version=kubectl.version)
    shown = tmp_path / "followed"
    with shown.open("w") as out:
        follow = subprocess.Popen(argv, stdout=out, env=node.environment())
    try:
        # A kubectl that comes later than the end would follow the next container, for ever.
        node.until("it follows the first", shown.read_text)
        kubectl("exec", name, "--", "touch", "/stop")
        follow.wait(60)
    finally:
        follow.kill()
        follow.wait()
    followed = list(map(int, shown.read_text().split()))
    assert followed == list(range(len(followed))) != []
    node.until("restarted", lambda: node.get("pod", name)["status"]["containerStatuses"][0]["restartCount"])
    assert list(map(int, kubectl("logs", name, "--previous").out.split())) == followed
    node.until("logs of the new one", lambda: kubectl("logs", name).out.startswith("0\n"))
    kubectl("delete", "pod", name, "--force", "--grace-period=0")


def test_exec_tells_the_size_of_the_terminal_and_its_changes(node: Node, kubectl: Any, counter: str) -> None:
    argv = node.kubectl_argv("exec", "-it", counter, "--", "sh", version=kubectl.version)
    terminal = OnTerminal(argv, node.environment(), (31, 101))
    try:
        terminal.until("# ")
        # kubectl tells it when the command runs already, as with upstream's node.
        node.until("its size", lambda: _size(terminal) == "31 101")
        terminal.resize(17, 77)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        node.until("new size", lambda: _size(terminal) == "17 77")
        terminal.send("exit 6\n")
        assert terminal.process.wait(10) == 6
    finally:
        terminal.end()


def _size(terminal: OnTerminal) -> str:
    terminal.output = b""
    terminal.send("stty size\n")
    return re.findall(r"(\d+ \d+)\r", terminal.until(r"\d+ \d+\r"))[0]


def test_attach_on_a_terminal(node: Node, kubectl: Any, name: str) -> None:
    name += "t"
    node.apply(pod(name, "read x; echo got $x on $(tty); sleep 600", container={"stdin": True, "tty": True}))
    node.wait_running(name)
    argv = node.kubectl_argv("attach", "-it", name, version=kubectl.version)
    terminal = OnTerminal(argv, node.environment())
    try:
        terminal.until("try pressing enter")
        terminal.send("fish\n")
        assert "got fish on /dev/" in terminal.until(r"got fish on /dev/\S+\r")
    finally:
        terminal.end()
    assert "got fish" in kubectl("logs", name).out
    kubectl("delete", "pod", name, "--force", "--grace-period=0")


def test_cp_both_ways(kubectl: Kubectl, counter: str, tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/data").write_bytes(bytes(range(256)) * 4096)
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    kubectl("cp", str(source), f"{counter}:/tmp-{name}")
    assert kubectl("exec", counter, "--", "stat", "-c", "%a %s", f"/tmp-{name}/run").out == "755 10\n"
    back = tmp_path / "back"
    kubectl("cp", f"default/{counter}:/tmp-{name}", str(back))
    assert (back / "sub/data").read_bytes() == (source / "sub/data").read_bytes()
    one = tmp_path / "one"
    kubectl("cp", f"{counter}:/tmp-{name}/run", str(one))
    assert one.read_text() == "#!/bin/sh\n"
    kubectl("cp", f"{counter}:/not-there", str(tmp_path / "none"), check=False)
    assert not (tmp_path / "none").exists()


@contextlib.contextmanager
def forwarding(node: Node, version: str, what: str, port: int) -> Iterator[int]:
    argv = node.kubectl_argv("port-forward", what, f":{port}", "--address=127.0.0.1", version=version)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=node.environment())
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("Forwarding from 127.0.0.1:"), line
        yield int(line.split("127.0.0.1:")[1].split()[0])
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_port_forward_to_a_pod_and_to_a_service(node: Node, kubectl: Any, counter: str, name: str) -> None:
    node.kubectl("expose", "pod", counter, f"--name={name}", "--port=70", "--target-port=7000")
    for what, port in ((f"pod/{counter}", 7000), (f"service/{name}", 70)):
        with forwarding(node, kubectl.version, what, port) as local:
            payload = os.urandom(300_000).hex().encode() + b"\n"
            for text in (b"one\n", payload):  # a new connection each time
                with socket.create_connection(("127.0.0.1", local), 10) as connection:
                    connection.settimeout(15)
                    connection.sendall(text)
                    assert read_exactly(connection, len(text)) == text
    node.kubectl("delete", "service", name)


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(65536)
        assert piece, f"the connection ended after {len(data)} of {size} bytes"
        data += piece
    return data


def test_port_forward_to_a_port_where_nobody_listens(node: Node, kubectl: Any, counter: str) -> None:
    with (
        forwarding(node, kubectl.version, f"pod/{counter}", 7999) as local,
        socket.create_connection(("127.0.0.1", local), 10) as connection,
    ):
        connection.settimeout(10)
        connection.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(10) == b""


def test_get_watch_prints_rows_as_tables_with_events(node: Node, kubectl: Any, name: str) -> None:
    name += "w"
    argv = node.kubectl_argv(
        "get", "deployments", "-w", "--output-watch-events", "--field-selector", f"metadata.name={name}",
        version=kubectl.version,
    )  # fmt: skip
    node.apply(deployment(name, 0))
    watch = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=node.environment())
    try:
        assert watch.stdout is not None
        rows = [watch.stdout.readline().split() for _ in range(2)]  # it watches: now nothing is missed
        kubectl("scale", "deployment", name, "--replicas=1")
        while not any(row[:3] == ["MODIFIED", name, "1/1"] for row in rows):
            rows.append(watch.stdout.readline().split())
        kubectl("delete", "deployment", name)
        while rows[-1][0] != "DELETED":
            rows.append(watch.stdout.readline().split())
    finally:
        watch.terminate()
        watch.communicate(timeout=10)
    assert rows[0] == ["EVENT", "NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert rows[1][:3] == ["ADDED", name, "0/0"]
    assert ["MODIFIED", name, "0/1"] in [row[:3] for row in rows]


def test_rollout_undo_to_a_revision_pause_resume_restart(node: Node, kubectl: Kubectl, name: str) -> None:
    what = f"deployment/{name}r"
    node.apply(deployment(f"{name}r"))
    wait = ("rollout", "status", what, "--timeout=60s")
    kubectl(*wait)
    kubectl("set", "env", what, "STEP=2")
    kubectl(*wait)
    kubectl("rollout", "pause", what)
    kubectl("set", "env", what, "STEP=3")
    node.until("the controller has looked at it", lambda: _observed(kubectl, what))
    sets = kubectl("get", "replicasets", "-l", f"app={name}r", "-o", "json").json()["items"]
    assert len(sets) == 2, "a paused Deployment makes no new ReplicaSet"
    assert "paused" in kubectl("rollout", "undo", what, check=False).err
    kubectl("rollout", "resume", what)
    kubectl(*wait)
    assert _step(kubectl, what) == "3"
    kubectl("rollout", "undo", what, "--to-revision=2")
    kubectl(*wait)
    assert _step(kubectl, what) == "2"
    history = kubectl("rollout", "history", what).out.split("\n")[2:]
    assert [line.split()[0] for line in history if line] == ["1", "3", "4"]
    before = _pods(kubectl, f"{name}r")
    kubectl("rollout", "restart", what)
    kubectl(*wait)
    node.until("other pods", lambda: len(_pods(kubectl, f"{name}r")) == 2)
    assert not before & _pods(kubectl, f"{name}r")
    kubectl("delete", what)


def _observed(kubectl: Kubectl, what: str) -> bool:
    found = kubectl("get", what, "-o", "json").json()
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def _step(kubectl: Kubectl, what: str) -> str:
    return kubectl("get", what, "-o", "jsonpath={.spec.template.spec.containers[0].env[0].value}").out


def _pods(kubectl: Kubectl, label: str) -> set[str]:
    return set(kubectl("get", "pods", "-l", f"app={label}", "-o", "name").out.split())


def test_apply_on_the_server_side_and_its_conflicts(kubectl: Kubectl, name: str) -> None:
    def body(**data: str) -> str:
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})

    apply = ("apply", "--server-side", "-f", "-")
    assert "serverside-applied" in kubectl(*apply, "--field-manager=one", stdin=body(a="1", b="1")).out
    kubectl(*apply, "--field-manager=two", stdin=body(c="1"))
    conflict = kubectl(*apply, "--field-manager=two", stdin=body(a="2", c="1"), check=False)
    assert conflict.code == 1 and 'conflict with "one": .data.a' in conflict.err
    kubectl(*apply, "--field-manager=two", "--force-conflicts", stdin=body(a="2", c="1"))
    kubectl(*apply, "--field-manager=one", stdin=body(b="1"))
    found = kubectl("get", "configmap", name, "-o", "json").json()
    assert found["data"] == {"a": "2", "b": "1", "c": "1"}
    kubectl(*apply, "--field-manager=one", stdin=body())
    assert kubectl("get", "configmap", name, "-o", "json").json()["data"] == {"a": "2", "c": "1"}
    kubectl("delete", "configmap", name)


def test_diff_shows_what_apply_would_change(kubectl: Kubectl, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"colour": "red"}}
    kubectl("apply", "-f", "-", stdin=json.dumps(body))
    assert kubectl("diff", "-f", "-", stdin=json.dumps(body)).out == ""
    done = kubectl("diff", "-f", "-", stdin=json.dumps(body).replace("red", "blue"), check=False)
    assert done.code == 1 and "-  colour: red" in done.out and "+  colour: blue" in done.out
    assert kubectl("get", "configmap", name, "-o", "jsonpath={.data.colour}").out == "red"
    kubectl("delete", "configmap", name)


def test_delete_orphans_or_waits_for_dependents(node: Node, kubectl: Kubectl, name: str) -> None:
    label = name + "c"
    node.apply(deployment(label, 1))
    kubectl("rollout", "status", f"deployment/{label}", "--timeout=60s")
    [before] = _pods(kubectl, label)
    kubectl("delete", "deployment", label, "--cascade=orphan")
    [replicaset] = kubectl("get", "replicasets", "-l", f"app={label}", "-o", "json").json()["items"]
    node.until("orphaned", lambda: not _owners(kubectl, replicaset["metadata"]["name"]))
    assert _pods(kubectl, label) == {before}
    node.apply(deployment(label, 1))
    kubectl("rollout", "status", f"deployment/{label}", "--timeout=60s")
    assert _pods(kubectl, label) == {before}, "the new Deployment adopts what the old one left"
    kubectl("delete", "deployment", label, "--cascade=foreground")
    assert _pods(kubectl, label) == set(), "foreground deletion returns after the dependents are gone"
    assert kubectl("get", "replicasets", "-l", f"app={label}", "-o", "name").out == ""


def _owners(kubectl: Kubectl, replicaset: str) -> list[Any]:
    found = kubectl("get", "replicaset", replicaset, "-o", "json").json()
    return list(found["metadata"].get("ownerReferences", []))


def test_lists_come_in_chunks_and_whole(node: Node, kubectl: Kubectl, name: str) -> None:
    items = [
        {"apiVersion": "v1", "kind": "ConfigMap",
         "metadata": {"name": f"{name}-{number:02}", "labels": {"chunk": name}}}
        for number in range(13)
    ]  # fmt: skip
    node.apply(*items)
    whole = kubectl("get", "configmaps", "-l", f"chunk={name}", "-o", "name").out
    verbose = kubectl("get", "configmaps", "-l", f"chunk={name}", "-o", "name", "--chunk-size=5", "-v=6")
    assert verbose.out == whole and len(whole.split()) == 13
    assert verbose.err.count("limit=5") == 3 and verbose.err.count("continue=") == 2
    kubectl("delete", "configmaps", "-l", f"chunk={name}")
    assert kubectl("get", "configmaps", "-l", f"chunk={name}", "-o", "name").out == ""


def test_wait_for_a_value_by_jsonpath(node: Node, kubectl: Any, name: str) -> None:
    if kubectl.version == "1.20":
        pytest.skip("kubectl wait knows jsonpath since 1.23")
    node.apply(pod(name + "j", "exit 0", restartPolicy="Never"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}j", "--timeout=60s")
    never = "--for=jsonpath={.status.phase}=Failed"
    late = kubectl("wait", never, f"pod/{name}j", "--timeout=1s", check=False)
    assert late.code == 1 and "timed out" in late.err
    kubectl("delete", "pod", name + "j")


def test_edit_with_a_mistake_says_so_and_changes_nothing(kubectl: Kubectl, name: str) -> None:
    kubectl("create", "configmap", name, "--from-literal=a=1")
    editor = {"KUBE_EDITOR": "sed -i 's/^  a: .*/  a: [1]/'"}
    refused = kubectl("edit", "configmap", name, env=editor, check=False)
    assert refused.code == 1
    assert kubectl("get", "configmap", name, "-o", "jsonpath={.data.a}").out == "1"
    kubectl("delete", "configmap", name)
