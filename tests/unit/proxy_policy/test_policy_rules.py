"""Policies as tables: who may talk to whom, as sets and matches, without a kernel."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from proxy.policy.memory import Memory
from proxy.policy.rules import Allow, Match, NameServer, Wanted, compile_policies, merged
from proxy.policy.table import Layout, change, layout, replace
from proxy.policy.world import Block, World

NAMESPACES = {"x": {"team": "a"}, "y": {"team": "b"}}


def pod(namespace: str, name: str, address: str, node: str = "n1", **status: Any) -> dict[str, Any]:
    ports = [{"name": "web", "containerPort": 8080 if name == "a" else 9090}]
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"{namespace}-{name}",
            "labels": {"pod": name},
        },
        "spec": {"nodeName": node, "containers": [{"ports": ports}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], **status},
    }


def policy(name: str = "p", namespace: str = "x", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"podSelector": {}, **spec}}


def world(*policies: dict[str, Any], pods: tuple[dict[str, Any], ...] = ()) -> World:
    made = World()
    for name, labels in NAMESPACES.items():
        made.namespace_event("ADDED", {"metadata": {"name": name, "labels": labels}})
    for namespace, third in (("x", 1), ("y", 2)):
        for number, name in enumerate("abc", 1):
            node = "n1" if name != "c" else "n2"
            made.pod_event("ADDED", pod(namespace, name, f"10.244.{third}.{number}", node))
    for body in pods:
        made.pod_event("ADDED", body)
    for body in policies:
        made.policy_event("ADDED", body)
    return made


def wanted(*policies: dict[str, Any], server: NameServer | None = None, **more: Any) -> Wanted:
    view = world(*policies, **more).view()
    return compile_policies(view, "n1", server or NameServer())


def allowed(found: Wanted, pod_name: str, kind: str) -> list[tuple[Match, Any]] | None:
    """Matches with the addresses they are for ("*" for all); None where the pod is free."""
    groups = {group.name: group for group in found.groups}
    for one in found.isolations:
        if (one.pod, one.kind) == (pod_name, kind):
            return [(a.match, sorted(groups[a.group].addresses) if a.group else "*") for a in one.allows]
    return None


ANY = Match()


def test_without_a_policy_nothing_is_enforced() -> None:
    assert wanted() == Wanted()


def test_default_deny_isolates_the_namespaces_pods_of_this_node() -> None:
    found = wanted(policy(policyTypes=["Ingress"]))
    assert allowed(found, "x/a", "Ingress") == [] and allowed(found, "x/b", "Ingress") == []
    assert allowed(found, "x/a", "Egress") is None, "the other direction is free"
    assert allowed(found, "x/c", "Ingress") is None, "another node's pod is that node's business"
    assert allowed(found, "y/a", "Ingress") is None
    assert found.known == {"10.244.1.1", "10.244.1.2", "10.244.2.1", "10.244.2.2"}


@pytest.mark.parametrize(
    ("peer", "addresses"),
    [
        ({"podSelector": {}}, ["10.244.1.1", "10.244.1.2", "10.244.1.3"]),
        ({"podSelector": {"matchLabels": {"pod": "b"}}}, ["10.244.1.2"]),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, ["10.244.2.1", "10.244.2.2", "10.244.2.3"]),
        (
            {
                "namespaceSelector": {"matchLabels": {"team": "b"}},
                "podSelector": {"matchLabels": {"pod": "a"}},
            },
            ["10.244.2.1"],
        ),
        (
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"pod": "a"}}},
            ["10.244.1.1", "10.244.2.1"],
        ),
        ({"namespaceSelector": {"matchLabels": {"team": "none"}}}, []),
        (
            {"podSelector": {"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]}},
            ["10.244.1.2", "10.244.1.3"],
        ),
    ],
)
def test_peers_by_selectors(peer: dict[str, Any], addresses: list[str]) -> None:
    found = wanted(policy(podSelector={"matchLabels": {"pod": "a"}}, ingress=[{"from": [peer]}]))
    assert allowed(found, "x/a", "Ingress") == [(ANY, addresses)]
    assert allowed(found, "x/b", "Ingress") is None


def test_an_empty_rule_allows_everybody_and_no_rule_nobody() -> None:
    assert allowed(wanted(policy(ingress=[{}])), "x/a", "Ingress") == [(ANY, "*")]
    assert allowed(wanted(policy(ingress=[])), "x/a", "Ingress") == []


def test_policies_add_up() -> None:
    one = policy("one", ingress=[{"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}])
    two = policy("two", ingress=[{"ports": [{"port": 80}]}])
    assert allowed(wanted(one, two), "x/a", "Ingress") == [
        (ANY, ["10.244.1.2"]),
        (Match("tcp", 80, 80), "*"),
    ]


@pytest.mark.parametrize(
    ("port", "match"),
    [
        ({"port": 80}, Match("tcp", 80, 80)),
        ({"port": 53, "protocol": "UDP"}, Match("udp", 53, 53)),
        ({"port": 8000, "endPort": 8010}, Match("tcp", 8000, 8010)),
        ({"protocol": "SCTP"}, Match("sctp")),
        ({"port": "web"}, Match("tcp", 8080, 8080)),
    ],
)
def test_ports(port: dict[str, Any], match: Match) -> None:
    assert allowed(wanted(policy(ingress=[{"ports": [port]}])), "x/a", "Ingress") == [(match, "*")]


def test_a_port_name_that_the_pod_has_not_allows_nothing() -> None:
    found = wanted(policy(ingress=[{"ports": [{"port": "metrics"}, {"port": "web", "protocol": "UDP"}]}]))
    assert allowed(found, "x/a", "Ingress") == []


def test_a_port_name_towards_others_is_theirs() -> None:
    found = wanted(
        policy(policyTypes=["Egress"], egress=[{"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}])
    )
    assert allowed(found, "x/a", "Egress") == [
        (Match("tcp", 8080, 8080), ["10.244.1.1"]),
        (Match("tcp", 9090, 9090), ["10.244.1.2", "10.244.1.3"]),
    ]


def test_blocks_without_what_they_except() -> None:
    block = {"cidr": "192.0.2.0/24", "except": ["192.0.2.64/26", "192.0.2.0/32"]}
    found = wanted(policy(ingress=[{"from": [{"ipBlock": block}, {"podSelector": {}}]}]))
    (group,) = found.groups
    assert len(group.addresses) == 3
    assert [(spell(low), spell(high)) for low, high in dict(group.ranges)[4]] == [
        ("192.0.2.1", "192.0.2.63"),
        ("192.0.2.128", "192.0.2.255"),
    ]


def spell(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed))


def test_blocks_are_united_and_an_exception_is_only_its_own_blocks() -> None:
    blocks = (
        Block("10.0.0.0/9", ("10.0.0.0/16",)),
        Block("10.0.0.0/24"),
        Block("10.128.0.0/9"),
        Block("fd00::/64"),
    )
    assert [(spell(a), spell(b)) for a, b in merged(blocks, 4)] == [
        ("10.0.0.0", "10.0.0.255"),
        ("10.1.0.0", "10.255.255.255"),
    ]
    assert [(spell(a), spell(b)) for a, b in merged(blocks, 6)] == [("fd00::", "fd00::ffff:ffff:ffff:ffff")]
    assert merged((Block("0.0.0.0/0", ("0.0.0.0/0",)),), 4) == ()


def test_pods_that_have_ended_or_use_the_hosts_network_are_nobody() -> None:
    done = pod("x", "b", "10.244.1.9", phase="Succeeded")
    host = pod("x", "h", "192.0.2.1")
    host["spec"]["hostNetwork"] = True
    found = wanted(policy(ingress=[{"from": [{"podSelector": {}}]}]), pods=(done, host))
    assert allowed(found, "x/a", "Ingress") == [(ANY, ["10.244.1.1", "10.244.1.3"])]
    assert "10.244.1.9" not in found.known and "192.0.2.1" not in found.known


SERVER = NameServer(("10.96.0.10",), ("192.0.2.10",), 10053)
DNS_TOO = [(Match("tcp", 10053, 10053), ["192.0.2.10"]), (Match("udp", 10053, 10053), ["192.0.2.10"])]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [*DNS_TOO, (ANY, "*")]),
        ({"ports": [{"port": 53, "protocol": "UDP"}]}, [DNS_TOO[1], (Match("udp", 53, 53), "*")]),
        ({"ports": [{"port": 80}]}, [(Match("tcp", 80, 80), "*")]),
        ({"to": [{"podSelector": {}}]}, [(ANY, ["10.244.1.1", "10.244.1.2", "10.244.1.3"])]),
        ({"to": [{"ipBlock": {"cidr": "10.96.0.10/32"}}]}, [*DNS_TOO, (ANY, [])]),
    ],
)
def test_rules_that_mean_cluster_dns_reach_the_nodes_server(rule: Any, expected: Any) -> None:
    found = wanted(policy(policyTypes=["Egress"], egress=[rule]), server=SERVER)
    assert allowed(found, "x/a", "Egress") == expected


def test_kube_dns_by_its_labels_is_the_nodes_server() -> None:
    made = world(
        policy(
            policyTypes=["Egress"],
            egress=[
                {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]}
            ],
        )
    )
    made.namespace_event("ADDED", {"metadata": {"name": "kube-system"}})
    assert allowed(compile_policies(made.view(), "n1", SERVER), "x/a", "Egress") == [*DNS_TOO, (ANY, [])]


def test_only_what_matters_is_a_change() -> None:
    made = world(policy(policyTypes=["Ingress"]))
    made.changed.clear()
    same = pod("x", "a", "10.244.1.1", startTime="2026-01-01T00:00:00Z")
    made.pod_event("MODIFIED", same)
    made.policy_event("MODIFIED", policy(policyTypes=["Ingress"]))
    made.namespace_event("MODIFIED", {"metadata": {"name": "x", "labels": NAMESPACES["x"]}})
    assert not made.changed.is_set()
    same["metadata"]["labels"] = {"pod": "other"}
    made.pod_event("MODIFIED", same)
    assert made.changed.is_set()


def test_a_pod_that_comes_changes_elements_only() -> None:
    rule = {"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}]}
    made = world(policy(podSelector={"matchLabels": {"pod": "a"}}, ingress=[rule]))
    before = layout(compile_policies(made.view(), "n1"))
    made.pod_event("ADDED", pod("x", "b2", "10.244.1.77", "n2") | {})
    unrelated = layout(compile_policies(made.view(), "n1"))
    assert change(before, unrelated) == []
    other = pod("x", "b3", "10.244.1.78", "n2")
    other["metadata"]["labels"] = {"pod": "b"}
    made.pod_event("ADDED", other)
    after = layout(compile_policies(made.view(), "n1"))
    (message,) = change(before, after)
    assert message.action.startswith("add element to inet kubelet-py-policy peers-")
    assert len(change(after, before)) == 1 and change(after, after) == []
    assert len(replace(after)) > len(change(Layout(), after))


def test_equal_allowances_of_several_policies_stand_once() -> None:
    found = wanted(policy("one", ingress=[{}]), policy("two", ingress=[{}]))
    assert [one.allows for one in found.isolations] == [(Allow(ANY),)] * 2


def test_rules_that_mean_the_same_peers_share_a_set() -> None:
    rule = {"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}
    own = {"from": [{"podSelector": {}}]}
    found = wanted(
        policy("one", ingress=[rule, own]),
        policy("two", "y", ingress=[rule, own], policyTypes=["Ingress"]),
    )
    assert len(found.groups) == 3, "pods of their own namespace are others for each"


def test_with_the_memory_of_the_last_pass_the_same_is_found() -> None:
    """Whatever changes meanwhile; and what does not change is not made anew."""
    rules: list[dict[str, Any]] = [
        {"from": [{"podSelector": {"matchLabels": {"pod": "b"}}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]},
        {"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}], "ports": [{"port": "web"}]},
    ]
    out = [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}]
    made = world(policy("one", ingress=rules, egress=out, policyTypes=["Ingress", "Egress"]))
    memory, before = Memory(), None
    moved = pod("y", "a", "10.244.2.77")
    moved["spec"]["containers"][0]["ports"][0]["containerPort"] = 7070
    for change_of_the_world in (
        lambda: None,
        lambda: made.pod_event("ADDED", pod("x", "b", "10.244.1.99")),
        lambda: made.pod_event("MODIFIED", moved),
        lambda: made.namespace_event("MODIFIED", {"metadata": {"name": "x", "labels": {"team": "b"}}}),
        lambda: made.policy_event("ADDED", policy("two", "y", ingress=rules)),
        lambda: made.policy_event("DELETED", policy("one")),
        lambda: made.pod_event("DELETED", pod("y", "c", "10.244.2.3")),
    ):
        change_of_the_world()
        fresh = layout(compile_policies(made.view(), "n1"))
        found = layout(compile_policies(made.view(), "n1", memory=memory), memory)
        memory.turn()
        assert found == fresh and found != before
        before = found
    again = layout(compile_policies(made.view(), "n1", memory=memory), memory)
    chains = [name for name in again.chains if name not in ("forward", "input")]
    assert chains and before is not None
    assert all(again.chains[name][1] is before.chains[name][1] for name in chains)
