"""The official Python client, unmodified: what programs (operators, Jupyter, Airflow) do with a cluster."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import Node, pod

kubernetes = pytest.importorskip("kubernetes", reason="the kubernetes Python client is not installed")

from kubernetes import client, config, watch  # noqa: E402
from kubernetes.client.rest import ApiException  # noqa: E402
from kubernetes.stream import portforward, stream  # noqa: E402

pytestmark = [
    pytest.mark.e2e,
    # The client's own websocket objects are closed by the garbage collector alone.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """Its sockets are closed while these tests' warnings are ignored, not in the middle of others' tests."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def api(node: Node) -> Iterator[Any]:
    """An ApiClient from the admin kubeconfig."""
    settings = client.Configuration()
    config.load_kube_config(str(node.kubeconfig), client_configuration=settings)
    settings.no_proxy = "*"
    with client.ApiClient(settings) as connection:
        yield connection


@pytest.fixture(scope="module")
def core(api: Any) -> Any:
    return client.CoreV1Api(api)


@pytest.fixture(scope="module")
def running(node: Node, core: Any) -> Iterator[str]:
    """A pod that prints two lines, echoes one line per connection on 7000 and obeys SIGTERM."""
    script = "echo one; echo two; trap 'exit 0' TERM; nc -ll -p 7000 -e cat & wait"
    core.create_namespaced_pod("default", pod("talker", script))
    node.wait_running("talker")
    yield "talker"
    core.delete_namespaced_pod("talker", "default")


def test_version_and_nodes(api: Any, core: Any) -> None:
    assert client.VersionApi(api).get_code().git_version.startswith("v1.32")
    [node] = core.list_node().items
    assert any(c.type == "Ready" and c.status == "True" for c in node.status.conditions)
    assert node.status.capacity["pods"] == "110"


def test_typed_objects_are_created_read_replaced_and_deleted(core: Any) -> None:
    made = core.create_namespaced_config_map(
        "default",
        client.V1ConfigMap(metadata=client.V1ObjectMeta(name="typed", labels={"a": "b"}), data={"k": "1"}),
    )
    assert made.metadata.uid and made.metadata.creation_timestamp.tzinfo is not None
    made.data["k"] = "2"
    replaced = core.replace_namespaced_config_map("typed", "default", made)
    assert replaced.data == {"k": "2"}
    with pytest.raises(ApiException) as conflict:
        core.replace_namespaced_config_map("typed", "default", made)
    assert conflict.value.status == 409
    patched = core.patch_namespaced_config_map("typed", "default", {"data": {"k": None, "n": "3"}})
    assert patched.data == {"n": "3"}
    found = core.list_namespaced_config_map("default", label_selector="a=b").items
    assert [item.metadata.name for item in found] == ["typed"]
    answer = core.delete_namespaced_config_map("typed", "default")
    # Plain JSON since client 33 or so, a V1Status before.
    assert (answer if isinstance(answer, dict) else answer.to_dict())["status"] == "Success"
    with pytest.raises(ApiException) as gone:
        core.read_namespaced_config_map("typed", "default")
    assert gone.value.status == 404


def test_lists_in_pages(core: Any) -> None:
    for number in range(5):
        core.create_namespaced_config_map(
            "default", {"metadata": {"name": f"page-{number}", "labels": {"paged": "yes"}}}
        )
    names, token, pages = [], None, 0
    while True:
        page = core.list_namespaced_config_map(
            "default", label_selector="paged=yes", limit=2, _continue=token
        )
        names += [item.metadata.name for item in page.items]
        token, pages = page.metadata._continue, pages + 1
        if not token:
            break
    assert names == [f"page-{number}" for number in range(5)] and pages == 3
    core.delete_collection_namespaced_config_map("default", label_selector="paged=yes")
    assert core.list_namespaced_config_map("default", label_selector="paged=yes").items == []


def test_a_watch_replays_from_a_resource_version_and_ends_by_itself(core: Any) -> None:
    start = core.list_namespaced_config_map("default").metadata.resource_version
    core.create_namespaced_config_map("default", {"metadata": {"name": "seen"}, "data": {"n": "0"}})
    core.patch_namespaced_config_map("seen", "default", {"data": {"n": "1"}})
    core.delete_namespaced_config_map("seen", "default")
    events = watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=start, timeout_seconds=1,
        field_selector="metadata.name=seen",
    )  # fmt: skip
    seen = [(event["type"], event["object"].data["n"]) for event in events]
    assert seen == [("ADDED", "0"), ("MODIFIED", "1"), ("DELETED", "1")]


def test_a_watch_sees_a_pod_through_its_life(core: Any) -> None:
    watcher, phases = watch.Watch(), []
    start = core.list_namespaced_pod("default").metadata.resource_version
    core.create_namespaced_pod("default", pod("brief", "exit 0", restartPolicy="Never"))
    for event in watcher.stream(
        core.list_namespaced_pod, "default", resource_version=start, timeout_seconds=20,
        field_selector="metadata.name=brief",
    ):  # fmt: skip
        phases.append(event["object"].status.phase)
        if phases[-1] == "Succeeded" and "Succeeded" not in phases[:-1]:
            core.delete_namespaced_pod("brief", "default")
        if event["type"] == "DELETED":
            watcher.stop()
    assert phases[0] == "Pending" and phases[-1] == "Succeeded"


