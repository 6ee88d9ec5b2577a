"""Services on one node, with real connections: who answers, who refuses, and that nothing leaks."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import NODE_IP, Node, leaked_packets, pod

pytestmark = pytest.mark.e2e

SERVE = 'mkdir -p /www; hostname > /www/index.html; trap "exit 0" TERM; httpd -f -p 8080 -h /www & wait'


# Debian's static busybox has no UDP: these pods see the host's own Python, read-only.
UDP_ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 9000))
while True:
    data, sender = server.recvfrom(2000)
    server.sendto(data, sender)
"""
UDP_ASK = """
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
client.sendto(b"ping", (sys.argv[1], 9000))
print(client.recv(100).decode())
"""


def with_python(name: str, program: str, labels: dict[str, str]) -> dict[str, Any]:
    folders = [folder for folder in ("/usr", "/lib", "/lib64") if os.path.isdir(folder)]
    mounts = [{"name": f.strip("/"), "mountPath": f, "readOnly": True} for f in folders]
    volumes = [{"name": f.strip("/"), "hostPath": {"path": f, "type": "Directory"}} for f in folders]
    command = ["/usr/bin/python3", "-u", "-c", program]
    return pod(name, command, labels=labels, container={"volumeMounts": mounts}, volumes=volumes)


def service(name: str, app: str, ports: list[dict[str, Any]], **spec: Any) -> dict[str, Any]:
    body = {"selector": {"app": app}, "ports": ports} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


@pytest.fixture(scope="module")
def web(node: Node) -> Iterator[Node]:
    """Two web pods behind a NodePort Service with a named target port, a client pod, and UDP echo."""
    ports = {"ports": [{"name": "http", "containerPort": 8080}]}
    node.apply(
        pod("web-1", SERVE, labels={"app": "web"}, container=ports),
        pod("web-2", SERVE, labels={"app": "web"}, container=ports),
        pod("client"),
        with_python("udp", UDP_ECHO, {"app": "udp"}),
        with_python("udp-client", "import time; time.sleep(3600)", {}),
        service(
            "web",
            "web",
            [
                {"name": "a", "port": 80, "targetPort": "http", "nodePort": 30123},
                {"name": "b", "port": 81, "targetPort": 8080},
            ],
            type="NodePort",
        ),
        service("udp", "udp", [{"port": 9000, "protocol": "UDP"}]),
        service("empty", "nobody", [{"port": 80}]),
    )
    node.wait_running("web-1", "web-2", "client", "udp", "udp-client")
    node.until("both pods Ready", lambda: len(ready_endpoints(node, "web")) == 2)
    yield node


def ready_endpoints(node: Node, name: str) -> list[str]:
    slices = node.kubectl(
        "get", "endpointslices", "-l", f"kubernetes.io/service-name={name}", "-o", "json"
    ).json()
    found = []
    for piece in slices["items"]:
        found += [
            e["addresses"][0] for e in piece.get("endpoints") or [] if e["conditions"].get("ready", True)
        ]
    return found


def cluster_ip(node: Node, name: str) -> str:
    return str(node.get("service", name)["spec"]["clusterIP"])


def fetch(node: Node, source: str, url: str, times: int = 1) -> collections.Counter[str]:
    """Answers by text, of `times` requests from a pod, from "node" or from "outside"."""
    loop = f"i=0; while [ $i -lt {times} ]; do timeout 3 wget -q -O - {url} || echo failed; i=$((i+1)); done"
    # On the host it is curl: Debian's static busybox crashes in its wget where the host has name services.
    on_host = ["sh", "-c", loop.replace("timeout 3 wget -q -O -", "curl -s -m 3")]
    if source == "outside":
        done = node.outside_run(*on_host)
    elif source == "node":
        done = node._run(on_host, check=True, timeout=60)
    else:
        done = node.kubectl("exec", source, "--", "sh", "-c", loop)
    return collections.Counter(done.out.split())


@pytest.mark.parametrize("source", ["client", "node"])
@pytest.mark.parametrize("port", [80, 81])
def test_cluster_ip_reaches_every_endpoint(web: Node, source: str, port: int) -> None:
    address = cluster_ip(web, "web")
    web.until("answer", lambda: "failed" not in fetch(web, source, f"http://{address}:{port}/"))
    answers = fetch(web, source, f"http://{address}:{port}/", 30)
    assert set(answers) == {"web-1", "web-2"} and sum(answers.values()) == 30


