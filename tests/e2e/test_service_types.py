"""Services as upstream's conformance suite changes them: types, affinity, protocols, ports, and host ports.

Everything is reached for real, by address; what their names resolve to is test_dns.py's business.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_node import NODE_IP, Node, need_kubectl, pod, sh
from test_services import SERVE, cluster_ip, fetch, ready_endpoints, service, with_python

pytestmark = pytest.mark.e2e

SERVICES = "[sig-network] Services should"
SECOND_IP = "198.51.100.11"

# One port, TCP and UDP at once, each answering with the pod's name.
BOTH = """
import socket, threading
name = socket.gethostname().encode()
tcp = socket.create_server(("0.0.0.0", 9000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 9000))
def datagrams():
    while True:
        udp.sendto(name, udp.recvfrom(2000)[1])
threading.Thread(target=datagrams, daemon=True).start()
while True:
    client = tcp.accept()[0]
    client.sendall(name)
    client.close()
"""
ASK = """
import socket, sys
address, port, protocol = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if protocol == "tcp":
    client = socket.create_connection((address, port), 2)
else:
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect((address, port))
    client.send(b"?")
client.settimeout(2)
print(client.recv(100).decode())
"""


@pytest.fixture(scope="module")
def web(node: Node) -> Iterator[Node]:
    """Two web pods, one that answers TCP and UDP on one port, and clients."""
    node.apply(
        pod("web-1", SERVE, labels={"app": "web"}),
        pod("web-2", SERVE, labels={"app": "web"}),
        pod("client"),
        with_python("both", BOTH, {"app": "both"}),
        with_python("asking", "import time; time.sleep(3600)", {}),
    )
    node.wait_running("web-1", "web-2", "client", "both", "asking")
    yield node


def answers(node: Node, source: str, url: str, times: int = 1) -> set[str]:
    return set(fetch(node, source, url, times))


def change(node: Node, name: str, **spec: Any) -> Any:
    """A merge patch of the Service's spec; its new spec."""
    body = json.dumps({"spec": spec})
    return node.kubectl("patch", "service", name, "--type=merge", "-p", body, "-o", "json").json()["spec"]


HTTP = [{"port": 80, "targetPort": 8080}]
NO_IP = {"clusterIP": None, "clusterIPs": None, "ports": None, "selector": None}


@pytest.mark.conformance(f"{SERVICES} be able to change the type from ExternalName to ClusterIP")
@pytest.mark.conformance(f"{SERVICES} be able to change the type from ClusterIP to ExternalName")
def test_an_external_name_becomes_a_cluster_ip_and_one_again(web: Node) -> None:
    web.apply(external("cluster"))
    assert "clusterIP" not in web.get("service", "cluster")["spec"]
    spec = change(web, "cluster", type="ClusterIP", externalName=None, ports=HTTP, selector={"app": "web"})
    assert spec["type"] == "ClusterIP" and "externalName" not in spec
    address = spec["clusterIP"]
    reached = f"http://{address}/"
    web.until("answer", lambda: answers(web, "client", reached, 20) == {"web-1", "web-2"}, seconds=60)
    spec = change(web, "cluster", type="ExternalName", externalName="other.example.com", **NO_IP)
    assert spec["type"] == "ExternalName" and "clusterIP" not in spec
    web.until("the address is nobody's", lambda: answers(web, "client", reached) == {"failed"})
    web.apply({**service("reuses", "web", HTTP), "spec": {"ports": HTTP, "clusterIP": address}})
    web.kubectl("delete", "service", "cluster", "reuses")


