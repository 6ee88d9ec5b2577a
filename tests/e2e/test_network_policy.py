"""NetworkPolicies by kubectl: three namespaces of three pods with two ports, every pair tried for real."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

NAMESPACES, PODS, PORTS = ("x", "y", "z"), ("a", "b", "c"), (80, 81)
SERVE = 'for p in 80 81; do (mkdir -p /w; cd /w; httpd -f -p $p) & done; trap "exit 0" TERM; wait'
Pair = tuple[str, str, int]


class Matrix:
    """Who reaches whom, asked from inside every pod at once."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.names = [f"{namespace}/{name}" for namespace in NAMESPACES for name in PODS]
        self.ips = {name: self._ip(name) for name in self.names}

    def _ip(self, name: str) -> str:
        namespace, _, pod_name = name.partition("/")
        return str(self.node.get("pod", pod_name, namespace)["status"]["podIP"])

    def seen(self) -> set[Pair]:
        with ThreadPoolExecutor(len(self.names)) as threads:
            return set().union(*threads.map(self._from, self.names))

    def _from(self, sender: str) -> set[Pair]:
        namespace, _, pod_name = sender.partition("/")
        asks = [
            f"(nc -w 2 {self.ips[receiver]} {port} </dev/null >/dev/null 2>&1 && echo {receiver} {port}) &"
            for receiver in self.names
            for port in PORTS
        ]
        line = "\n".join([*asks, "wait"])
        done = self.node.kubectl("exec", "-n", namespace, pod_name, "--", "sh", "-c", line)
        return {(sender, *_split(line)) for line in done.out.splitlines()}

    def wait_for(self, rule: Callable[[str, str, int], bool]) -> None:
        """Until exactly those pairs get through for which the rule holds; a pod always reaches itself."""
        wanted = {
            (s, r, port)
            for s in self.names
            for r in self.names
            for port in PORTS
            if s == r or rule(s, r, port)
        }
        found: set[Pair] = set()

        def right() -> bool:
            found.clear()
            found.update(self.seen())
            return found == wanted

        try:
            self.node.until("the matrix", right, 60)
        except AssertionError as error:
            wrong = f"too much: {sorted(found - wanted)[:5]}, too little: {sorted(wanted - found)[:5]}"
            raise AssertionError(wrong) from error


def _split(line: str) -> tuple[str, int]:
    receiver, port = line.split()
    return receiver, int(port)


def policy(namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


@pytest.fixture(scope="module")
def matrix(node: Node) -> Iterator[Matrix]:
    for namespace in NAMESPACES:
        labels = {"ns": namespace}
        node.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}
        )
    bodies = []
    for namespace in NAMESPACES:
        for name in PODS:
            ports = {
                "ports": [
                    {"name": "serve-80", "containerPort": 80},
                    {"name": "serve-81", "containerPort": 81},
                ]
            }
            body = pod(name, SERVE, labels={"pod": name}, container=ports)
            body["metadata"]["namespace"] = namespace
            bodies.append(body)
    node.apply(*bodies)
    for namespace in NAMESPACES:
        node.until("pods", lambda ns=namespace: all(node.phase(name, ns) == "Running" for name in PODS))
    yield Matrix(node)
    node.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")


@pytest.fixture(autouse=True)
def free(matrix: Matrix) -> Iterator[None]:
    yield
    for namespace in NAMESPACES:
        matrix.node.kubectl("delete", "networkpolicy", "--all", "-n", namespace)


def test_without_policies_everybody_reaches_everybody(matrix: Matrix) -> None:
    matrix.wait_for(lambda sender, receiver, port: True)


def test_default_deny_of_a_namespace_and_back(matrix: Matrix) -> None:
    matrix.node.apply(policy("x", "deny", policyTypes=["Ingress"]))
    matrix.wait_for(lambda sender, receiver, port: not receiver.startswith("x/"))
    matrix.node.kubectl("delete", "networkpolicy", "deny", "-n", "x")
    matrix.wait_for(lambda sender, receiver, port: True)


def test_pods_of_a_namespace_and_a_named_port(matrix: Matrix) -> None:
    peer = {"namespaceSelector": {"matchLabels": {"ns": "y"}}, "podSelector": {"matchLabels": {"pod": "a"}}}
    rule = {"from": [peer], "ports": [{"port": "serve-81"}]}
    matrix.node.apply(policy("x", "some", podSelector={"matchLabels": {"pod": "a"}}, ingress=[rule]))
    matrix.wait_for(lambda s, r, port: r != "x/a" or (s == "y/a" and port == 81))
    # Policies add up; and a pod that gets the label gets the permission.
    matrix.node.apply(
        policy("x", "more", podSelector={"matchLabels": {"pod": "a"}}, ingress=[{"ports": [{"port": 80}]}])
    )
    matrix.node.kubectl("label", "pod", "b", "-n", "y", "pod=a", "--overwrite")
    matrix.wait_for(lambda s, r, port: r != "x/a" or port == 80 or s in ("y/a", "y/b"))
    matrix.node.kubectl("label", "pod", "b", "-n", "y", "pod=b", "--overwrite")


def test_egress_to_a_namespace_and_cluster_dns(matrix: Matrix) -> None:
    to = [{"namespaceSelector": {"matchLabels": {"ns": "z"}}}]
    dns = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    matrix.node.apply(policy("y", "out", policyTypes=["Egress"], egress=[{"to": to}]))
    matrix.wait_for(lambda s, r, port: not s.startswith("y/") or r.startswith("z/"))
    look = ("exec", "-n", "y", "a", "--", "nslookup", "kubernetes.default.svc.cluster.local")
    assert matrix.node.kubectl(*look, check=False).code != 0
    matrix.node.apply(policy("y", "names", policyTypes=["Egress"], egress=[dns]))
    matrix.node.until("names", lambda: matrix.node.kubectl(*look, check=False).code == 0)
    matrix.wait_for(lambda s, r, port: not s.startswith("y/") or r.startswith("z/"))


def test_policies_hold_while_the_proxy_is_killed(matrix: Matrix) -> None:
    matrix.node.apply(policy("z", "deny", policyTypes=["Ingress"]))
    matrix.wait_for(lambda sender, receiver, port: not receiver.startswith("z/"))
    old = matrix.node.pid("proxy")
    os.kill(old, signal.SIGKILL)
    assert {pair for pair in matrix.seen() if pair[1].startswith("z/") and pair[0] != pair[1]} == set()
    matrix.node.until("a new proxy", lambda: "proxy" in matrix.node.cli("status", check=False).out)
    matrix.wait_for(lambda sender, receiver, port: not receiver.startswith("z/"))
