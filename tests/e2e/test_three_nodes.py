"""Who reaches whom in a dual-stack cluster of three nodes, with real connections, and under which address.

Twice: all on one segment (direct routes, iptables), and the third behind a router (VXLAN, nftables).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import host_state
import pytest
from e2e_node import KUBECTLS
from policy_matrix import NAMESPACES, PODS, Matrix, Rule, make_pods, policy, remove_policies
from three_nodes import (
    NAMES,
    NODE_TCP,
    RANGES,
    SEGMENT,
    TCP,
    UDP,
    Cluster,
    Question,
    addresses,
    answerers,
    cluster,
    senders,
)

pytestmark = pytest.mark.e2e

EVERYBODY = {f"pod-{name}" for name in NAMES}
DNS = "10.96.0.10"
NODE_PORT, LOCAL_PORT = 30180, 30181
TIMES = 30  # of three endpoints one is left out by chance once in 60,000 times


def service(name: str, **spec: Any) -> dict[str, Any]:
    ports = [
        {"name": "tcp", "port": 80, "targetPort": TCP},
        {"name": "udp", "port": 80, "targetPort": UDP, "protocol": "UDP"},
    ]
    body = {"selector": {"app": "echo"}, "ports": ports, "ipFamilyPolicy": "RequireDualStack"} | spec
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def node_port(number: int) -> list[dict[str, Any]]:
    return [{"port": 80, "targetPort": TCP, "nodePort": number}]


@pytest.fixture(scope="module", params=["direct-iptables", "vxlan-nftables"])
def three(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not KUBECTLS:
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")
    way, _, mode = request.param.partition("-")
    before = host_state.read()
    with cluster(routed=way == "vxlan", proxy_mode=mode) as found:
        first = found.first
        first.apply(
            service("web"),
            service("peers", clusterIP="None"),
            service("door", type="NodePort", ports=node_port(NODE_PORT)),
            service("own", type="NodePort", ports=node_port(LOCAL_PORT), externalTrafficPolicy="Local"),
        )
        for machine in found.machines:  # the first full answer on every node: rules, names and ways are there
            for address in first.get("service", "web")["spec"]["clusterIPs"]:
                whole = [("SOCK_STREAM", address, 80)] * TIMES
                first.until(
                    f"Service {address} on {machine.name}",
                    lambda name=machine.name, q=whole: set(answerers(found.from_node(name, q))) == EVERYBODY,
                )
        yield found
    assert host_state.settled_difference(before) == []


def both(address: str, tcp: int, udp: int) -> list[tuple[str, str, int]]:
    return [("SOCK_STREAM", address, tcp), ("SOCK_DGRAM", address, udp)]


def bridge(three: Cluster, name: str, version: int) -> str:
    """The node's own address on the segment of its pods."""
    return str(ipaddress.ip_network(f"{three.pods(version)[name]}/{LENGTH[version]}", strict=False)[1])


def of_service(three: Cluster, version: int, name: str = "web") -> str:
    return str(three.first.get("service", name)["spec"]["clusterIPs"][0 if version == 4 else 1])


versions = pytest.mark.parametrize("version", [4, 6])
LENGTH = {4: 24, 6: 64}


def test_every_node_and_pod_has_addresses_of_both_versions(three: Cluster) -> None:
    for machine in three.machines:
        node = three.first.get("node", machine.name)
        inside = [entry["address"] for entry in node["status"]["addresses"] if entry["type"] == "InternalIP"]
        assert inside == list(machine.addresses.values())
        ranges = [ipaddress.ip_network(text) for text in node["spec"]["podCIDRs"]]
        assert (node["spec"]["podCIDR"], [r.prefixlen for r in ranges]) == (str(ranges[0]), [24, 64])
        status = three.first.get("pod", f"echo-{machine.name}")["status"]
        assert [entry["ip"] for entry in status["hostIPs"]] == inside
        assert status["podIP"] == status["podIPs"][0]["ip"]
        for entry, network in zip(status["podIPs"], ranges, strict=True):
            assert ipaddress.ip_address(entry["ip"]) in network


@versions
def test_pod_to_pod(three: Cluster, version: int) -> None:
    questions = [question for address in three.pods(version).values() for question in both(address, TCP, UDP)]
    for sender, own in three.pods(version).items():
        expected = [f"pod-{name} {own}" for name in NAMES for _ in range(2)]
        assert three.from_pod(sender, questions) == expected, sender


