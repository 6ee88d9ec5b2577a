"""NetworkPolicies by kubectl: three namespaces of three pods with two ports, every pair tried for real."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from e2e_node import Node
from policy_matrix import NAMESPACES, Matrix, make_pods, policy, remove_policies

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def matrix(node: Node) -> Iterator[Matrix]:
    make_pods(node)
    yield Matrix(node)
    node.kubectl("delete", "namespace", *NAMESPACES, "--wait=false")


@pytest.fixture(autouse=True)
def free(matrix: Matrix) -> Iterator[None]:
    yield
    remove_policies(matrix.node)


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
    (node,) = matrix.node.kubectl("get", "nodes", "-o", "json").json()["items"]
    said = json.loads((matrix.node.root / "var/lib/kubelet-py/network-policies.json").read_text())
    assert said["podCIDRs"] == node["spec"]["podCIDRs"], "for the next boot"
    old = matrix.node.pid("proxy")
    os.kill(old, signal.SIGKILL)
    assert {pair for pair in matrix.seen() if pair[1].startswith("z/") and pair[0] != pair[1]} == set()
    matrix.node.until("a new proxy", lambda: "proxy" in matrix.node.cli("status", check=False).out)
    matrix.wait_for(lambda sender, receiver, port: not receiver.startswith("z/"))
