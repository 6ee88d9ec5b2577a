"""Types at run time: pruning, reporting, merge keys, memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controlplane.apiserver.schema import Schema, SchemaFileError, definitions_file, duplicates

POD = "io.k8s.api.core.v1.Pod"
SCHEMA = Schema.load()


def check(obj: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]], dict[str, Any]]:
    result = SCHEMA.check(POD, obj)
    return result.unknown, [(cause.field, cause.message) for cause in result.causes], result.obj


def container(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "c", **fields}]}}


def test_every_definition_is_found_at_its_offset() -> None:
    whole = json.loads(definitions_file().read_text(encoding="utf-8"))["$defs"]
    assert list(SCHEMA.names()) == list(whole)
    assert all(SCHEMA.raw(name) == whole[name] for name in list(whole)[::7] + list(whole)[-1:])


def test_nothing_is_compiled_before_it_is_used() -> None:
    fresh = Schema.load()
    fresh.check("io.k8s.api.core.v1.ConfigMap", {"data": {"a": "b"}})
    assert set(fresh._compiled) == {"io.k8s.api.core.v1.ConfigMap"}
    fresh.close()


def test_a_missing_package_is_named(tmp_path: Any) -> None:
    with pytest.raises(SchemaFileError, match=r"v0\.0\.1"):
        definitions_file("v0.0.1")
    empty = tmp_path / "definitions.json"
    empty.write_text("{}")
    with pytest.raises(SchemaFileError, match=r"no io\.k8s definitions"):
        Schema.load(empty)


def test_unknown_fields_are_dropped_and_reported_with_their_path() -> None:
    unknown, causes, obj = check({"spce": {}, **container(imagee="x")})
    assert unknown == ["spce", "spec.containers[0].imagee"]
    assert causes == []
    assert obj == {"spec": {"containers": [{"name": "c"}]}}


def test_null_means_unset() -> None:
    assert check({"metadata": {"creationTimestamp": None, "name": "x"}})[2] == {"metadata": {"name": "x"}}


def test_maps_keep_any_key() -> None:
    obj = {"metadata": {"labels": {"any.thing/x": "y"}}}
    assert check(obj) == ([], [], obj)


@pytest.mark.parametrize(
    ("obj", "field", "message"),
    [
        (
            {"spec": {"containers": "x"}},
            "spec.containers",
            "json: cannot unmarshal string into Go struct field "
            "PodSpec.spec.containers of type []v1.Container",
        ),
        (
            {"spec": {"hostNetwork": "yes"}},
            "spec.hostNetwork",
            "json: cannot unmarshal string into Go struct field PodSpec.spec.hostNetwork of type bool",
        ),
        (
            container(env=[{"name": "A", "value": 1}]),
            "spec.containers[0].env[0].value",
            "json: cannot unmarshal number into Go struct field "
            "EnvVar.spec.containers.env.value of type string",
        ),
        (
            {"metadata": {"labels": {"a": True}}},
            "metadata.labels.a",
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            {"spec": {"terminationGracePeriodSeconds": 1.5}},
            "spec.terminationGracePeriodSeconds",
            "json: cannot unmarshal number 1.5 into Go struct field "
            "PodSpec.spec.terminationGracePeriodSeconds of type int64",
        ),
        (
            container(ports=[{"containerPort": 2**31}]),
            "spec.containers[0].ports[0].containerPort",
            "json: cannot unmarshal number 2147483648 into Go struct field "
            "ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            container(resources={"limits": {"cpu": "1x"}}),
            "spec.containers[0].resources.limits.cpu",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            container(resources={"limits": {"cpu": "1Kk"}}),
            "spec.containers[0].resources.limits.cpu",
            "unable to parse quantity's suffix",
        ),
    ],
)
def test_wrong_types_read_as_in_go(obj: dict[str, Any], field: str, message: str) -> None:
    assert check(obj)[1] == [(field, message)]


def test_secret_bytes_must_be_base64() -> None:
    result = SCHEMA.check("io.k8s.api.core.v1.Secret", {"data": {"a": "!!"}})
    assert [cause.message for cause in result.causes] == ["illegal base64 data at input byte 0"]


def test_quantities_come_back_in_canonical_form() -> None:
    obj = check(container(resources={"limits": {"cpu": 0.5, "memory": "1024Mi"}}))[2]
    assert obj["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}


FITTING = container(
    resources={"limits": {"cpu": "500m"}},
    livenessProbe={"httpGet": {"port": "web"}, "periodSeconds": 1},
    env=[{"name": "A"}],
    tty=False,
) | {"metadata": {"labels": {"a": "b"}, "creationTimestamp": "2026-11-27T00:00:00Z"}}


def test_a_body_that_fits_is_not_copied() -> None:
    assert check(FITTING) == ([], [], FITTING)
    assert check(FITTING)[2]["spec"] is FITTING["spec"]


@pytest.mark.parametrize(
    "path, value",
    [
        (("spec", "containers", 0, "tty"), None),
        (("spec", "containers", 0, "tty"), "false"),
        (("spec", "containers", 0, "name"), True),
        (("spec", "containers", 0, "colour"), "red"),
        (("spec", "containers", 0, "env", 0, "name"), 1),
        (("spec", "containers", 0, "env"), None),
        (("spec", "containers", 0, "env"), [None]),
        (("spec", "containers", 0, "resources", "limits", "cpu"), "0.5"),
        (("spec", "containers", 0, "livenessProbe", "periodSeconds"), True),
        (("spec", "containers", 0, "livenessProbe", "periodSeconds"), 2**31),
        (("spec", "containers", 0, "livenessProbe", "periodSeconds"), 1.5),
        (("spec", "containers", 0, "livenessProbe", "httpGet", "port"), False),
        (("metadata", "labels", "a"), None),
        (("metadata", "labels"), []),
        (("metadata", "creationTimestamp"), None),
        (("metadata", "creationTimestamp"), "yesterday"),
        (("spec",), "none"),
    ],
)
def test_one_value_that_does_not_fit_is_never_let_through(path: tuple[Any, ...], value: Any) -> None:
    body: Any = json.loads(json.dumps(FITTING))
    inner = body
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    unknown, causes, obj = check(body)
    assert unknown or causes or obj != body


@pytest.mark.parametrize("value", ["25%", 3])
def test_int_or_string_takes_both(value: Any) -> None:
    obj = {"spec": {"strategy": {"rollingUpdate": {"maxSurge": value}}}}
    assert SCHEMA.check("io.k8s.api.apps.v1.Deployment", obj).obj == obj


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("spec", "containers"), "name"),
        (("spec", "containers", "ports"), "containerPort"),
        (("spec", "containers", "env"), "name"),
        (("spec", "containers", "volumeMounts"), "mountPath"),
        (("spec", "volumes"), "name"),
        (("spec", "containers", "args"), None),
        (("spec", "nothing"), None),
    ],
)
def test_merge_keys(path: tuple[str, ...], key: str | None) -> None:
    assert SCHEMA.merge_key(POD, path) == key


def test_duplicate_keys_are_found_with_their_paths() -> None:
    body = (
        b'{"spec":{"replicas":1,"replicas":2,"template":{"c":[{"name":"a","name":"b"}]}},"kind":1,"kind":2}'
    )
    assert duplicates(body) == ["kind", "spec.replicas", "spec.template.c[0].name"]
    assert duplicates(b'{"a":{"x":1},"b":{"x":1}}') == []
    assert duplicates(b"{") == []