@versions
def test_pod_to_node(three: Cluster, version: int) -> None:
    nodes = three.nodes(version).values()
    questions = [question for address in nodes for question in both(address, NODE_TCP, NODE_TCP)]
    for sender, own in three.pods(version).items():
        expected = [f"{name} {own}" for name in NAMES for _ in range(2)]
        assert three.from_pod(sender, questions) == expected, sender


@versions
def test_node_to_pod(three: Cluster, version: int) -> None:
    """To its own pods a node speaks as their gateway, to others' under its own address."""
    for sender, own in three.nodes(version).items():
        for receiver, address in three.pods(version).items():
            seen = bridge(three, sender, version) if sender == receiver else own
            expected = [f"pod-{receiver} {seen}"] * 2
            assert three.from_node(sender, both(address, TCP, UDP)) == expected, (sender, receiver)


@versions
def test_large_transfers(three: Cluster, version: int) -> None:
    """A pod sends packets of 1500 bytes, too large for the overlay: it is told so, and sends smaller ones."""
    size, service_ip, pods = 300_000, of_service(three, version), three.pods(version).values()
    questions: list[Question] = [("SOCK_STREAM", address, TCP, size) for address in pods]
    questions += [("SOCK_STREAM", address, NODE_TCP, size) for address in three.nodes(version).values()]
    questions += [("SOCK_STREAM", service_ip, 80, size)] * 6
    for name in NAMES:
        assert set(three.from_pod(name, questions)) == {size}, name
        assert set(three.from_node(name, questions)) == {size}, name


@versions
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_cluster_ip(three: Cluster, kind: str, version: int) -> None:
    address = of_service(three, version)
    for name in NAMES:
        answers = three.from_pod(name, [(kind, address, 80)] * TIMES)
        assert set(answerers(answers)) == EVERYBODY, name
        seen = {answer.split()[1] for answer in answers if not answer.startswith(f"pod-{name} ")}
        assert seen == {three.pods(version)[name]}, "a Service keeps the pod's address"
        answers = three.from_node(name, [(kind, address, 80)] * TIMES)
        assert set(answerers(answers)) == EVERYBODY, name
        assert senders(answers) == {bridge(three, name, version)}


@versions
def test_node_port(three: Cluster, version: int) -> None:
    """Each node's address leads to all pods, whoever asks, and answers come back through that node."""
    for asked, address in three.nodes(version).items():
        questions = [("SOCK_STREAM", address, NODE_PORT)] * TIMES
        answers = three.from_outside(questions)
        assert set(answerers(answers)) == EVERYBODY, address
        own = bridge(three, asked, version)
        overlay = str(ipaddress.ip_network(f"{own}/{LENGTH[version]}", strict=False)[0])
        assert senders(answers) <= {address, own, overlay}
        for name in NAMES:
            assert set(answerers(three.from_pod(name, questions))) == EVERYBODY, (name, address)
            assert set(answerers(three.from_node(name, questions))) == EVERYBODY, (name, address)


@versions
def test_the_world_sees_the_node(three: Cluster, version: int) -> None:
    for name, address in three.nodes(version).items():
        answers = three.from_pod(name, both(addresses(SEGMENT, 1)[version], NODE_TCP, NODE_TCP))
        assert answers == [f"outside {address}"] * 2


@versions
def test_node_port_with_local_policy(three: Cluster, version: int) -> None:
    """The node's own pods answer, and see the client."""
    for name, address in three.nodes(version).items():
        answers = three.from_outside([("SOCK_STREAM", address, LOCAL_PORT)] * 5)
        assert set(answerers(answers)) == {f"pod-{name}"}
        router = str(ipaddress.ip_network(f"{address}/{LENGTH[version]}", strict=False)[1])
        assert senders(answers) == {router}


def test_names(three: Cluster) -> None:
    domain = "svc.cluster.local"
    address, address6 = (of_service(three, version) for version in (4, 6))
    pods, pods6 = three.pods(4), three.pods(6)
    questions = [
        ("name", "web", 0),
        ("name6", "web", 0),
        ("name", f"web.default.{domain}", 0),
        ("name", "peers.default", 0),
        ("name6", "peers.default", 0),
        *(("name", f"{name}.peers", 0) for name in NAMES),
        *(("name6", f"{name}.peers", 0) for name in NAMES),
        ("address", address, 0),
        ("address", address6, 0),
        *(("address", ip, 0) for ip in pods.values()),
        *(("address", ip, 0) for ip in pods6.values()),
    ]
    expected = [
        [address],
        [address6],
        [address],
        sorted(pods.values()),
        sorted(pods6.values()),
        *([pods[name]] for name in NAMES),
        *([pods6[name]] for name in NAMES),
        *[f"web.default.{domain}"] * 2,
    ]
    for name in NAMES:
        # A pod's own address is in its /etc/hosts, with the whole name first.
        whole = [f"{other}.peers.default.{domain}" for other in NAMES]
        assert three.from_pod(name, questions) == [*expected, *whole, *whole], name


