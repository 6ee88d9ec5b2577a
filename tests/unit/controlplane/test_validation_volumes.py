"""Refusals of volumes, of paths in them, and of what a pod may be told of itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.controlplane.test_validation import container, create, pod

Object = dict[str, Any]
V = "spec.volumes[0]"
MODE = "must be a number between 0 and 0777 (octal), both inclusive"
BYTES = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"
ENV = "spec.containers[0].env[0].valueFrom"


def volume(**source: Any) -> Object:
    return pod(volumes=[{"name": "v", **source}])


def projected(**source: Any) -> Object:
    return volume(projected={"sources": [source]})


def mounted(**mount: Any) -> Object:
    found = container(volumeMounts=[{"name": "v", "mountPath": "/v", **mount}])
    found["spec"]["volumes"] = [{"name": "v", "emptyDir": {}}]
    return found


def told(**source: Any) -> Object:
    return container(env=[{"name": "A", "valueFrom": source}])


def resource(name: str, divisor: str = "0") -> Object:
    return told(resourceFieldRef={"resource": name, "divisor": divisor})


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (volume(configMap={"name": "m", "items": [{"key": "k", "path": "p", "mode": 0o4755}]}),
         f"{V}.configMap.items[0].mode: Invalid value: 2541: {MODE}"),
        (projected(downwardAPI={"items": [{"path": "p", "mode": -1,
                                           "fieldRef": {"fieldPath": "metadata.name"}}]}),
         f"{V}.projected.sources[0].downwardAPI.items[0].mode: Invalid value: -1: {MODE}"),
        (volume(configMap={"name": "m", "items": [{"key": "k", "path": "..k"}]}),
         f"{V}.configMap.items[0].path: Invalid value: \"..k\": must not start with '..'"),
        (volume(nfs={"server": "s", "path": "relative"}),
         f'{V}.nfs.path: Invalid value: "relative": must be an absolute path'),
        (volume(image={"reference": "i", "pullPolicy": "Sometimes"}),
         f'{V}.image.pullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", '
         '"Never"'),
        (projected(serviceAccountToken={"path": "../t"}),
         f"{V}.projected.sources[0].serviceAccountToken.path: Invalid value: \"../t\": "
         "must not contain '..'"),
        (projected(serviceAccountToken={"path": "t", "expirationSeconds": 1 << 33}),
         f"{V}.projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 8589934592: "
         "may not specify a duration larger than 2^32 seconds"),
        (mounted(subPath="..data"), ""),
        (mounted(subPath="a/../b"),
         "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"a/../b\": must not contain '..'"),
        (mounted(subPathExpr="/$(A)"),
         'spec.containers[0].volumeMounts[0].subPathExpr: Invalid value: "/$(A)": must be a relative path'),
        (volume(downwardAPI={"items": [{"path": "p", "resourceFieldRef": {"resource": "limits.cpu"}}]}),
         f"{V}.downwardAPI.items[0].resourceFieldRef.containerName: Required value"),
        (resource("limits.gpu"),
         f'{ENV}.resourceFieldRef.resource: Unsupported value: "limits.gpu": supported values: "limits.cpu", '
         '"limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", '
         '"requests.memory"'),
        (resource("limits.cpu", "7"),
         f'{ENV}.resourceFieldRef.divisor: Invalid value: "limits.cpu": '
         "only divisor's values 1m and 1 are supported with the cpu resource"),
        (resource("limits.cpu", "1000m"), ""),
        (resource("requests.memory", "1Mi"), ""),
        (resource("requests.memory", "1m"),
         f'{ENV}.resourceFieldRef.divisor: Invalid value: "requests.memory": '
         f"only divisor's values {BYTES} are supported with the memory resource"),
        (resource("limits.ephemeral-storage", "3"),
         f'{ENV}.resourceFieldRef.divisor: Invalid value: "limits.ephemeral-storage": '
         f"only divisor's values {BYTES} are supported with the local ephemeral storage resource"),
        (resource("limits.hugepages-2Mi", "1Mi"), ""),
        (told(fieldRef={"fieldPath": "metadata.labels['a/b']"}), ""),
        (told(fieldRef={"fieldPath": "metadata.annotations['Upper']"}), ""),
        (told(fieldRef={"fieldPath": "metadata.name['a']"}),
         f'{ENV}.fieldRef.fieldPath: Invalid value: "metadata.name[\'a\']": '
         "error converting fieldPath: does not support subscript"),
        (container(envFrom=[{"prefix": "a=", "configMapRef": {"name": "m"}}]),
         'spec.containers[0].envFrom[0].prefix: Invalid value: "a=": a valid environment variable name must '
         "consist only of printable ASCII characters other than '='"),
    ],
)  # fmt: skip
def test_volumes_and_references(obj: Object, wanted: str) -> None:
    assert create(obj) == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"configMapKeyRef": {"name": "m", "key": "a b"}}, "configMapKeyRef.key"),
        ({"secretKeyRef": {"name": "m", "key": "a/b"}}, "secretKeyRef.key"),
        ({"fieldRef": {"fieldPath": "metadata.labels['a b']"}}, "fieldRef"),
        ({"fieldRef": {"fieldPath": "metadata.annotations['']"}}, "fieldRef"),
    ],
)
def test_keys_that_no_object_can_have(source: Object, path: str) -> None:
    found = create(told(**source))
    assert found and all(text.startswith(f"{ENV}.{path}: Invalid value: ") for text in found)