@pytest.mark.conformance(f"{SERVICES} be able to change the type from ExternalName to NodePort")
@pytest.mark.conformance(f"{SERVICES} be able to change the type from NodePort to ExternalName")
def test_an_external_name_becomes_a_node_port_and_one_again(web: Node) -> None:
    web.apply(external("ported"))
    spec = change(web, "ported", type="NodePort", externalName=None, ports=HTTP, selector={"app": "web"})
    port = spec["ports"][0]["nodePort"]
    for source, url in (
        ("client", f"http://{spec['clusterIP']}/"),
        ("outside", f"http://{NODE_IP}:{port}/"),
    ):
        web.until(
            f"answer to {source}",
            lambda source=source, url=url: answers(web, source, url, 20) == {"web-1", "web-2"},
            seconds=60,
        )
    change(web, "ported", type="ExternalName", externalName="other.example.com", **NO_IP)
    web.until("no answer", lambda: answers(web, "outside", f"http://{NODE_IP}:{port}/") == {"failed"})
    again = [{**HTTP[0], "nodePort": port}]  # refused while somebody has it
    web.apply(service("reuses", "web", again, type="NodePort"))
    web.kubectl("delete", "service", "ported", "reuses")


def external(name: str) -> dict[str, Any]:
    spec = {"type": "ExternalName", "externalName": "some.example.com"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


@pytest.mark.conformance(f"{SERVICES} have session affinity work for service with type clusterIP [LinuxOnly]")
@pytest.mark.conformance(
    f"{SERVICES} be able to switch session affinity for service with type clusterIP [LinuxOnly]"
)
def test_affinity_of_a_cluster_ip(web: Node) -> None:
    web.apply(service("sticky", "web", HTTP, sessionAffinity="ClientIP"))
    switch_affinity(web, "sticky", "client", f"http://{cluster_ip(web, 'sticky')}/")


@pytest.mark.conformance(f"{SERVICES} have session affinity work for NodePort service [LinuxOnly]")
@pytest.mark.conformance(f"{SERVICES} be able to switch session affinity for NodePort service [LinuxOnly]")
def test_affinity_of_a_node_port(web: Node) -> None:
    web.apply(service("sticky", "web", HTTP, type="NodePort", sessionAffinity="ClientIP"))
    port = web.get("service", "sticky")["spec"]["ports"][0]["nodePort"]
    switch_affinity(web, "sticky", "outside", f"http://{NODE_IP}:{port}/")


def switch_affinity(web: Node, name: str, source: str, url: str) -> None:
    """ClientIP, None, ClientIP. Twenty answers of one pod by chance: once in half a million runs."""

    def one() -> bool:
        found = answers(web, source, url, 20)
        return len(found) == 1 and found <= {"web-1", "web-2"}

    web.until("always the same pod", one, seconds=60)
    change(web, name, sessionAffinity="None")
    web.until("both pods", lambda: answers(web, source, url, 20) == {"web-1", "web-2"}, seconds=60)
    spec = change(web, name, sessionAffinity="ClientIP")
    assert spec["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    web.until("always the same pod again", one, seconds=60)
    web.kubectl("delete", "service", name)


def ask(node: Node, address: str, port: int, protocol: str) -> str:
    argv = ("exec", "asking", "--", "/usr/bin/python3", "-c", ASK, address, str(port), protocol)
    return node.kubectl(*argv, check=False).out.strip()


@pytest.mark.conformance(f"{SERVICES} serve endpoints on same port and different protocols")
def test_one_port_for_tcp_and_udp(web: Node) -> None:
    ports = {p: {"name": p, "port": 9000, "protocol": p.upper()} for p in ("tcp", "udp")}
    web.apply(service("both", "both", [*ports.values()]))
    address = cluster_ip(web, "both")

    def answering() -> set[str]:
        return {protocol for protocol in ports if ask(web, address, 9000, protocol) == "both"}

    web.until("both", lambda: answering() == {"tcp", "udp"}, seconds=60)
    change(web, "both", ports=[ports["tcp"]])
    web.until("TCP alone", lambda: answering() == {"tcp"}, seconds=60)
    change(web, "both", ports=[ports["udp"]])
    web.until("UDP alone", lambda: answering() == {"udp"}, seconds=60)
    web.kubectl("delete", "service", "both")


@pytest.mark.conformance(f"{SERVICES} serve multiport endpoints from pods")
def test_two_ports_on_two_pods(web: Node) -> None:
    ports = [
        {"name": "p1", "port": 80, "targetPort": "one"},
        {"name": "p2", "port": 81, "targetPort": "two"},
    ]
    web.apply(service("multi", "multi", ports))
    web.until("nobody yet", lambda: served(web, "multi") == {})

    def serving(name: str, port: str, number: int) -> Any:
        named = {"ports": [{"name": port, "containerPort": number}]}
        return pod(name, SERVE, labels={"app": "multi"}, container=named)

    web.apply(serving("first", "one", 8080))
    web.until("the first", lambda: served(web, "multi") == {"p1": 8080})
    web.apply(serving("second", "two", 8080))
    web.until("both", lambda: served(web, "multi") == {"p1": 8080, "p2": 8080})
    address = cluster_ip(web, "multi")
    for port, name in ((80, "first"), (81, "second")):
        url = f"http://{address}:{port}/"
        web.until(name, lambda url=url, name=name: answers(web, "client", url) == {name}, seconds=60)
    web.kubectl("delete", "pod", "first")
    web.until("the second alone", lambda: served(web, "multi") == {"p2": 8080})
    web.kubectl("delete", "pod", "second")
    web.until("none", lambda: served(web, "multi") == {})
    web.kubectl("delete", "service", "multi")


def served(node: Node, name: str) -> dict[str, int]:
    """Name → number of the ports that have a ready endpoint, by Endpoints and by EndpointSlices alike."""
    slices = node.kubectl(
        "get", "endpointslices", "-l", f"kubernetes.io/service-name={name}", "-o", "json"
    ).json()["items"]
    by_slices = {
        port["name"]: port["port"]
        for piece in slices
        for port in piece.get("ports") or ()
        if any(e["conditions"].get("ready") for e in piece.get("endpoints") or ())
    }
    # The controller may not have made them yet.
    made = node.kubectl("get", "endpoints", name, "-o", "json", "--ignore-not-found").out
    subsets = (json.loads(made).get("subsets") if made else None) or ()
    by_endpoints = {p["name"]: p["port"] for s in subsets if s.get("addresses") for p in s["ports"]}
    return by_slices if by_slices == by_endpoints else {"they differ": 0}


@pytest.mark.conformance(
    "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service"
)
@pytest.mark.conformance(
    "[sig-network] EndpointSlice should create and delete Endpoints and EndpointSlices for a Service with a "
    "selector specified"
)
def test_endpoints_and_slices_come_and_go_with_their_service(web: Node) -> None:
    empty = {**service("empty", "nobody", HTTP)}
    web.apply(service("told", "web", [{"name": "http", **HTTP[0]}]), empty)
    web.until("told", lambda: served(web, "told") == {"http": 8080})
    assert len(ready_endpoints(web, "told")) == 2 and ready_endpoints(web, "empty") == []

    def there(name: str) -> str:
        selector = f"kubernetes.io/service-name={name}"
        found = web.kubectl("get", "endpointslices", "-l", selector, "-o", "name").out
        return found + web.kubectl("get", "endpoints", name, "-o", "name", "--ignore-not-found").out

    web.until("of an empty one, too", lambda: there("empty").count("endpoint") >= 2)
    web.kubectl("delete", "service", "told", "empty")
    web.until("gone", lambda: not there("told") + there("empty"))


@pytest.mark.conformance(f"{SERVICES} find a service from listing all namespaces")
def test_the_kubernetes_service_is_in_the_list_of_all(web: Node) -> None:
    listed = web.kubectl("get", "services", "-A", "-o", "json").json()["items"]
    assert ("default", "kubernetes") in {(s["metadata"]["namespace"], s["metadata"]["name"]) for s in listed}


@pytest.mark.conformance(f"{SERVICES} delete a collection of services")
def test_a_collection_of_services_goes_at_once(web: Node) -> None:
    made = [service(f"many-{index}", "web", HTTP) for index in range(3)]
    for body in made[:2]:
        body["metadata"]["labels"] = {"type": "Testing"}
    web.apply(*made)
    web.kubectl("delete", "--raw", "/api/v1/namespaces/default/services?labelSelector=type%3DTesting")
    left = web.kubectl("get", "services", "-o", "name").out.split()
    assert "service/many-2" in left and "service/many-0" not in left and "service/many-1" not in left
    web.kubectl("delete", "service", "many-2")


@pytest.mark.conformance(f"{SERVICES} complete a service status lifecycle")
def test_a_services_status_is_patched_and_replaced(web: Node) -> None:
    need_kubectl("1.24", "patch --subresource")
    web.apply(service("told", "web", HTTP, type="LoadBalancer", loadBalancerClass="example.com/ours"))
    path = "/api/v1/namespaces/default/services/told/status"
    patch = {
        "metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    }
    argv = ("patch", "service", "told", "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    web.kubectl(*argv)
    read = web.kubectl("get", "--raw", path).json()
    assert read["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1"
    assert read["metadata"]["annotations"]["patchedstatus"] == "true"
    condition = {
        "type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from a test",
        "lastTransitionTime": "2026-11-27T00:00:00Z",
    }  # fmt: skip
    read["status"]["conditions"] = [condition]
    web.kubectl("replace", "--raw", path, "-f", "-", stdin=json.dumps(read))
    assert web.get("service", "told")["status"]["conditions"] == [condition]
    web.kubectl("delete", "service", "told")


@pytest.mark.conformance(f"{SERVICES} test the lifecycle of an Endpoint")
def test_the_life_of_an_endpoints_object(web: Node) -> None:
    subset = {"addresses": [{"ip": "203.0.113.2"}], "ports": [{"name": "http", "port": 80}]}
    metadata = {"name": "own", "labels": {"made": "by-hand"}}
    web.apply({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]})
    web.kubectl("label", "endpoints", "own", "changed=yes")
    patch = {"subsets": [{**subset, "addresses": [{"ip": "203.0.113.3"}]}]}
    web.kubectl("patch", "endpoints", "own", "--type=merge", "-p", json.dumps(patch))
    found = web.get("endpoints", "own")
    assert found["metadata"]["labels"]["changed"] == "yes"
    assert found["subsets"][0]["addresses"] == [{"ip": "203.0.113.3"}]
    web.kubectl("delete", "--raw", "/api/v1/namespaces/default/endpoints?labelSelector=made%3Dby-hand")
    web.until("gone", lambda: web.kubectl("get", "endpoints", "own", check=False).code == 1)


@pytest.mark.conformance(
    "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update "
    "and delete"
)
def test_endpoints_made_by_hand_lead_somewhere(web: Node) -> None:
    """A Service without a selector, and Endpoints that somebody wrote for it: proxies read slices only."""
    ips = {name: web.get("pod", name)["status"]["podIP"] for name in ("web-1", "web-2")}
    meta, ports = {"name": "custom"}, [{"name": "http", "port": 80, "targetPort": 8080}]

    def point_at(name: str) -> None:
        subset = {"addresses": [{"ip": ips[name]}], "ports": [{"name": "http", "port": 8080}]}
        web.apply({"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": [subset]})

    web.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}})
    point_at("web-1")
    url = f"http://{web.get('service', 'custom')['spec']['clusterIP']}/"
    web.until("web-1 answers", lambda: answers(web, "client", url) == {"web-1"})
    point_at("web-2")
    web.until("web-2 answers", lambda: answers(web, "client", url) == {"web-2"})
    mine = ("get", "endpointslices", "-l", "kubernetes.io/service-name=custom", "-o", "name")
    assert len(web.kubectl(*mine).out.splitlines()) == 1
    web.kubectl("delete", "endpoints", "custom")
    web.until("no slice", lambda: not web.kubectl(*mine).out)
    web.kubectl("delete", "service", "custom")


@pytest.fixture
def second_address() -> Iterator[str]:
    sh("ip", "addr", "add", f"{SECOND_IP}/24", "dev", "up0")
    yield SECOND_IP
    sh("ip", "addr", "del", f"{SECOND_IP}/24", "dev", "up0")


@pytest.mark.conformance(
    "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but "
    "different hostIP and protocol [LinuxOnly]"
)
def test_one_host_port_by_address_and_protocol(web: Node, second_address: str) -> None:
    places = {
        "first": (NODE_IP, "tcp"),
        "second": (second_address, "tcp"),
        "third": (second_address, "udp"),
    }
    bodies = []
    for name, (address, protocol) in places.items():
        body = with_python(name, BOTH, {})
        body["spec"]["containers"][0]["ports"] = [
            {"containerPort": 9000, "hostPort": 24323, "hostIP": address, "protocol": protocol.upper()}
        ]
        bodies.append(body)
    web.apply(*bodies)
    web.wait_running(*places)
    script = Path(web.root / "home/ask.py")
    script.write_text(ASK)
    for name, (address, protocol) in places.items():
        argv = ("/usr/bin/python3", str(script), address, "24323", protocol)
        web.until(
            f"{name} from outside",
            lambda argv=argv, name=name: web.outside_run(*argv, check=False).out.strip() == name,
        )
    closed = web.outside_run("/usr/bin/python3", str(script), NODE_IP, "24323", "udp", check=False)
    assert closed.code != 0
    clash = pod("clash", container={"ports": [{"containerPort": 1, "hostPort": 24323, "hostIP": "0.0.0.0"}]})
    web.apply(clash)
    web.until(
        "refused",
        lambda: (
            "free ports" in web.kubectl("get", "events", "--field-selector", "involvedObject.name=clash").out
        ),
    )
    web.kubectl("delete", "pod", *places, "clash")


@pytest.mark.conformance(
    "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http"
)
@pytest.mark.conformance(
    "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http "
    "[LinuxOnly]"
)
@pytest.mark.parametrize("source", ["client", "node"])
def test_every_web_pod_answers_at_its_own_address(web: Node, source: str) -> None:
    for name in ("web-1", "web-2"):
        url = f"http://{web.get('pod', name)['status']['podIP']}:8080/"
        web.until(name, lambda url=url, name=name: answers(web, source, url) == {name})


@pytest.mark.conformance(
    "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp"
)
@pytest.mark.conformance(
    "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp "
    "[LinuxOnly]"
)
def test_a_pod_answers_datagrams_of_pods_and_of_the_node(web: Node) -> None:
    address = web.get("pod", "both")["status"]["podIP"]
    web.until("a pod", lambda: ask(web, address, 9000, "udp") == "both")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"?", (address, 9000))
        assert client.recv(100) == b"both"


