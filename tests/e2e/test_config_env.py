"""ConfigMaps, Secrets, the downward API and variables in a container's environment and command."""

from __future__ import annotations

import json
from typing import Any

import pytest
from e2e_node import Node
from volume_pods import Case, check, config_map, looking, parameters, secret, start_all

from kubeclient import quantity

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
MAP = config_map("env", {"data-1": "value-1", "data-2": "value-2"})
SECRET = secret("env", {"data-1": "hidden"})


def from_field(name: str, path: str) -> Object:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def from_resource(name: str, resource: str) -> Object:
    return {"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource}}}


def of_key(kind: str) -> Object:
    return {"name": "DATA", "valueFrom": {kind: {"name": "env", "key": "data-1"}}}


def case(title: str, name: str, script: str, said: Any, *objects: Object, **container: Any) -> Case:
    return Case(f"[sig-node] {title}", looking(name, script, [], container=container), said, objects)


def of_node(node: Node) -> list[str]:
    status = node.kubectl("get", "nodes", "-o", "json").json()["items"][0]["status"]["allocatable"]
    return [str(quantity.value(status["cpu"])), str(quantity.value(status["memory"]))]


def of_pod(node: Node) -> list[str]:
    status = node.get("pod", "about-pod")["status"]
    return ["about-pod", "default", status["podIP"]]


# Not by the shell's own `env`, which drops names with a dash.
SHOW_ALL = "tr '\\0' '\\n' < /proc/1/environ | grep data | sort"
LIMITED = {"limits": {"cpu": "2", "memory": "64Mi"}, "requests": {"cpu": "250m", "memory": "32Mi"}}
FROM = {"envFrom": [{"configMapRef": {"name": "env"}}, {"prefix": "p_", "configMapRef": {"name": "env"}}]}
CASES = [
    case("ConfigMap should be consumable via environment variable", "map-key", "echo $DATA", ["value-1"], MAP,
         env=[of_key("configMapKeyRef")]),
    case("ConfigMap should be consumable via the environment", "map-all", SHOW_ALL,
         ["data-1=value-1", "data-2=value-2", "p_data-1=value-1", "p_data-2=value-2"], MAP, **FROM),
    case("Secrets should be consumable from pods in env vars", "secret-key", "echo $DATA", ["hidden"], SECRET,
         env=[of_key("secretKeyRef")]),
    case("Secrets should be consumable via the environment", "secret-all", SHOW_ALL,
         ["data-1=hidden", "p_data-1=hidden"], SECRET,
         envFrom=[{"secretRef": {"name": "env"}}, {"prefix": "p_", "secretRef": {"name": "env"}}]),
    case("Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars",
         "limits", "echo $A $B $C $D", [f"2 {64 << 20} 1 {32 << 20}"], resources=LIMITED,
         env=[from_resource("A", "limits.cpu"), from_resource("B", "limits.memory"),
              from_resource("C", "requests.cpu"), from_resource("D", "requests.memory")]),
    case("Downward API should provide default limits.cpu/memory from node allocatable", "defaults",
         "echo $A; echo $B", of_node,
         env=[from_resource("A", "limits.cpu"), from_resource("B", "limits.memory")]),
    case("Downward API should provide host IP as an env var", "host-ip", "echo $A",
         lambda node: [node.get("pod", "host-ip")["status"]["hostIP"]],
         env=[from_field("A", "status.hostIP")]),
    case("Downward API should provide pod UID as env vars", "uid", "echo $A",
         lambda node: [node.get("pod", "uid")["metadata"]["uid"]], env=[from_field("A", "metadata.uid")]),
    case("Downward API should provide pod name, namespace and IP address as env vars", "about-pod",
         "echo $A; echo $B; echo $C", of_pod,
         env=[from_field("A", "metadata.name"), from_field("B", "metadata.namespace"),
              from_field("C", "status.podIP")]),
    case("Variable Expansion should allow composing env vars into new env vars", "composed", "echo $ALL",
         ["one;;two"], env=[{"name": "A", "value": "one"}, {"name": "B", "value": "two"},
                            {"name": "ALL", "value": "$(A);;$(B)"}]),
    case("Variable Expansion should allow substituting values in a container's command", "command",
         "echo $(A) $$(A)", ["told"], env=[{"name": "A", "value": "told #"}]),
    case("Variable Expansion should allow substituting values in a container's args", "args", "", ["told"],
         env=[{"name": "A", "value": "told"}], command=["echo"], args=["$(A)"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def started(node: Node) -> Node:
    start_all(node, CASES)
    return node


@pytest.mark.parametrize("case", parameters(CASES))
def test_conformance(started: Node, case: Case) -> None:
    check(started, case)


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(made, marks=pytest.mark.conformance(f"[sig-node] {title}"), id=title.split()[0])
        for made, title in (
            (config_map, "ConfigMap should fail to create ConfigMap with empty key"),
            (secret, "Secrets should fail to create secret due to empty secret key"),
        )
    ],
)
def test_an_empty_key_is_refused(node: Node, made: Any) -> None:
    body = json.dumps(made("empty-key", {"": "value"}))
    refused = node.kubectl("create", "-f", "-", stdin=body, check=False)
    assert refused.code != 0 and "a valid config key must consist of" in refused.err


@pytest.mark.conformance("[sig-node] ConfigMap should run through a ConfigMap lifecycle")
@pytest.mark.conformance("[sig-node] Secrets should patch a secret")
@pytest.mark.parametrize("kind", ["configmap", "secret"])
def test_the_life_of_an_object(node: Node, kind: str) -> None:
    made = config_map if kind == "configmap" else secret
    node.apply(made("living", {"key": "one"}))
    patch = {"metadata": {"labels": {"testing": "yes"}}, "data": {"key": "dHdv"}}
    node.kubectl("patch", kind, "living", "--type=merge", "-p", json.dumps(patch))
    found = node.get(kind, "living")
    assert found["data"] == {"key": "dHdv"} and found["metadata"]["labels"] == {"testing": "yes"}
    listed = node.kubectl("get", kind, "-A", "-l", "testing=yes", "-o", "name").out.split()
    assert listed == [f"{kind}/living"]
    node.kubectl("delete", kind, "-l", "testing=yes")
    assert node.kubectl("get", kind, "living", check=False).code != 0
