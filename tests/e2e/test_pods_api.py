"""Pods as upstream's conformance suite drives them: by the API with watches, WebSockets, leases and taints.

The client is the official Python one and, where the frames themselves matter, a plain WebSocket.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from e2e_node import Node, pod

kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes Python client is not installed")
websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")

from kubernetes import client, config, watch  # noqa: E402
from kubernetes.client.rest import ApiException  # noqa: E402
from kubernetes.stream import portforward  # noqa: E402

pytestmark = [
    pytest.mark.e2e,
    # Both clients leave sockets to the garbage collector, websocket-client those that the server closed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

POLITE = "trap 'exit 0' TERM; echo ready; sleep 3600 & wait"
PODS = "[sig-node] Pods should"
STDOUT, STDERR, STATUS = 1, 2, 3


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Their sockets are closed while their warnings are ignored, not in the middle of others' tests."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def api(node: Node) -> Iterator[Any]:
    settings = client.Configuration()
    config.load_kube_config(str(node.kubeconfig), client_configuration=settings)
    settings.no_proxy = "*"
    with client.ApiClient(settings) as connection:
        yield connection


@pytest.fixture(scope="module")
def core(api: Any) -> Any:
    return client.CoreV1Api(api)


@pytest.fixture(scope="module")
def talker(node: Node) -> str:
    node.apply(pod("talker", POLITE))
    node.wait_running("talker")
    node.until("its line", lambda: node.kubectl("logs", "talker").out == "ready\n")
    return "talker"


@contextlib.contextmanager
def opened(node: Node, path: str, protocol: str) -> Iterator[Any]:
    """A WebSocket to the API server with the admin's certificate."""
    body = yaml.safe_load(node.kubeconfig.read_text())
    cluster, user = body["clusters"][0]["cluster"], body["users"][0]["user"]
    folder = node.root / "home"
    files = {
        "certfile": pem(folder / "admin.crt", user, "client-certificate"),
        "keyfile": pem(folder / "admin.key", user, "client-key"),
        "ca_certs": pem(folder / "ca.crt", cluster, "certificate-authority"),
        "cert_reqs": ssl.CERT_REQUIRED,
    }
    url = cluster["server"].replace("https://", "wss://") + path
    connection = websocket.create_connection(
        url, sslopt=files, subprotocols=[protocol], timeout=30, http_no_proxy=["*"]
    )
    try:
        yield connection
    finally:
        connection.close()


def pem(file: Path, body: Any, name: str) -> str:
    """A certificate or key of the kubeconfig as a file: it may be one already."""
    if name in body:
        return str(body[name])
    file.write_bytes(base64.b64decode(body[f"{name}-data"]))
    return str(file)


def frames(connection: Any) -> list[bytes]:
    """Everything until the server closes."""
    found = []
    while True:
        opcode, data = connection.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return found
        found.append(bytes(data))


def by_channel(received: list[bytes]) -> dict[int, bytes]:
    joined: dict[int, bytes] = {}
    for frame in received:
        joined[frame[0]] = joined.get(frame[0], b"") + frame[1:]
    return {channel: data for channel, data in joined.items() if data}