@pytest.mark.conformance("[sig-network] Services should be able to create a functioning NodePort service")
@pytest.mark.parametrize("source", ["outside", "node", "client"])
def test_node_port_answers(web: Node, source: str) -> None:
    answers = fetch(web, source, f"http://{NODE_IP}:30123/", 20)
    assert set(answers) == {"web-1", "web-2"} and sum(answers.values()) == 20


def test_a_pod_reaches_itself_through_its_service(web: Node) -> None:
    address = cluster_ip(web, "web")
    answers = fetch(web, "web-1", f"http://{address}/", 20)
    assert set(answers) == {"web-1", "web-2"}


def test_udp_service_answers(web: Node) -> None:
    address = cluster_ip(web, "udp")
    argv = ["/usr/bin/python3", "-c", UDP_ASK, address]
    ask = ("exec", "udp-client", "--", *argv)
    web.until("echo to a pod", lambda: "ping" in web.kubectl(*ask, check=False).out)
    web.until("echo to the node", lambda: "ping" in web._run(argv, check=False, timeout=10).out)


def test_service_without_endpoints_is_refused_at_once(web: Node) -> None:
    address = cluster_ip(web, "empty")
    done = web.kubectl("exec", "client", "--", "wget", "-q", "-O", "-", f"http://{address}/", check=False)
    assert done.code != 0 and "refused" in done.err


@pytest.mark.conformance("[sig-network] Services should serve a basic endpoint from pods")
def test_endpoints_follow_pods(web: Node) -> None:
    web.apply(pod("web-3", SERVE, labels={"app": "web"}))
    web.until("third endpoint", lambda: len(ready_endpoints(web, "web")) == 3)
    web.kubectl("delete", "pod", "web-3")
    web.until("two endpoints", lambda: len(ready_endpoints(web, "web")) == 2)
    address = cluster_ip(web, "web")
    web.until("no dead answers", lambda: "failed" not in fetch(web, "client", f"http://{address}/", 10))


def test_deleting_a_service_removes_its_rules(web: Node) -> None:
    web.apply(service("gone", "web", [{"port": 80, "targetPort": 8080}]))
    address = cluster_ip(web, "gone")
    web.until("answer", lambda: "failed" not in fetch(web, "client", f"http://{address}/"))
    web.kubectl("delete", "service", "gone")
    rules = lambda: web._run(["iptables-save"], check=True, timeout=10).out  # noqa: E731
    web.until("rules gone", lambda: address not in rules())


@pytest.mark.conformance("[sig-network] Services should provide secure master service")
@pytest.mark.conformance(
    "[sig-network] EndpointSlice should have Endpoints and EndpointSlices pointing to API Server"
)
def test_pods_see_the_service_environment_and_the_kubernetes_service(web: Node) -> None:
    environment = web.kubectl("exec", "client", "--", "env").out
    assert "KUBERNETES_SERVICE_HOST=10.96.0.1" in environment
    slices = web.kubectl("get", "endpointslices", "kubernetes", "-o", "json").json()
    assert slices["endpoints"][0]["addresses"] == [NODE_IP]
    [subset] = web.get("endpoints", "kubernetes")["subsets"]
    assert subset["addresses"] == [{"ip": NODE_IP}] and subset["ports"][0]["name"] == "https"
    reach = "nc -w 3 10.96.0.1 443 < /dev/null && echo connected"
    assert "connected" in web.kubectl("exec", "client", "--", "sh", "-c", reach).out


def test_no_cluster_packet_left_through_the_uplink(web: Node) -> None:
    before = leaked_packets(web)
    for target in ("10.244.200.7", "10.96.77.77"):
        for source in ("client", "node"):
            assert fetch(web, source, f"http://{target}/") == collections.Counter({"failed": 1})
    assert leaked_packets(web) == before == 0


def test_service_validation_names_the_field(web: Node) -> None:
    body = json.dumps(service("bad", "web", [{"port": 99999}]))
    done = web.kubectl("create", "-f", "-", stdin=body, check=False)
    assert done.code == 1 and "spec.ports[0].port" in done.err
