"""Where pods/proxy and services/proxy connect: to pods, never to what only the API server can reach."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from .conftest import Client, pod


@pytest.fixture
def asked() -> Iterator[tuple[int, list[str]]]:
    """A server of this machine's own, which nobody is to reach: (its port, the paths asked of it)."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, paths
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "0.0.0.0", ""])
def test_a_pod_that_says_it_is_the_server_itself_is_not_reached(
    api: Client, namespace: str, asked: tuple[int, list[str]], address: str
) -> None:
    port, paths = asked
    pods = f"/api/v1/namespaces/{namespace}/pods"
    api.must("POST", pods, pod("p"))
    if address:
        api.patch(f"{pods}/p/status", {"status": {"podIP": address}})
    code, status = api("GET", f"{pods}/p:{port}/proxy/secret")
    assert (code, status["reason"], status["message"]) == (400, "BadRequest", "address not allowed")
    assert paths == []


def _service(api: Client, namespace: str, address: str, port: int, target: dict[str, str]) -> str:
    """The path of its proxy."""
    here = f"namespaces/{namespace}"
    body: dict[str, Any] = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    api.must("POST", f"/api/v1/{here}/services", body)
    labels = {"kubernetes.io/service-name": "s"}
    endpoint: dict[str, Any] = {"addresses": [address]} | ({"targetRef": target} if target else {})
    body = {"metadata": {"name": "s-1", "labels": labels}, "addressType": "IPv4", "ports": [{"port": port}]}
    api.must("POST", f"/apis/discovery.k8s.io/v1/{here}/endpointslices", body | {"endpoints": [endpoint]})
    return f"/api/v1/{here}/services/s:80/proxy/x"


@pytest.mark.parametrize("target", [{}, {"kind": "Pod", "name": "other"}, {"kind": "Pod", "name": "p"}])
def test_a_service_leads_to_pods_alone(api: Client, namespace: str, target: dict[str, str]) -> None:
    """An address that is nobody's, or another's than the pod's that is named."""
    api.must("POST", f"/api/v1/namespaces/{namespace}/pods", pod("p"))
    path = f"/api/v1/namespaces/{namespace}/pods/p/status"
    api.patch(path, {"status": {"podIP": "192.0.2.7"}})
    target = target and target | {"namespace": namespace}
    code, status = api("GET", _service(api, namespace, "192.0.2.8", 1, target))
    assert (code, status["message"]) == (503, 'no endpoints available for service "s"')
