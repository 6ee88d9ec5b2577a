"""metrics.k8s.io of a real API server; the kubelet is a page of numbers behind TLS."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.controlplane_live.conftest import TABLE, Client, Live, pod

GROUP = "/apis/metrics.k8s.io/v1beta1"


class Kubelet:
    """Answers /metrics/resource: the pods in `pods` use a quarter of a core and 3 MiB each."""

    def __init__(self, live: Live) -> None:
        self.pods: list[tuple[str, str]] = []
        self.asked: list[str] = []
        pki = live.folder / "pki"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pki / "kubelet.crt", pki / "kubelet.key")
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked.append(self.path)
                body = owner.page().encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self) -> str:
        now = time.time()
        lines = [f"node_cpu_usage_seconds_total {now / 2} {int(now * 1000)}"]
        lines.append(f"node_memory_working_set_bytes {5 << 20} {int(now * 1000)}")
        for namespace, name in self.pods:
            labels = f'{{container="c",pod="{name}",namespace="{namespace}"}}'
            lines.append(f"container_cpu_usage_seconds_total{labels} {now / 4} {int(now * 1000)}")
            lines.append(f"container_memory_working_set_bytes{labels} {3 << 20} {int(now * 1000)}")
        return "".join(f"{line}\n" for line in lines)


@pytest.fixture
def kubelet(live: Live, api: Client) -> Iterator[Kubelet]:
    kubelet = Kubelet(live)
    api.must("POST", "/api/v1/nodes", {"metadata": {"name": "measured", "labels": {"disk": "fast"}}})
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}},
    }
    api.patch("/api/v1/nodes/measured/status", {"status": status})
    yield kubelet
    api.must("DELETE", "/api/v1/nodes/measured")
    kubelet.server.shutdown()
    kubelet.server.server_close()


def test_usage_of_nodes_and_pods_is_answered_at_the_first_question(
    api: Client, namespace: str, kubelet: Kubelet
) -> None:
    for name, tier in (("web", "front"), ("db", "back"), ("silent", "back")):
        made = pod(name)
        made["metadata"]["labels"] = {"tier": tier}
        api.must("POST", f"/api/v1/namespaces/{namespace}/pods", made)
    kubelet.pods = [(namespace, "web"), (namespace, "db")]
    assert kubelet.asked == [], "nobody is measured before somebody asks"

    node = api.must("GET", f"{GROUP}/nodes/measured")
    assert (node["kind"], node["apiVersion"]) == ("NodeMetrics", "metrics.k8s.io/v1beta1")
    assert node["metadata"]["labels"]["disk"] == "fast"
    assert node["usage"]["memory"] == "5Mi" and node["window"].endswith("s") and node["timestamp"]
    assert set(kubelet.asked) == {"/metrics/resource"} and len(kubelet.asked) == 2

    found = api.must("GET", f"{GROUP}/namespaces/{namespace}/pods")
    assert found["kind"] == "PodMetricsList"
    assert [item["metadata"]["name"] for item in found["items"]] == ["db", "web"]
    (container,) = found["items"][0]["containers"]
    assert container["name"] == "c" and container["usage"]["memory"] == "3Mi"
    cpu = container["usage"]["cpu"]
    assert 200_000_000 < int(cpu[:-1]) * {"n": 1, "u": 1000, "m": 1_000_000}[cpu[-1]] < 300_000_000

    chosen = api.must("GET", f"{GROUP}/namespaces/{namespace}/pods?labelSelector=tier%3Dfront")
    assert [item["metadata"]["name"] for item in chosen["items"]] == ["web"]
    chosen = api.must("GET", f"{GROUP}/pods?fieldSelector=metadata.namespace%3D{namespace}")
    assert len(chosen["items"]) == 2
    table = api.must("GET", f"{GROUP}/namespaces/{namespace}/pods", Accept=TABLE)
    assert [row["cells"][0] for row in table["rows"]] == ["db", "web"]
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Cpu", "Memory", "Window"]

    code, answer = api("GET", f"{GROUP}/namespaces/{namespace}/pods/silent")
    assert (code, answer["message"]) == (404, 'pods.metrics.k8s.io "silent" not found')
    assert api("GET", f"{GROUP}/namespaces/{namespace}/pods/none")[1]["message"] == 'pods "none" not found'
    assert api("POST", f"{GROUP}/namespaces/{namespace}/pods", {})[0] == 405
    assert api("GET", f"{GROUP}/nodes?labelSelector=a%20b%20c")[0] == 400


def test_the_group_is_discovered_and_asks_for_rights(live: Live, api: Client) -> None:
    groups = {group["name"] for group in api.must("GET", "/apis")["groups"]}
    assert "metrics.k8s.io" in groups
    kinds = {entry["name"]: entry for entry in api.must("GET", GROUP)["resources"]}
    assert kinds["pods"]["kind"] == "PodMetrics" and kinds["pods"]["verbs"] == ["get", "list"]
    assert kinds["nodes"]["namespaced"] is False
    assert live.kubelet("GET", f"{GROUP}/nodes")[0] == 403
    assert live.anonymous("GET", f"{GROUP}/nodes")[0] in (401, 403)