def test_names_follow_changes_on_every_node(three: Cluster) -> None:
    three.first.kubectl(
        "create", "service", "externalname", "brief", "--external-name=web.default.svc.cluster.local"
    )
    three.first.kubectl("expose", "pod", "echo-n3", "--port=80", f"--target-port={TCP}", "--name=fresh")
    address = three.first.get("service", "fresh")["spec"]["clusterIP"]
    for name in NAMES:
        three.first.until(
            "the name", lambda name=name: three.from_pod(name, [("name", "fresh", 0)]) == [[address]]
        )
        [answer] = three.from_pod(name, [("SOCK_STREAM", "fresh", 80)])
        assert answer == f"pod-n3 {three.pods(4)[name]}" or name == "n3", name


@pytest.fixture(scope="module")
def matrices(three: Cluster) -> Iterator[list[Matrix]]:
    """Every namespace has a pod on every node, and pods of one name are on different ones."""

    def place(namespace: str, name: str) -> dict[str, Any]:
        number = NAMESPACES.index(namespace) + PODS.index(name)
        return {"nodeSelector": {"kubernetes.io/hostname": NAMES[number % 3]}}

    make_pods(three.first, place)
    yield [Matrix(three.first, version) for version in (4, 6)]
    three.first.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")


def wait_for(matrices: list[Matrix], rule: Rule) -> None:
    with ThreadPoolExecutor(len(matrices)) as threads:
        list(threads.map(lambda matrix: matrix.wait_for(rule), matrices))


def test_policies_across_nodes(three: Cluster, matrices: list[Matrix]) -> None:
    """By sender, receiver and port; pods are known by addresses that no node on the way has changed."""
    first = three.first
    wait_for(matrices, lambda sender, receiver, port: True)
    to = [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]
    first.apply(
        policy("x", "deny", policyTypes=["Ingress"]),
        policy("y", "out", policyTypes=["Egress"], egress=[{"to": to}]),
    )
    wait_for(matrices, lambda s, r, port: not r.startswith("x/") and (s[0] != "y" or r[0] == "z"))
    remove_policies(first, ("y",))
    peer = {"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "a"}}}
    rule = {"from": [peer], "ports": [{"port": "serve-81"}]}
    first.apply(policy("x", "some", podSelector={"matchLabels": {"pod": "c"}}, ingress=[rule]))
    wait_for(matrices, lambda s, r, port: r[0] != "x" or (s, r, port) == ("y/a", "x/c", 81))
    remove_policies(first)
    wait_for(matrices, lambda sender, receiver, port: True)


def test_a_policy_for_one_ip_version(three: Cluster, matrices: list[Matrix]) -> None:
    """A block of IPv6 addresses lets nobody in by IPv4, and leaves out the pods of one node."""
    outside = ipaddress.ip_network(f"{three.pods(6)['n2']}/64", strict=False)
    block = {"cidr": RANGES["cluster"].split(",")[1], "except": [str(outside)]}
    three.first.apply(policy("z", "six", ingress=[{"from": [{"ipBlock": block}]}]))
    four, six = matrices
    four.wait_for(lambda s, r, port: r[0] != "z")
    far = {name for name, address in six.ips.items() if ipaddress.ip_address(address) not in outside}
    # A node reaches its own pods, but a pod of n2 is not the node.
    six.wait_for(lambda s, r, port: r[0] != "z" or s in far)
    remove_policies(three.first)


@versions
def test_a_connection_between_nodes_is_cut(three: Cluster, version: int) -> None:
    address = three.pods(version)["n3"]
    chosen = {"matchLabels": {"node": "n3"}}
    with three.holding("n1", address) as cut, three.holding("n3", three.pods(version)["n2"]) as spared:
        three.first.apply(policy("default", "deny", podSelector=chosen, policyTypes=["Ingress"]))
        assert cut.stdout is not None and cut.stdout.readline() == "cut\n"
        assert spared.poll() is None, "answers to what n3 began are not judged"
    remove_policies(three.first, ("default",))
    question: list[Question] = [("SOCK_STREAM", address, TCP)]
    answer = [f"pod-n3 {three.pods(version)['n1']}"]
    three.first.until("the way back", lambda: three.from_pod("n1", question) == answer)
