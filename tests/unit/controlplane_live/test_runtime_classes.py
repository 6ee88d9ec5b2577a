"""RuntimeClass at the door of a real server: what is refused, and what a pod gets from its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.apiserver.runtime_class import merged

from .conftest import Client, pod

CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"


@pytest.fixture
def sandboxed(api: Client) -> Iterator[str]:
    body = {
        "metadata": {"name": "sandboxed"},
        "handler": "kata",
        "overhead": {"podFixed": {"cpu": "250m", "memory": "64Mi"}},
        "scheduling": {
            "nodeSelector": {"kata": "yes"},
            "tolerations": [{"key": "kata", "operator": "Exists", "effect": "NoSchedule"}],
        },
    }
    api.must("POST", CLASSES, body)
    yield "sandboxed"
    api.must("DELETE", f"{CLASSES}/sandboxed")


def named(name: str, runtime_class: str, **spec: Any) -> dict[str, Any]:
    body = pod(name)
    body["spec"] |= {"runtimeClassName": runtime_class, **spec}
    return body


def test_a_pod_gets_overhead_and_scheduling_of_its_class(api: Client, namespace: str, sandboxed: str) -> None:
    own = [{"key": "own", "operator": "Exists"}]
    body = named("p", sandboxed, nodeSelector={"disk": "fast"}, tolerations=own)
    spec = api.must("POST", f"/api/v1/namespaces/{namespace}/pods", body)["spec"]
    assert spec["overhead"] == {"cpu": "250m", "memory": "64Mi"}
    assert spec["nodeSelector"] == {"disk": "fast", "kata": "yes"}
    keys = [toleration["key"] for toleration in spec["tolerations"]]
    assert keys[0] == "own" and keys[-1] == "kata" and len(keys) == 4


@pytest.mark.parametrize(
    ("runtime_class", "spec", "text"),
    [
        ("nope", {}, 'pod rejected: RuntimeClass "nope" not found'),
        (
            "sandboxed",
            {"overhead": {"cpu": "1"}},
            "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
        ),
        (
            "",
            {"overhead": {"cpu": "1"}},
            "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
        ),
        (
            "sandboxed",
            {"nodeSelector": {"kata": "no"}},
            "conflict: runtimeClass.scheduling.nodeSelector[kata] = yes; pod.spec.nodeSelector[kata] = no",
        ),
    ],
)
def test_a_pod_against_its_class_is_forbidden(
    api: Client, namespace: str, sandboxed: str, runtime_class: str, spec: dict[str, Any], text: str
) -> None:
    body = named("p", runtime_class, **spec)
    if not runtime_class:
        del body["spec"]["runtimeClassName"]
    code, status = api("POST", f"/api/v1/namespaces/{namespace}/pods", body)
    assert (code, status["message"]) == (403, f'pods "p" is forbidden: {text}')


def test_the_same_overhead_in_other_words_is_no_conflict(api: Client, namespace: str, sandboxed: str) -> None:
    body = named("p", sandboxed, overhead={"cpu": "0.25", "memory": "65536Ki"})
    assert api("POST", f"/api/v1/namespaces/{namespace}/pods", body)[0] == 201


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"handler": "Not_a_label"}, "handler"),
        ({"handler": ""}, "handler"),
        ({"overhead": {"podFixed": {"cpu": "-1"}}}, "overhead.podFixed.limits[cpu]"),
        ({"scheduling": {"nodeSelector": {"a": "not a value"}}}, "scheduling.nodeSelector"),
        (
            {"scheduling": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
            "scheduling.tolerations[0].operator",
        ),
    ],
)
def test_a_class_that_makes_no_sense_is_invalid(api: Client, change: dict[str, Any], field: str) -> None:
    code, status = api("POST", CLASSES, {"metadata": {"name": "bad"}, "handler": "runc"} | change)
    assert code == 422
    assert [cause["field"] for cause in status["details"]["causes"]] == [field]


def test_the_handler_is_immutable(api: Client, sandboxed: str) -> None:
    found = api.must("GET", f"{CLASSES}/{sandboxed}")
    code, status = api("PUT", f"{CLASSES}/{sandboxed}", found | {"handler": "runc"})
    assert code == 422 and "field is immutable" in status["message"]


def exists(key: str = "", effect: str = "", seconds: int | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {"key": key, "operator": "Exists", "effect": effect}
    return answer if seconds is None else answer | {"tolerationSeconds": seconds}


EQUAL = {"key": "a", "operator": "Equal", "value": "1", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ([EQUAL], [EQUAL], [EQUAL]),
        ([EQUAL], [exists("a")], [exists("a")]),
        ([exists()], [EQUAL], [exists()]),
        ([EQUAL], [exists("b")], [EQUAL, exists("b")]),
        ([EQUAL], [EQUAL | {"value": "2"}], [EQUAL, EQUAL | {"value": "2"}]),
        ([exists("a", "NoExecute", 5)], [exists("a", "NoExecute", 9)], [exists("a", "NoExecute", 9)]),
        ([exists("a", "NoExecute", 5)], [exists("a", "NoExecute")], [exists("a", "NoExecute")]),
    ],
)
def test_tolerations_merge(first: list[Any], second: list[Any], kept: list[Any]) -> None:
    assert merged(first, second) == kept
