"""Our agent and proxy joined to a control plane of upstream's own programs.

The door between node and API is upstream's: whatever is seen here was defaulted, validated, authorised
(Node, NodeRestriction, RBAC), scheduled and controlled by code that knows nothing of us.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from e2e_node import NODE_IP, Done, Node, main_kubectls, pod
from upstream_cluster import ISSUER, NODE_NAME, UpstreamCluster, missing

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"run hack/upstream-apiserver for {', '.join(missing())}"),
]

SERVE = "mkdir /w; hostname > /w/index.html; echo serving; exec httpd -f -p 8080 -h /w"
READY = {"httpGet": {"path": "/index.html", "port": 8080}, "periodSeconds": 1}
PORT = "18080"


@pytest.fixture(scope="module")
def cluster(unstarted_node: Node) -> Iterator[UpstreamCluster]:
    node = unstarted_node
    node.default_kubectl = main_kubectls()[0]  # Debian's is of the server's own version
    made = UpstreamCluster(node)
    try:
        made.start_control_plane()
        made.start_agent()
        made.start_proxy()
        node.until("the node is Ready and nothing keeps pods away", lambda: _usable(node), 60)
        yield made
    finally:
        made.stop()


@pytest.fixture
def node(cluster: UpstreamCluster) -> Iterator[Node]:
    yield cluster.node
    cluster.check()


@pytest.fixture(params=main_kubectls() or ["none"])
def kubectl(request: pytest.FixtureRequest, node: Node) -> Callable[..., Done]:
    return lambda *argv, **options: node.kubectl(*argv, version=request.param, **options)


def _usable(node: Node) -> bool:
    """Ready by our word, and believed by the controllers: no taint, a pod range, a service account."""
    found = node.kubectl("get", "node", NODE_NAME, "-o", "json", check=False)
    if found.code:
        return False
    body = found.json()
    ready = {c["type"]: c["status"] for c in body["status"].get("conditions", ())}.get("Ready") == "True"
    account = node.kubectl("get", "serviceaccount", "default", check=False).code == 0
    return ready and account and "podCIDR" in body["spec"] and not body["spec"].get("taints")


def _status(node: Node, name: str) -> Any:
    found = node.kubectl("get", "pod", name, "-o", "json", check=False)
    return found.json()["status"] if found.code == 0 else {}


def _ready(node: Node, name: str) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True" for c in _status(node, name).get("conditions") or ()
    )


def _run(node: Node, body: Mapping[str, Any]) -> None:
    node.apply(body)
    name = body["metadata"]["name"]
    node.until(f"{name} is ready", lambda: _ready(node, name), 60)


def _reasons(node: Node, name: str) -> set[str]:
    found = node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    return {event["reason"] for event in found.json()["items"]}


@pytest.fixture(scope="module")
def web(cluster: UpstreamCluster) -> str:
    """A pod that serves its own name; the scheduler has bound it."""
    _run(cluster.node, pod("web", SERVE, container={"readinessProbe": READY}))
    return "web"


def test_the_node_is_registered_and_its_lease_renewed(node: Node) -> None:
    body = node.get("node", NODE_NAME, "")
    assert body["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("kubelet-py://")
    conditions = {c["type"]: c["status"] for c in body["status"]["conditions"]}
    pressures = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
    assert conditions == {"Ready": "True", **dict.fromkeys(pressures, "False")}
    assert {a["type"] for a in body["status"]["addresses"]} == {"InternalIP", "Hostname"}
    assert body["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250

    lease = node.get("lease", NODE_NAME, "kube-node-lease")
    assert lease["spec"]["holderIdentity"] == NODE_NAME

    def renewed() -> Any:
        now = node.get("lease", NODE_NAME, "kube-node-lease")
        return now if now["spec"]["renewTime"] != lease["spec"]["renewTime"] else None

    (owner,) = node.until("a renewed lease", renewed, 40)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Node", body["metadata"]["uid"])


def test_a_pod_is_scheduled_run_and_reported_as_upstreams_validation_wants_it(node: Node, web: str) -> None:
    status = _status(node, web)
    assert (status["phase"], status["qosClass"], status["podIPs"]) == (
        "Running", "BestEffort", [{"ip": status["podIP"]}]
    )  # fmt: skip
    (container,) = status["containerStatuses"]
    assert container["ready"] and container["started"] and container["restartCount"] == 0
    types = {c["type"] for c in status["conditions"]}
    assert types >= {"PodScheduled", "Initialized", "ContainersReady", "Ready"}
    node.until("its events", lambda: _reasons(node, web) >= {"Scheduled", "Pulled", "Created", "Started"})


def test_logs_and_exec_through_the_api_server(kubectl: Callable[..., Done], web: str) -> None:
    assert kubectl("logs", web).out == "serving\n"
    assert kubectl("exec", "-i", web, "--", "cat", stdin="piped\n").out == "piped\n"
    done = kubectl("exec", web, "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.code, done.out) == (7, "out\n") and "err\n" in done.err


def test_port_forward_through_the_api_server(node: Node, web: str) -> None:
    for version in main_kubectls():
        argv = node.kubectl_argv("port-forward", f"pod/{web}", f"{PORT}:8080", version=version)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=node.environment()) as forward:
            try:
                assert forward.stdout is not None and "Forwarding" in forward.stdout.readline(), version
                done = subprocess.run(
                    ["curl", "-sS", "-m", "20", f"http://127.0.0.1:{PORT}/"], capture_output=True, text=True
                )
                assert (done.stdout, done.stderr) == ("web\n", ""), version
            finally:
                forward.terminate()


def test_a_token_is_bound_to_its_pod_and_good_for_the_api(node: Node, web: str) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    token = node.kubectl("exec", web, "--", "cat", f"{folder}/token").out
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [ISSUER]},
    }
    answer = node.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review)).json()["status"]
    assert answer["authenticated"] is True
    assert answer["user"]["username"] == "system:serviceaccount:default:default"
    assert answer["user"]["extra"]["authentication.kubernetes.io/pod-name"] == [web]
    assert "BEGIN CERTIFICATE" in node.kubectl("exec", web, "--", "cat", f"{folder}/ca.crt").out


def test_a_changed_config_map_reaches_the_file(node: Node) -> None:
    node.kubectl("create", "configmap", "words", "--from-literal=word=one")
    mounts = {"volumeMounts": [{"name": "words", "mountPath": "/words"}]}
    _run(node, pod("reader", container=mounts, volumes=[{"name": "words", "configMap": {"name": "words"}}]))
    read = ("exec", "reader", "--", "cat", "/words/word")
    assert node.kubectl(*read).out == "one"
    node.kubectl("patch", "configmap", "words", "-p", '{"data":{"word":"two"}}')
    node.until("the new word", lambda: node.kubectl(*read).out == "two", 30)
    node.kubectl("delete", "pod", "reader", "--wait=false")


def test_a_failed_pod_and_a_job_come_to_their_ends(node: Node) -> None:
    node.apply(pod("fails", "exit 3", restartPolicy="Never"))
    node.until("it has failed", lambda: _status(node, "fails").get("phase") == "Failed", 60)
    (container,) = _status(node, "fails")["containerStatuses"]
    assert container["state"]["terminated"]["exitCode"] == 3
    template = {"spec": {**pod("x", "echo done")["spec"], "restartPolicy": "Never"}}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {"completions": 2, "parallelism": 2, "template": template},
    }
    node.apply(job)
    node.until(
        "upstream's job controller has seen both",
        lambda: node.get("job", "work")["status"].get("succeeded") == 2,
        60,
    )


def test_a_deployments_service_is_programmed_by_our_proxy(node: Node, cluster: UpstreamCluster) -> None:
    labels = {"app": "many"}
    template = {
        "metadata": {"labels": labels},
        "spec": pod("x", SERVE, container={"readinessProbe": READY})["spec"],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "many"},
        "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    node.apply(deployment, service)
    address = node.get("service", "many")["spec"]["clusterIP"]

    def answers() -> set[str]:
        ask = ["curl", "-s", "-m", "2", f"http://{address}/"]
        return {subprocess.run(ask, capture_output=True, text=True).stdout for _ in range(8)} - {""}

    node.until("both replicas answer at the Service's address", lambda: len(answers()) == 2, 60)
    node.until("the proxy is healthy", cluster.proxy_is_healthy)
    node.kubectl("scale", "deployment", "many", "--replicas=1")
    node.until("only one is left", lambda: len(answers()) == 1, 60)
    node.kubectl("delete", "deployment,service", "many")


def test_a_static_pod_has_a_mirror(node: Node) -> None:
    body = pod("still", hostNetwork=True, namespace="kube-system")
    file = node.root / "etc/kubelet-py/manifests/still.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(body))

    def mirror() -> Any:
        argv = ("get", "pod", f"still-{NODE_NAME}", "-n", "kube-system", "-o", "json")
        done = node.kubectl(*argv, check=False)
        return done.json() if done.code == 0 else None

    def phase() -> str | None:
        return ((mirror() or {}).get("status") or {}).get("phase")

    node.until("the mirror runs", lambda: phase() == "Running", 60)
    assert "kubernetes.io/config.mirror" in mirror()["metadata"]["annotations"]
    file.unlink()
    node.until("the mirror is gone", lambda: mirror() is None, 60)


def test_the_api_server_hands_on_what_the_node_serves(node: Node, web: str) -> None:
    proxied = f"/api/v1/nodes/{NODE_NAME}/proxy"
    summary = node.kubectl("get", "--raw", f"{proxied}/stats/summary").json()
    assert summary["node"]["nodeName"] == NODE_NAME
    assert web in {each["podRef"]["name"] for each in summary["pods"]}
    assert "node_cpu_usage_seconds_total" in node.kubectl("get", "--raw", f"{proxied}/metrics/resource").out
    metrics = node.kubectl("get", "--raw", f"{proxied}/metrics").out
    assert 'rest_client_requests_total{code="200",method="PATCH",host="127.0.0.1:6443"}' in metrics
    assert node.kubectl("get", "--raw", f"{proxied}/healthz").out == "ok"


def test_a_monitor_logs_in_by_its_token_and_may_what_rbac_says(node: Node) -> None:
    """TokenReview and SubjectAccessReview: upstream decides who reads our port 10250."""
    node.kubectl("create", "serviceaccount", "monitor")

    def secret() -> Any:
        names = [each["name"] for each in node.get("serviceaccount", "monitor").get("secrets") or ()]
        return node.get("secret", names[0])["data"].get("token") if names else None

    token = base64.b64decode(node.until("the controller has made a token", secret)).decode()

    def asked(bearer: str) -> str:
        argv = ["curl", "-sk", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]
        argv += ["-H", f"Authorization: Bearer {bearer}", f"https://{NODE_IP}:10250/metrics"]
        return subprocess.run(argv, capture_output=True, text=True).stdout

    assert (asked(token[:-8] + "AAAAAAAA"), asked(token)) == ("401", "403")
    rule = ("--verb=get", "--resource=nodes/metrics")
    node.kubectl("create", "clusterrole", "monitor", *rule)
    node.kubectl(
        "create", "clusterrolebinding", "monitor", "--clusterrole=monitor", "--serviceaccount=default:monitor"
    )
    node.until("it may read", lambda: asked(token) == "200")


def test_a_pod_is_deleted_in_its_grace(node: Node) -> None:
    _run(node, pod("short", "trap 'exit 0' TERM; while :; do sleep 0.1; done"))
    node.kubectl("delete", "pod", "short", timeout=60)
    assert node.kubectl("get", "pod", "short", check=False).code == 1
    node.until("it was told", lambda: "Killing" in _reasons(node, "short"))


def test_pods_run_on_without_an_api_server_and_their_changes_are_told_afterwards(
    node: Node, cluster: UpstreamCluster
) -> None:
    once = "test -e /m/again && exec sleep 99; touch /m/again; until test -e /m/go; do sleep 0.1; done; false"
    mounts = {"volumeMounts": [{"name": "m", "mountPath": "/m"}]}
    place = node.root / "marks"
    place.mkdir()
    _run(
        node,
        pod("steady", once, container=mounts, volumes=[{"name": "m", "hostPath": {"path": str(place)}}]),
    )
    before = _status(node, "steady")["containerStatuses"][0]["containerID"]
    cluster.end("kube-apiserver")
    (place / "go").touch()
    cluster.start_apiserver()
    node.until(
        "the restart that nobody heard of",
        lambda: _status(node, "steady")["containerStatuses"][0]["restartCount"] == 1
        and _status(node, "steady")["containerStatuses"][0]["containerID"] != before,
        90,
    )


def test_the_agent_comes_back_to_its_pods(node: Node, cluster: UpstreamCluster, web: str) -> None:
    before = _status(node, web)["containerStatuses"][0]["containerID"]
    cluster.kill("agent")
    cluster.start_agent()
    node.apply(pod("later"))
    node.until("a new pod runs", lambda: _ready(node, "later"), 60)
    (container,) = _status(node, web)["containerStatuses"]
    assert (container["containerID"], container["restartCount"]) == (before, 0)
