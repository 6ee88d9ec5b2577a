"""What kubectl looks for in the OpenAPI documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane.apiserver import openapi
from controlplane.apiserver.openapi import OpenAPI
from controlplane.apiserver.protobuf import _fields
from controlplane.apiserver.resources import group_versions
from controlplane.apiserver.schema import Schema

DOCUMENTS = OpenAPI(Schema.load())


def v3(group_version: str) -> dict[str, Any]:
    found = DOCUMENTS.v3(group_version)
    assert found is not None
    document: dict[str, Any] = json.loads(found)
    return document


def test_the_index_names_every_group_version() -> None:
    paths = json.loads(DOCUMENTS.v3_index())["paths"]
    described = [pair for pair in group_versions() if pair[0] != "metrics.k8s.io"]
    assert set(paths) == {f"apis/{g}/{v}" if g else f"api/{v}" for g, v in described}
    assert paths["api/v1"]["serverRelativeURL"].startswith("/openapi/v3/api/v1?hash=")
    assert DOCUMENTS.v3("apis/apps/v9") is None


def test_patch_tells_kubectl_that_field_validation_is_here() -> None:
    patch = v3("api/v1")["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "", "version": "v1", "kind": "Pod"}
    assert {"fieldValidation", "dryRun", "fieldManager", "force"} <= {p["name"] for p in patch["parameters"]}
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


@pytest.mark.parametrize("group_version", ["api/v1", "apis/apps/v1", "apis/batch/v1", "apis/policy/v1"])
def test_v3_references_lead_somewhere(group_version: str) -> None:
    document = v3(group_version)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def test_v3_schemas_are_upstreams_not_the_packages() -> None:
    schemas = v3("apis/apps/v1")["components"]["schemas"]
    assert schemas["io.k8s.api.apps.v1.Deployment"]["type"] == "object"
    assert "enum" not in schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["kind"]
    int_or_string = schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]
    assert int_or_string["format"] == "int-or-string"
    spec = schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"]
    assert spec["allOf"] == [{"$ref": "#/components/schemas/io.k8s.api.apps.v1.DeploymentSpec"}]
    assert schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"] == [
        {"group": "apps", "kind": "Deployment", "version": "v1"}
    ]


def test_v2_references_lead_somewhere() -> None:
    document = json.loads(DOCUMENTS.v2_json())
    assert set(references(document)) <= {f"#/definitions/{name}" for name in document["definitions"]}


def parts(data: bytes | memoryview, *path: int) -> list[bytes]:
    """The payloads at a path of field numbers."""
    found: list[Any] = [memoryview(data)]
    for wanted in path:
        found = [value for item in found for number, _, value in _fields(item) if number == wanted]
    return [bytes(item) for item in found]


def test_v2_protobuf_has_every_path_and_definition() -> None:
    document = json.loads(DOCUMENTS.v2_json())
    raw = DOCUMENTS.v2_protobuf()
    assert parts(raw, 1) == [b"2.0"]
    assert [name.decode() for name in parts(raw, 8, 2, 1)] == list(document["paths"])
    assert [name.decode() for name in parts(raw, 9, 1, 1)] == list(document["definitions"])


def test_v2_protobuf_puts_patch_parameters_where_kubectl_looks() -> None:
    for path in parts(DOCUMENTS.v2_protobuf(), 8, 2):
        if parts(path, 1) == [b"/api/v1/namespaces/{namespace}/pods/{name}"]:
            assert b"dryRun" in parts(path, 2, 8, 8, 1, 2, 3, 4)
            assert b'{"group":"","version":"v1","kind":"Pod"}' in parts(path, 2, 8, 13, 2, 2)
            return
    pytest.fail("no path of pods")


def test_documents_are_kept_compressed_and_stay_equal() -> None:
    first = DOCUMENTS.v3("api/v1")
    assert first == DOCUMENTS.v3("api/v1")
    assert first is not None
    assert len(DOCUMENTS._documents["api/v1"]) < len(first) / 4


@pytest.mark.parametrize(
    ("path", "accept", "content_type"),
    [
        ("/openapi/v2", "application/json", "application/json"),
        (
            "/openapi/v2",
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        ),
        ("/openapi/v3", "*/*", "application/json"),
        ("/openapi/v3/apis/apps/v1", "application/json", "application/json"),
    ],
)
def test_the_form_follows_accept(path: str, accept: str, content_type: str) -> None:
    found = openapi.document(path, accept)
    assert found is not None
    assert found[1] == content_type


def test_unknown_documents_do_not_exist() -> None:
    assert openapi.document("/openapi/v4", "") is None
    assert openapi.document("/openapi/v3/apis/none/v1", "") is None