PROXY = "[sig-network] Proxy version v1"


@pytest.mark.conformance(f"{PROXY} should proxy through a service and a pod")
@pytest.mark.conformance(f"{PROXY} A set of valid responses are returned for both pod and service Proxy")
@pytest.mark.conformance(
    f"{PROXY} A set of valid responses are returned for both pod and service ProxyWithPath"
)
def test_the_api_server_is_a_proxy_to_pods_and_services(web: Node) -> None:
    web.apply(service("proxied", "web", [{"name": "http", **HTTP[0]}]))
    web.until("endpoints", lambda: len(ready_endpoints(web, "proxied")) == 2)
    namespace = "/api/v1/namespaces/default"
    for target in ("services/proxied:http", "services/proxied:80", "pods/web-1:8080"):
        for path in ("", "index.html"):
            said = web.kubectl("get", "--raw", f"{namespace}/{target}/proxy/{path}").out.strip()
            assert said == "web-1" if target.startswith("pods") else said in ("web-1", "web-2")
    missing = web.kubectl("get", "--raw", f"{namespace}/pods/web-1:8080/proxy/none", check=False)
    assert (missing.code == 1 and "404" in missing.err) or "NotFound" in missing.err
    posted = web.kubectl(
        "create", "--raw", f"{namespace}/pods/web-1:8080/proxy/", "-f", "-", stdin="{}", check=False
    )
    assert "501" in posted.err or "Not Implemented" in posted.err, posted
    web.kubectl("delete", "service", "proxied")
