"""A dual-stack cluster whose own family is IPv6: node, pods, Services and names have IPv6 first."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import dns.message
import dns.query
import dns.rcode
import pytest
from e2e_node import NODE_IP, Node, make_uplink, pod, sh

pytestmark = pytest.mark.e2e

NODE_IP6, OUTSIDE_IP6 = "2001:db8:51::10", "2001:db8:51::20"
RANGES = ("--cluster-cidr", "fd00:244::/56,10.244.0.0/16", "--service-cidr", "fd00:96::/112,10.96.0.0/12")
SERVE = "mkdir -p /www; echo served > /www/index.html; exec httpd -f -p '[::]:80' -h /www"


@pytest.fixture(scope="module")
def uplink() -> Iterator[str]:
    """The node's uplink, with IPv6 as well."""
    outside = f"kpytest{os.getpid()}"
    make_uplink(outside)
    inside = ("nsenter", f"--net=/run/netns/{outside}")
    sh(*inside, "ip", "addr", "add", f"{OUTSIDE_IP6}/64", "dev", "up1", "nodad")
    sh("ip", "addr", "add", f"{NODE_IP6}/64", "dev", "up0", "nodad")
    sh("ip", "-6", "route", "add", "default", "via", OUTSIDE_IP6)
    yield outside
    sh("ip", "link", "del", "up0")
    sh("ip", "netns", "del", outside)


@pytest.fixture(scope="module")
def node(unstarted_node: Node) -> Node:
    node = unstarted_node
    node.cli("up", "--detach", *RANGES)
    port = {"port": 80, "nodePort": 30080}
    both = {
        "type": "NodePort",
        "selector": {"app": "web"},
        "ports": [port],
        "ipFamilyPolicy": "PreferDualStack",
    }
    plain = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    services = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        for name, spec in (("both", both), ("plain", plain))
    ]
    node.apply(pod("web", SERVE), pod("client"), *services)
    node.wait_running("web", "client")
    return node


def get(node: Node, host: str) -> str:
    done = node.kubectl("exec", "client", "--", "wget", "-q", "-O", "-", f"http://{host}/", check=False)
    return done.out.strip()


def answers(node: Node, name: str, kind: str) -> tuple[str, list[str]]:
    """Cluster DNS asked from the node at its IPv6 address: the code and the addresses, as they come."""
    query = dns.message.make_query(f"{name}.default.svc.cluster.local", kind)
    at = node.get("service", "kube-dns", "kube-system")["spec"]["clusterIP"]
    said = dns.query.udp_with_fallback(query, at, timeout=10)[0]
    return dns.rcode.to_text(said.rcode()), [str(item) for found in said.answer for item in found]


def outside_get(node: Node, url: str) -> str:
    try:
        return node.outside_run("curl", "-s", "-g", "-m", "5", url, check=False).out.strip()
    except subprocess.TimeoutExpired:
        return ""


def test_node_pods_and_services_have_ipv6_first(node: Node) -> None:
    (found,) = node.kubectl("get", "nodes", "-o", "json").json()["items"]
    assert found["spec"]["podCIDRs"] == ["fd00:244::/64", "10.244.0.0/24"]
    assert found["spec"]["podCIDR"] == "fd00:244::/64"
    told = [a["address"] for a in found["status"]["addresses"] if a["type"] == "InternalIP"]
    assert told == [NODE_IP6, NODE_IP]
    status = node.get("pod", "web")["status"]
    ips = [entry["ip"] for entry in status["podIPs"]]
    assert [":" in ip for ip in ips] == [True, False]
    assert (status["podIP"], status["hostIP"]) == (ips[0], NODE_IP6)
    assert node.get("service", "kubernetes")["spec"]["clusterIP"] == "fd00:96::1"
    assert node.get("service", "plain")["spec"]["ipFamilies"] == ["IPv6"]
    both = node.get("service", "both")["spec"]
    assert both["ipFamilies"] == ["IPv6", "IPv4"]
    assert [":" in ip for ip in both["clusterIPs"]] == [True, False]


def test_names_and_addresses_of_both_versions_lead_to_the_pod(node: Node) -> None:
    settings = node.kubectl("exec", "client", "--", "cat", "/etc/resolv.conf").out
    assert "nameserver fd00:96::a\n" in settings
    node.until("a Service by its name", lambda: get(node, "plain") == "served")
    for ip in node.get("service", "both")["spec"]["clusterIPs"]:
        host = f"[{ip}]" if ":" in ip else ip
        node.until(f"the Service at {ip}", lambda host=host: get(node, host) == "served")
    asked = node.kubectl(
        "exec", "client", "--", "nslookup", "plain.default.svc.cluster.local", check=False
    ).out
    assert node.get("service", "plain")["spec"]["clusterIP"] in asked
    # By each type the addresses of its version, in whatever order a client asks; and of a name that has
    # none of a version that there is nothing, not that there is no such name (NXDOMAIN would end a search).
    addresses = {name: node.get("service", name)["spec"]["clusterIPs"] for name in ("both", "plain")}
    assert answers(node, "both", "AAAA") == ("NOERROR", [addresses["both"][0]])
    assert answers(node, "both", "A") == ("NOERROR", [addresses["both"][1]])
    assert answers(node, "plain", "AAAA") == ("NOERROR", addresses["plain"])
    assert answers(node, "plain", "A") == ("NOERROR", [])
    for host in (f"[{NODE_IP6}]", NODE_IP):
        node.until(
            f"the node port at {host}",
            lambda host=host: outside_get(node, f"http://{host}:30080/") == "served",
        )


def test_the_api_server_reaches_the_kubelet_by_ipv6_and_the_node_comes_by_ipv4(node: Node) -> None:
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    ports = {line.split()[3] for line in listening.splitlines()}
    assert {"*:6443", "*:10250"} <= ports
    assert node.kubectl("exec", "web", "--", "cat", "/www/index.html").out == "served\n"
    assert node.kubectl("logs", "web").code == 0
