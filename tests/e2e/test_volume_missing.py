"""What a pod names and is not there: told in upstream's words, and waited for."""

from __future__ import annotations

from typing import Any

import pytest
from e2e_node import Node, pod
from volume_pods import config_map, event, events, holding, secret, shown

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


def test_a_missing_volume_is_told_and_its_pod_starts_when_it_appears(node: Node) -> None:
    cases = {
        "lacks-map": ({"configMap": {"name": "late-map"}}, 'configmap "late-map" not found'),
        "lacks-secret": ({"secret": {"secretName": "late-secret"}}, 'secret "late-secret" not found'),
        "lacks-key": (
            {"configMap": {"name": "keyless", "items": [{"key": "k", "path": "p"}]}},
            "configmap references non-existent config key: k",
        ),
    }
    node.apply(config_map("keyless", {"other": ""}))
    node.apply(*(holding(name, {"name": "v", **source}) for name, (source, _) in cases.items()))
    for name, (_, text) in cases.items():
        assert event(node, name, "FailedMount") == f'MountVolume.SetUp failed for volume "v" : {text}'
        assert node.phase(name) == "Pending"
    node.apply(
        holding(
            "lacks-two",
            {"name": "v", "configMap": {"name": "late-map"}},
            {"name": "w", "secret": {"secretName": "late-secret"}},
        )
    )
    told = {f'MountVolume.SetUp failed for volume "{v}" : {text}' for v, text in (
        ("v", 'configmap "late-map" not found'), ("w", 'secret "late-secret" not found')
    )}  # fmt: skip
    node.until("an event for each volume", lambda: set(events(node, "lacks-two", "FailedMount")) == told)
    node.apply(config_map("late-map", {"k": "v"}), secret("late-secret", {"k": "v"}))
    node.apply(config_map("keyless", {"other": "", "k": "v"}))
    node.wait_running(*cases, "lacks-two")


def test_a_missing_reference_of_the_environment_is_told_and_waited_for(node: Node) -> None:
    variable = {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late-env", "key": "k"}}}
    node.apply(pod("lacks-env", container={"env": [variable]}))

    def waiting() -> Object:
        statuses = node.get("pod", "lacks-env").get("status", {}).get("containerStatuses") or [{}]
        return (statuses[0].get("state") or {}).get("waiting") or {}

    node.until("CreateContainerConfigError", lambda: waiting().get("reason") == "CreateContainerConfigError")
    assert waiting()["message"] == 'configmap "late-env" not found'
    node.apply(config_map("late-env", {"other": ""}))
    text = "couldn't find key k in ConfigMap default/late-env"
    node.until("the key's turn", lambda: waiting().get("message") == text)
    node.apply(config_map("late-env", {"k": "v"}))
    node.wait_running("lacks-env")
    assert shown(node, "lacks-env", "/proc/1/environ").count("A=v") == 1


def test_keys_that_are_no_names_of_variables_are_skipped_with_an_event(node: Node) -> None:
    node.apply(config_map("names", {"good": "1", "1bad": "2", "2bad": "3"}))
    node.apply(pod("names", container={"envFrom": [{"configMapRef": {"name": "names"}}]}))
    node.wait_running("names")
    assert event(node, "names", "InvalidEnvironmentVariableNames") == (
        "Keys [1bad, 2bad] from the EnvFrom configMap default/names were skipped since they are considered "
        "invalid environment variable names."
    )
    variables = shown(node, "names", "/proc/1/environ")
    assert "good=1" in variables and "bad" not in variables
