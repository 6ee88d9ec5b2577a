"""Cluster DNS through its Service, asked from pods by their own resolver, and from the test by dnspython."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest
from e2e_node import NODE_IP, Node, pod

pytestmark = pytest.mark.e2e

DNS = "10.96.0.10"
DOMAIN = "cluster.local"


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


@pytest.fixture(scope="module")
def named(node: Node) -> Iterator[Node]:
    """A client, and a pod with hostname and subdomain behind a headless Service and one with an address."""
    http = [{"name": "http", "port": 80, "protocol": "TCP"}]
    node.apply(
        service("db", clusterIP="None", selector={"app": "db"}, ports=http),
        service("web", selector={"app": "db"}, ports=http),
        service("far", type="ExternalName", externalName="foo.example.com"),
        pod("db-0", labels={"app": "db"}, hostname="db-querier-1", subdomain="db"),
        pod("client"),
    )
    node.wait_running("db-0", "client")
    node.until("names", lambda: _answers("db.default.svc"))
    yield node
    node.kubectl("delete", "pod", "db-0", "client", "--grace-period=0", "--force")


def ask(name: str, kind: str = "A") -> dns.message.Message:
    """By the Service's address, from the node itself: through the same rules as a pod's question."""
    whole = name if name.endswith(".") else f"{name}.{DOMAIN}"
    return dns.query.udp(dns.message.make_query(whole, kind), DNS, 10)


def values(name: str, kind: str = "A") -> set[str]:
    found = ask(name, kind)
    return {rdata.to_text() for rrset in found.answer for rdata in rrset}


def look_up(node: Node, name: str) -> str:
    return node.kubectl("exec", "client", "--", "nslookup", name, check=False).out


def ip_of(node: Node, name: str) -> str:
    return str(node.get("pod", name)["status"]["podIP"])


@pytest.mark.conformance("[sig-network] DNS should provide DNS for the cluster")
def test_the_cluster_itself_has_a_name(named: Node) -> None:
    address = named.get("service", "kubernetes")["spec"]["clusterIP"]
    assert values("kubernetes.default.svc") == {address}
    assert f"Address: {address}" in look_up(named, f"kubernetes.default.svc.{DOMAIN}")
    assert values("dns-version", "TXT") == {'"1.1.0"'}
    by_tcp = dns.query.tcp(dns.message.make_query(f"kubernetes.default.svc.{DOMAIN}", "A"), DNS, 10)
    assert by_tcp.rcode() == dns.rcode.NOERROR and by_tcp.answer


@pytest.mark.conformance("[sig-network] DNS should provide DNS for services")
def test_services_have_names_and_addresses_have_them_too(named: Node) -> None:
    address, pod_ip = named.get("service", "web")["spec"]["clusterIP"], ip_of(named, "db-0")
    assert values("web.default.svc") == {address}
    assert values("_http._tcp.web.default.svc", "SRV") == {f"0 100 80 web.default.svc.{DOMAIN}."}
    assert values("db.default.svc") == {pod_ip}
    target = f"db-querier-1.db.default.svc.{DOMAIN}."
    assert values("_http._tcp.db.default.svc", "SRV") == {f"0 100 80 {target}"}
    reverse = ".".join(reversed(address.split("."))) + ".in-addr.arpa."
    assert values(reverse, "PTR") == {f"web.default.svc.{DOMAIN}."}
    reverse = ".".join(reversed(pod_ip.split("."))) + ".in-addr.arpa."
    assert values(reverse, "PTR") == {target}


@pytest.mark.conformance("[sig-network] DNS should resolve DNS of partial qualified names for services")
@pytest.mark.parametrize("name", ["web", "web.default", "web.default.svc"])
def test_the_search_path_makes_short_names_whole(named: Node, name: str) -> None:
    address = named.get("service", "web")["spec"]["clusterIP"]
    line = f"ping -c1 -W1 {name} 2>&1 | head -1"  # says what it resolved, whether or not it may send
    assert f"({address})" in named.kubectl("exec", "client", "--", "sh", "-c", line).out


@pytest.mark.conformance("[sig-network] DNS should provide DNS for pods for Hostname")
@pytest.mark.conformance("[sig-network] DNS should provide DNS for pods for Subdomain")
def test_a_pod_with_hostname_and_subdomain_has_a_name(named: Node) -> None:
    whole = f"db-querier-1.db.default.svc.{DOMAIN}"
    assert values("db-querier-1.db.default.svc") == {ip_of(named, "db-0")}
    assert f"Address: {ip_of(named, 'db-0')}" in look_up(named, whole)
    assert named.kubectl("exec", "db-0", "--", "hostname", "-f").out.strip() == whole


@pytest.mark.conformance("[sig-network] DNS should provide DNS for ExternalName services")
def test_an_external_name_follows_its_changes(named: Node) -> None:
    assert values("far.default.svc", "CNAME") == {"foo.example.com."}
    named.kubectl("patch", "service", "far", "-p", '{"spec":{"externalName":"bar.example.com"}}')
    named.until("the new name", lambda: values("far.default.svc", "CNAME") == {"bar.example.com."})
    change = '{"spec":{"type":"ClusterIP","externalName":null,"ports":[{"port":80}]}}'
    named.kubectl("patch", "service", "far", "-p", change)
    address = named.get("service", "far")["spec"]["clusterIP"]
    named.until("an address", lambda: values("far.default.svc") == {address})


def test_pods_have_names_by_their_address(named: Node) -> None:
    ip = ip_of(named, "client")
    assert values(f"{ip.replace('.', '-')}.default.pod") == {ip}
    assert ask(f"{ip.replace('.', '-')}.nowhere.pod").rcode() == dns.rcode.NXDOMAIN


def test_a_name_is_gone_with_its_service(named: Node) -> None:
    named.kubectl("expose", "pod", "client", "--port=80", "--name=brief")
    named.until("a name", lambda: ask("brief.default.svc").answer)
    named.kubectl("delete", "service", "brief")
    named.until("no name", lambda: ask("brief.default.svc").rcode() == dns.rcode.NXDOMAIN)


def test_strangers_get_no_answer(named: Node) -> None:
    """An open resolver is an amplifier: beyond the uplink nobody is answered, whatever they ask."""
    program = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1)\n"
        f"s.sendto(bytes.fromhex('{QUERY}'), ('{NODE_IP}', 10053))\n"
        "print(s.recv(512))"
    )
    done = named.outside_run("python3", "-c", program, check=False)
    assert done.code == 1 and "timed out" in done.err
    inside = dns.query.udp(dns.message.from_wire(bytes.fromhex(QUERY)), NODE_IP, 10, 10053)
    assert inside.answer, "the same question from the node itself is answered"


QUERY = dns.message.make_query(f"kubernetes.default.svc.{DOMAIN}", "A").to_wire().hex()


def test_a_selector_hands_the_service_over(named: Node) -> None:
    """Who applies CoreDNS' manifests gives kube-dns a selector: our slices go, and come back with ours."""

    def ours() -> list[str]:
        labels = "-l=kubernetes.io/service-name=kube-dns"
        items = named.kubectl("get", "endpointslices", "-n", "kube-system", labels, "-o", "json").json()[
            "items"
        ]
        by = "endpointslice.kubernetes.io/managed-by"
        return [i["metadata"]["name"] for i in items if "cluster-dns" in i["metadata"]["labels"].get(by, "")]

    assert len(ours()) == 1
    select = '{"spec":{"selector":{"k8s-app":"kube-dns"}}}'
    named.kubectl("patch", "service", "kube-dns", "-n", "kube-system", "-p", select)
    named.until("our slice gone", lambda: not ours())
    named.kubectl("delete", "service", "kube-dns", "-n", "kube-system")
    named.until("our slice back", lambda: len(ours()) == 1)
    assert named.get("service", "kube-dns", "kube-system")["spec"]["clusterIP"] == DNS
    named.until("answers again", lambda: _answers("kubernetes.default.svc"))


def _answers(name: str) -> bool:
    try:
        return bool(ask(name).answer)
    except (OSError, dns.exception.Timeout):
        return False