def test_deployments_are_scaled_and_rolled_out(node: Node, api: Any) -> None:
    apps = client.AppsV1Api(api)
    template = pod("rolled", "trap 'exit 0' TERM; sleep 3600 & wait")
    body = {
        "metadata": {"name": "rolled"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "rolled"}},
                 "template": {"metadata": {"labels": {"app": "rolled"}}, "spec": template["spec"]}},
    }  # fmt: skip
    apps.create_namespaced_deployment("default", body)
    scale = apps.read_namespaced_deployment_scale("rolled", "default")
    assert scale.spec.replicas == 1 and scale.status.selector == "app=rolled"
    apps.patch_namespaced_deployment_scale("rolled", "default", {"spec": {"replicas": 2}})
    node.until(
        "two ready", lambda: apps.read_namespaced_deployment("rolled", "default").status.ready_replicas == 2
    )
    apps.delete_namespaced_deployment("rolled", "default", propagation_policy="Foreground")
    core = client.CoreV1Api(api)
    node.until("gone", lambda: not core.list_namespaced_pod("default", label_selector="app=rolled").items)


def test_logs_whole_tailed_and_followed(core: Any, running: str) -> None:
    assert core.read_namespaced_pod_log(running, "default") == "one\ntwo\n"
    assert core.read_namespaced_pod_log(running, "default", tail_lines=1) == "two\n"
    lines = watch.Watch().stream(core.read_namespaced_pod_log, name=running, namespace="default", follow=True)
    assert [next(lines), next(lines)] == ["one", "two"]


def test_exec_with_both_streams_input_and_exit_code(core: Any, running: str) -> None:
    simple = stream(
        core.connect_get_namespaced_pod_exec, running, "default",
        command=["echo", "hi"], stdout=True, stderr=True,
    )  # fmt: skip
    assert simple == "hi\n"
    session = stream(
        core.connect_get_namespaced_pod_exec, running, "default",
        command=["sh", "-c", "read x; echo got $x; echo oops >&2; exit 4"],
        stdin=True, stdout=True, stderr=True, _preload_content=False,
    )  # fmt: skip
    session.write_stdin("fish\n")
    session.run_forever(timeout=10)
    assert session.read_stdout() == "got fish\n" and session.read_stderr() == "oops\n"
    assert session.returncode == 4
    session.close()


def test_port_forward_carries_bytes_both_ways(core: Any, running: str) -> None:
    forwarded = portforward(core.connect_get_namespaced_pod_portforward, running, "default", ports="7000")
    connection = forwarded.socket(7000)
    connection.settimeout(10)
    for line in (b"first\n", b"second\n"):
        connection.sendall(line)
        assert read_line(connection) == line
    connection.close()
    forwarded.close()
    assert forwarded.error(7000) is None


def read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(100)
        assert piece, f"the connection ended after {data!r}"
        data += piece
    return data


def test_an_eviction_deletes_the_pod(node: Node, core: Any) -> None:
    core.create_namespaced_pod("default", pod("evicted"))
    node.wait_running("evicted")
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name="evicted", namespace="default"))
    core.create_namespaced_pod_eviction("evicted", "default", eviction)
    node.until("gone", lambda: node.kubectl("get", "pod", "evicted", check=False).code == 1)


def test_leader_election_has_one_leader_at_a_time(api: Any) -> None:
    """Leases with optimistic locking: of two candidates one wins, and the other follows when it stops."""
    coordination = client.CoordinationV1Api(api)
    coordination.create_namespaced_lease("default", {"metadata": {"name": "leader"}})
    won, barrier = [], threading.Barrier(2)

    def campaign(name: str) -> None:
        lease = coordination.read_namespaced_lease("leader", "default")
        barrier.wait(10)
        lease.spec = client.V1LeaseSpec(holder_identity=name)
        try:
            coordination.replace_namespaced_lease("leader", "default", lease)
            won.append(name)
        except ApiException as error:
            assert error.status == 409

    candidates = [threading.Thread(target=campaign, args=(name,)) for name in ("a", "b")]
    for candidate in candidates:
        candidate.start()
    for candidate in candidates:
        candidate.join(20)
    assert len(won) == 1
    assert coordination.read_namespaced_lease("leader", "default").spec.holder_identity == won[0]
    coordination.delete_namespaced_lease("leader", "default")


def test_validation_errors_carry_the_field(core: Any) -> None:
    body = pod("Wrong_Name")
    with pytest.raises(ApiException) as refused:
        core.create_namespaced_pod("default", body)
    assert refused.value.status == 422 and "metadata.name" in refused.value.body
    began = time.monotonic()
    with pytest.raises(ApiException) as missing:
        core.read_namespaced_pod("nobody", "default")
    assert missing.value.status == 404 and time.monotonic() - began < 30
