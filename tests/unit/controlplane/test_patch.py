"""JSON patch, merge patch, strategic merge: in goes a document and a patch, out comes a new document."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.patch import json_patch, merge_patch, strategic_merge
from controlplane.apiserver.schema import Schema

SCHEMA = Schema.load()
POD = "io.k8s.api.core.v1.Pod"
DEPLOYMENT = "io.k8s.api.apps.v1.Deployment"


@pytest.mark.parametrize(
    ("doc", "op", "wanted"),
    [
        ({}, {"op": "add", "path": "/a", "value": 1}, {"a": 1}),
        ({"a": [1, 3]}, {"op": "add", "path": "/a/1", "value": 2}, {"a": [1, 2, 3]}),
        ({"a": [1]}, {"op": "add", "path": "/a/-", "value": 2}, {"a": [1, 2]}),
        ({"a": [1]}, {"op": "add", "path": "/a/1", "value": 2}, {"a": [1, 2]}),
        ({"a": 1}, {"op": "remove", "path": "/a"}, {}),
        ({"a": [1, 2]}, {"op": "remove", "path": "/a/0"}, {"a": [2]}),
        ({"a": 1}, {"op": "replace", "path": "/a", "value": 2}, {"a": 2}),
        ({"a": [1, 2]}, {"op": "replace", "path": "/a/1", "value": 3}, {"a": [1, 3]}),
        ({"a": 1}, {"op": "replace", "path": "", "value": {"b": 1}}, {"b": 1}),
        ({"a": 1}, {"op": "move", "from": "/a", "path": "/b"}, {"b": 1}),
        ({"a": {"x": 1}}, {"op": "copy", "from": "/a", "path": "/b"}, {"a": {"x": 1}, "b": {"x": 1}}),
        ({"a": 1}, {"op": "test", "path": "/a", "value": 1}, {"a": 1}),
        ({"a": 1}, {"op": "test", "path": "/z", "value": None}, {"a": 1}),
        ({"a/b": {"~": 1}}, {"op": "replace", "path": "/a~1b/~0", "value": 2}, {"a/b": {"~": 2}}),
    ],
)
def test_json_patch(doc: Any, op: dict[str, Any], wanted: Any) -> None:
    before = copy.deepcopy(doc)
    assert json_patch(doc, [op]) == wanted
    assert doc == before


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ({"op": "test", "path": "/a", "value": 2}, 422),
        ({"op": "remove", "path": "/z"}, 422),
        ({"op": "replace", "path": "/z", "value": 1}, 422),
        ({"op": "add", "path": "/z/y", "value": 1}, 422),
        ({"op": "add", "path": "/l/5", "value": 1}, 422),
        ({"op": "remove", "path": "/l/-1"}, 422),
        ({"op": "frob", "path": "/a"}, 400),
    ],
)
def test_a_json_patch_that_does_not_fit_is_refused(op: dict[str, Any], code: int) -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({"a": 1, "l": [1]}, [op])
    assert caught.value.code == code


def test_a_json_patch_is_a_list() -> None:
    with pytest.raises(StatusError) as caught:
        json_patch({}, {"op": "add"})
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("doc", "patch", "wanted"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": {"b": "c", "d": 1}}, {"a": {"b": None}}, {"a": {"d": 1}}),
        ({"a": ["b"]}, {"a": ["c"]}, {"a": ["c"]}),
        ({"a": [1]}, {"a": {"b": 1, "c": None}}, {"a": {"b": 1}}),
        ({"a": 1}, "x", "x"),
    ],
)
def test_merge_patch(doc: Any, patch: Any, wanted: Any) -> None:
    assert merge_patch(doc, patch) == wanted


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": list(containers), **spec}}


A, B, C = {"name": "a", "image": "1"}, {"name": "b", "image": "1"}, {"name": "c", "image": "1"}


@pytest.mark.parametrize(
    ("doc", "patch", "wanted"),
    [
        (pod(A, B), pod({"name": "b", "image": "2"}), pod(A, {"name": "b", "image": "2"})),
        (pod(A), pod(B), pod(A, B)),
        (pod(A, B), pod({"name": "a", "$patch": "delete"}), pod(B)),
        (pod(A, B), pod({"$patch": "replace"}, C), pod(C)),
        (pod(A), {"spec": {"$patch": "replace", "nodeName": "n"}}, {"spec": {"nodeName": "n"}}),
        (pod(A, hostname="h"), {"spec": {"hostname": None}}, pod(A)),
        (pod({**A, "args": ["x", "y"]}), pod({"name": "a", "args": ["z"]}), pod({**A, "args": ["z"]})),
        (
            {"metadata": {"labels": {"x": "1", "y": "1"}}},
            {"metadata": {"labels": {"x": "2", "y": None, "z": "3"}}},
            {"metadata": {"labels": {"x": "2", "z": "3"}}},
        ),
        (
            {"metadata": {"finalizers": ["a/x", "b/x"]}},
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"], "finalizers": ["c/x"]}},
            {"metadata": {"finalizers": ["b/x", "c/x"]}},
        ),
        (
            pod({**A, "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]}),
            pod(
                {
                    "name": "a",
                    "$setElementOrder/env": [{"name": "Y"}, {"name": "X"}],
                    "env": [{"name": "X", "value": "2"}],
                }
            ),
            pod({**A, "env": [{"name": "Y", "value": "1"}, {"name": "X", "value": "2"}]}),
        ),
        (
            pod(A, B),
            {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}},
            pod(B, A),
        ),
        (
            pod(A, B, C),
            {"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}], "containers": [C]}},
            pod(A, C, B),
        ),
        (
            pod(volumes=[{"name": "v", "emptyDir": {}}]),
            {
                "spec": {
                    "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]
                }
            },
            pod(volumes=[{"name": "v", "hostPath": {"path": "/"}}]),
        ),
        (
            {"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "r"}]}},
            {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
            {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "r"}]}},
        ),
        ({}, pod({"name": "a", "image": None}), pod({"name": "a"})),
    ],
)
def test_strategic_merge(doc: dict[str, Any], patch: dict[str, Any], wanted: dict[str, Any]) -> None:
    before = copy.deepcopy(doc)
    assert strategic_merge(SCHEMA, POD, doc, patch) == wanted
    assert doc == before


def test_recreate_drops_the_rolling_update_of_a_deployment() -> None:
    doc = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert strategic_merge(SCHEMA, DEPLOYMENT, doc, patch) == {"spec": {"strategy": {"type": "Recreate"}}}


def test_ports_of_a_service_merge_by_port() -> None:
    doc = {"spec": {"ports": [{"port": 80, "nodePort": 30080}, {"port": 81}]}}
    patch = {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}
    assert strategic_merge(SCHEMA, "io.k8s.api.core.v1.Service", doc, patch) == {
        "spec": {"ports": [{"port": 80, "nodePort": 30080, "targetPort": 8080}, {"port": 81}]}
    }


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [
        ({"$patch": "frob"}, "Unknown patch type"),
        (pod({"image": "x"}), "does not contain declared merge key: name"),
        ({"spec": {"containers": [3]}}, "expected a map"),
        ({"spec": {"containers": [{"$patch": "replace"}, "x"]}}, "expected a map"),
        ({"spec": {"$retainKeys": ["a"], "hostname": "h"}}, "retainKeys"),
    ],
)
def test_malformed_strategic_patches_are_refused(patch: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StatusError, match=sentence) as caught:
        strategic_merge(SCHEMA, POD, pod(A), patch)
    assert caught.value.code == 400
