"""Protobuf bodies: built here by hand from field numbers, as client-go would."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.apiserver.protobuf import ProtobufError, _load_numbers, decode
from controlplane.apiserver.resources import RESOURCES
from controlplane.apiserver.schema import Schema, innermost


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def b(field: int, *payload: bytes | str) -> bytes:
    """A length-delimited field: a string, or a message made of parts."""
    data = b"".join(part.encode() if isinstance(part, str) else part for part in payload)
    return varint(field << 3 | 2) + varint(len(data)) + data


def i(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)


def body(api_version: str, kind: str, *raw: bytes) -> bytes:
    return b"k8s\0" + b(1, b(1, api_version), b(2, kind)) + b(2, *raw) + b(3, "") + b(4, "")


NO_TIME = b(8, b"")
META = b(1, b(1, "web"), b(2, ""), b(3, "default"), i(7, 0), NO_TIME, b(11, b(1, "app"), b(2, "web")))


def test_a_deployment_as_kubectl_create_sends_it() -> None:
    port = b(6, b(1, ""), i(2, 0), i(3, 80), b(4, ""), b(5, ""))
    limits = b(8, b(1, b(1, "cpu"), b(2, b(1, "500m"))))
    probe = b(10, b(1, b(2, b(1, "/"), b(2, i(1, 1), i(2, 0), b(3, "http")))), i(2, 5), i(3, 0))
    container = b(
        2, b(1, "nginx"), b(2, "nginx:1"), b(3, "a"), b(3, "b"), b(5, ""), port, limits, probe, i(16, 0)
    )
    volume = b(1, b(1, "v"), b(2, b(19, b(1, b(1, "cm")), i(3, 420))))
    template = b(3, b(1, NO_TIME), b(2, volume, container, b(3, ""), i(4, 0)))
    spec = b(2, i(1, 0), b(2, b(1, b(1, "app"), b(2, "web"))), template, b(4, b(1, "")), i(5, 0), i(7, 0))
    assert decode(body("apps/v1", "Deployment", META, spec, b(3, i(1, 0), i(2, 0)))) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "spec": {
                    "volumes": [{"name": "v", "configMap": {"name": "cm", "defaultMode": 420}}],
                    "containers": [
                        {
                            "name": "nginx",
                            "image": "nginx:1",
                            "command": ["a", "b"],
                            "ports": [{"containerPort": 80}],
                            "resources": {"limits": {"cpu": "500m"}},
                            "livenessProbe": {
                                "httpGet": {"path": "/", "port": "http"},
                                "initialDelaySeconds": 5,
                            },
                        }
                    ],
                    "terminationGracePeriodSeconds": 0,
                }
            },
            "strategy": {},
        },
    }


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (body("v1", "Secret", b(2, b(1, "k"), b(2, b"\0\1"))), {"data": {"k": "AAE="}}),
        (body("v1", "ConfigMap", b(2, b(1, "k"), b(2, ""))), {"data": {"k": ""}}),
        (
            body("v1", "DeleteOptions", i(1, 0), b(4, "Background")),
            {"gracePeriodSeconds": 0, "propagationPolicy": "Background"},
        ),
        (
            body("coordination.k8s.io/v1", "Lease", b(2, b(1, "h"), b(4, i(1, 1700000000), i(2, 123456000)))),
            {"spec": {"holderIdentity": "h", "renewTime": "2023-11-14T22:13:20.123456Z"}},
        ),
        (
            body(
                "v1",
                "Service",
                b(2, b(1, b(1, ""), b(2, "TCP"), i(3, 80), b(4, i(1, 0), i(2, 8080), b(3, "")))),
            ),
            {"spec": {"ports": [{"protocol": "TCP", "port": 80, "targetPort": 8080}]}},
        ),
        (
            body("policy/v1", "Eviction", b(1, b(1, "p"), b(2, ""))),
            {"metadata": {"name": "p"}},
        ),
        (
            body("scheduling.k8s.io/v1", "PriorityClass", i(2, -5)),
            {"value": -5},
        ),
        (
            body("v1", "Pod", b(2, b(14, i(2, 0), i(4, 5), i(4, 6)))),
            {"spec": {"securityContext": {"runAsUser": 0, "supplementalGroups": [5, 6]}}},
        ),
        (
            body(
                "authorization.k8s.io/v1",
                "SubjectAccessReview",
                b(2, b(3, "me"), b(5, b(1, "scopes"), b(2, b(1, "a"), b(1, "b")))),
            ),
            {"spec": {"user": "me", "extra": {"scopes": ["a", "b"]}}},
        ),
    ],
)
def test_special_fields(raw: bytes, wanted: dict[str, Any]) -> None:
    found = decode(raw)
    assert {key: value for key, value in found.items() if key not in ("apiVersion", "kind")} == wanted


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"k8s\0\xff",
        body("v1", "Nonsense"),
        body("v1", "Pod", b"\x0a\x7f"),
        body("v1", "Pod", b"\x0b"),
        body("v1", "Pod", b(1, b(1, b"\xff"))),
    ],
)
def test_broken_bodies_are_value_errors(raw: bytes) -> None:
    with pytest.raises(ProtobufError):
        decode(raw)


def test_fields_of_a_newer_client_are_passed_over() -> None:
    assert decode(body("v1", "ConfigMap", b(1, b(1, "x")), b(999, "?")))["metadata"] == {"name": "x"}


def _lifted(numbers: dict[str, Any], message: str) -> set[str]:
    """JSON names of one message, those of embedded structs included."""
    out: set[str] = set()
    for number in numbers[message].values():
        out |= _lifted(numbers, number.inline) if number.inline else {number.name}
    return out


def test_every_field_that_can_be_reached_has_a_number() -> None:
    numbers: dict[str, Any] = _load_numbers()
    schema = Schema.load()
    for info in RESOURCES:
        assert info.measured or info.definition.removeprefix("io.k8s.") in numbers
    for message in numbers:
        if "io.k8s." + message not in schema:
            continue  # only there to be embedded in others
        definition = schema.definition("io.k8s." + message)
        assert set(definition.fields) - {"apiVersion", "kind"} <= _lifted(numbers, message), message
        for declared in definition.fields.values():
            inner = innermost(declared.type)
            assert inner.kind != "struct" or inner.ref.removeprefix("io.k8s.") in numbers, message