@pytest.mark.conformance(f"{PODS} support remote command execution over websockets")
@pytest.mark.parametrize("protocol", ["channel.k8s.io", "v4.channel.k8s.io", "v5.channel.k8s.io"])
def test_exec_over_a_websocket(node: Node, talker: str, protocol: str) -> None:
    command = [("command", word) for word in ("sh", "-c", "echo remote execution test; echo oops >&2")]
    query = urlencode([("stdout", "1"), ("stderr", "1"), ("container", "main"), *command])
    with opened(node, f"/api/v1/namespaces/default/pods/{talker}/exec?{query}", protocol) as connection:
        assert connection.getsubprotocol() == protocol
        said = by_channel(frames(connection))
    assert (said[STDOUT], said[STDERR]) == (b"remote execution test\n", b"oops\n")
    if protocol != "channel.k8s.io":
        assert json.loads(said[STATUS])["status"] == "Success"


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v5.channel.k8s.io"])
def test_an_exec_that_fails_says_so_on_the_status_channel(node: Node, talker: str, protocol: str) -> None:
    query = urlencode([("stdout", "1"), ("command", "sh"), ("command", "-c"), ("command", "exit 7")])
    with opened(node, f"/api/v1/namespaces/default/pods/{talker}/exec?{query}", protocol) as connection:
        said = json.loads(by_channel(frames(connection))[STATUS])
    assert (said["status"], said["reason"]) == ("Failure", "NonZeroExitCode")
    assert said["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]


@pytest.mark.conformance(f"{PODS} support retrieving logs from the container over websockets")
@pytest.mark.parametrize("protocol", ["binary.k8s.io", "base64.binary.k8s.io"])
def test_logs_over_a_websocket(node: Node, talker: str, protocol: str) -> None:
    path = f"/api/v1/namespaces/default/pods/{talker}/log?container=main"
    with opened(node, path, protocol) as connection:
        pieces = frames(connection)
    encoded = protocol.startswith("base64")
    assert b"".join(base64.b64decode(piece) if encoded else piece for piece in pieces) == b"ready\n"


def test_a_log_that_is_followed_over_a_websocket_ends_with_the_client(node: Node, talker: str) -> None:
    path = f"/api/v1/namespaces/default/pods/{talker}/log?follow=1"
    with opened(node, path, "binary.k8s.io") as connection:
        said = b""
        while b"ready" not in said:
            said += connection.recv_data()[1]
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        opened(node, path, "v4.channel.k8s.io").__enter__()
    assert refused.value.status_code == 403
    with pytest.raises(websocket.WebSocketBadStatusException) as missing:
        opened(node, path.replace(talker, "nobody"), "binary.k8s.io").__enter__()
    assert missing.value.status_code == 404


@pytest.mark.conformance(f"{PODS} be submitted and removed")
def test_a_watch_tells_of_a_pod_from_its_creation_to_its_removal(node: Node, core: Any) -> None:
    selector = "time=submitted"
    listed = core.list_namespaced_pod("default", label_selector=selector)
    assert listed.items == []
    body = pod("submitted", POLITE, labels={"name": "foo", "time": "submitted"})
    core.create_namespaced_pod("default", body)
    found = core.list_namespaced_pod("default", label_selector=selector).items
    assert [item.metadata.name for item in found] == ["submitted"]
    watcher, told = watch.Watch(), []
    for event in watcher.stream(
        core.list_namespaced_pod, "default", label_selector=selector,
        resource_version=listed.metadata.resource_version, timeout_seconds=60,
    ):  # fmt: skip
        item = event["object"]
        ending = item.metadata.deletion_timestamp is not None
        told.append((event["type"], item.status.phase, ending))
        if told[-1] == ("MODIFIED", "Running", False) and told.count(told[-1]) == 1:
            core.delete_namespaced_pod("submitted", "default", grace_period_seconds=30)
        if event["type"] == "DELETED":
            watcher.stop()
    assert told[0] == ("ADDED", "Pending", False) and told[-1][0] == "DELETED"
    assert told[-1][2] and ("MODIFIED", "Running", True) in told
    assert core.list_namespaced_pod("default", label_selector=selector).items == []


@pytest.mark.conformance(f"{PODS} run through the lifecycle of Pods and PodStatus")
def test_a_pod_is_patched_its_status_replaced_and_deleted_by_label(node: Node, core: Any) -> None:
    labels = {"test-pod-static": "true"}
    core.create_namespaced_pod("default", pod("living", POLITE, labels=labels))
    node.wait_running("living")
    change = {"metadata": {"labels": {"test-pod": "patched"}}, "spec": {"activeDeadlineSeconds": 3000}}
    patched = core.patch_namespaced_pod("living", "default", change)
    assert patched.metadata.labels == {**labels, "test-pod": "patched"}
    assert patched.spec.active_deadline_seconds == 3000

    def replaced() -> Any:
        """As every client has to: read, change, write, and again where the node was quicker."""
        current = core.read_namespaced_pod_status("living", "default")
        current.status.reason, current.status.message = "Tested", "replaced by a client"
        with contextlib.suppress(ApiException):
            return core.replace_namespaced_pod_status("living", "default", current)
        return None

    written = node.until("the status is replaced", replaced)
    assert (written.status.reason, written.status.message) == ("Tested", "replaced by a client")
    assert written.status.phase == "Running"
    core.delete_collection_namespaced_pod("default", label_selector="test-pod-static=true")
    node.until(
        "gone", lambda: not core.list_namespaced_pod("default", label_selector="test-pod-static=true").items
    )


@pytest.mark.conformance("[sig-node] Lease lease API should be available")
def test_the_life_of_a_lease(api: Any) -> None:
    leases = client.CoordinationV1Api(api)
    spec = {
        "holderIdentity": "holder", "leaseDurationSeconds": 30, "leaseTransitions": 0,
        "acquireTime": "2026-11-27T00:00:00.000001Z", "renewTime": "2026-11-27T00:00:05.000002Z",
    }  # fmt: skip
    made = leases.create_namespaced_lease("default", {"metadata": {"name": "lease"}, "spec": spec})
    read = leases.read_namespaced_lease("lease", "default")
    assert read.spec == made.spec and read.spec.acquire_time.microsecond == 1
    read.spec.holder_identity, read.spec.lease_transitions = "holder2", 1
    replaced = leases.replace_namespaced_lease("lease", "default", read)
    assert leases.read_namespaced_lease("lease", "default").spec == replaced.spec == read.spec
    patch = {"spec": {"leaseDurationSeconds": 60, "leaseTransitions": None}}
    leases.patch_namespaced_lease("lease", "default", patch)
    patched = leases.read_namespaced_lease("lease", "default").spec
    assert (patched.holder_identity, patched.lease_duration_seconds, patched.lease_transitions) == (
        "holder2", 60, None,
    )  # fmt: skip
    second = {"metadata": {"name": "lease2", "labels": {"deletecollection": "true"}}, "spec": spec}
    leases.create_namespaced_lease("default", second)
    names = lambda: [item.metadata.name for item in leases.list_namespaced_lease("default").items]  # noqa: E731
    assert names() == ["lease", "lease2"]
    leases.delete_collection_namespaced_lease("default", label_selector="deletecollection=true")
    assert names() == ["lease"]
    leases.delete_namespaced_lease("lease", "default")
    with pytest.raises(ApiException) as gone:
        leases.read_namespaced_lease("lease", "default")
    assert gone.value.status == 404


def test_a_port_of_a_pod_on_the_hosts_network_is_forwarded(node: Node, core: Any) -> None:
    node.apply(pod("on-host", "nc -ll -p 24777 -e cat", hostNetwork=True))
    node.wait_running("on-host")

    def listening() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", 24777)) == 0

    node.until("it listens", listening)
    forwarded = portforward(core.connect_get_namespaced_pod_portforward, "on-host", "default", ports="24777")
    connection = forwarded.socket(24777)
    connection.settimeout(30)
    connection.sendall(b"hello\n")
    assert connection.recv(100) == b"hello\n"
    connection.close()
    forwarded.close()
    node.kubectl("delete", "pod", "on-host")


@pytest.mark.conformance("[sig-node] PodTemplates should run the lifecycle of PodTemplates")
@pytest.mark.conformance("[sig-node] PodTemplates should replace a pod template")
@pytest.mark.conformance("[sig-node] PodTemplates should delete a collection of pod templates")
def test_the_life_of_pod_templates(core: Any) -> None:
    template = {"metadata": {"labels": {"made": "by-test"}}, "spec": pod("x")["spec"]}
    for number in range(3):
        metadata = {"name": f"template-{number}", "labels": {"made": "by-test"}}
        core.create_namespaced_pod_template("default", {"metadata": metadata, "template": template})
    core.patch_namespaced_pod_template("template-0", "default", {"metadata": {"labels": {"patched": "yes"}}})
    [patched] = core.list_namespaced_pod_template("default", label_selector="patched=yes").items
    patched.metadata.annotations = {"updated": "true"}
    replaced = core.replace_namespaced_pod_template("template-0", "default", patched)
    assert replaced.metadata.annotations == {"updated": "true"}
    core.delete_namespaced_pod_template("template-0", "default")
    assert len(core.list_pod_template_for_all_namespaces(label_selector="made=by-test").items) == 2
    core.delete_collection_namespaced_pod_template("default", label_selector="made=by-test")
    assert core.list_namespaced_pod_template("default", label_selector="made=by-test").items == []


@pytest.mark.conformance("[sig-node] Node Lifecycle should run through the lifecycle of a node")
def test_the_life_of_a_node_object(node: Node, core: Any) -> None:
    core.create_node(
        {
            "metadata": {"name": "e2e-fake-node", "labels": {"made": "by-test"}},
            "spec": {"unschedulable": True},
        }
    )
    assert core.read_node("e2e-fake-node").metadata.name == "e2e-fake-node"
    core.patch_node("e2e-fake-node", {"metadata": {"labels": {"e2e-patched": "yes"}}})
    [found] = core.list_node(label_selector="e2e-patched=yes").items

    def updated() -> Any:
        """The node lifecycle controller writes to it, too."""
        current = core.read_node("e2e-fake-node")
        current.metadata.labels["e2e-updated"] = "yes"
        with contextlib.suppress(ApiException):
            return core.replace_node("e2e-fake-node", current)
        return None

    assert node.until("updated", updated).metadata.labels["e2e-updated"] == "yes"
    assert found.metadata.uid == core.read_node("e2e-fake-node").metadata.uid
    core.delete_node("e2e-fake-node")
    node.until("gone", lambda: not core.list_node(label_selector="e2e-updated=yes").items)


@pytest.fixture
def tainted(node: Node, core: Any) -> Iterator[Any]:
    """`tainted(on)` puts a NoExecute taint on the node, or takes it away."""
    [name] = [item.metadata.name for item in core.list_node().items]

    def change(on: bool) -> None:
        taint = "kubernetes.io/e2e-evict-taint-key=evictTaintVal:NoExecute"
        node.kubectl("taint", "node", name, taint if on else f"{taint}-")

    yield change
    if core.read_node(name).spec.taints:
        change(False)


def tolerating(name: str, seconds: int, labels: dict[str, str]) -> dict[str, Any]:
    toleration = {
        "key": "kubernetes.io/e2e-evict-taint-key", "operator": "Equal", "value": "evictTaintVal",
        "effect": "NoExecute", "tolerationSeconds": seconds,
    }  # fmt: skip
    return pod(name, POLITE, labels=labels, tolerations=[toleration])


@pytest.mark.conformance(
    "[sig-node] NoExecuteTaintManager Multiple Pods [Serial] evicts pods with minTolerationSeconds "
    "[Disruptive]"
)
def test_a_pod_leaves_when_its_toleration_is_over(node: Node, core: Any, tainted: Any) -> None:
    node.apply(tolerating("short", 3, {"group": "evicted"}), tolerating("long", 3600, {"group": "evicted"}))
    node.wait_running("short", "long")
    tainted(True)

    def names() -> list[str]:
        found = core.list_namespaced_pod("default", label_selector="group=evicted").items
        return [item.metadata.name for item in found]

    node.until("only the patient one is left", lambda: names() == ["long"], seconds=60)
    assert core.read_namespaced_pod("long", "default").metadata.deletion_timestamp is None
    tainted(False)
    node.kubectl("delete", "pod", "long")


@pytest.mark.conformance(
    "[sig-node] NoExecuteTaintManager Single Pod [Serial] removing taint cancels eviction [Disruptive]"
)
def test_a_taint_that_goes_in_time_spares_the_pod(node: Node, core: Any, tainted: Any) -> None:
    patience = 10.0
    node.apply(
        tolerating("spared", int(patience), {"group": "spared"}), tolerating("sooner", 1, {"group": "sooner"})
    )
    node.wait_running("spared", "sooner")
    began = time.monotonic()
    tainted(True)
    # The other one's end shows that the taint was seen.
    node.until("the other one left", lambda: node.kubectl("get", "pod", "sooner", check=False).code == 1)
    tainted(False)
    node.until("the time would be over", lambda: time.monotonic() - began > patience + 1)
    assert core.read_namespaced_pod("spared", "default").metadata.deletion_timestamp is None
    node.kubectl("delete", "pod", "spared")
