"""Volumes made of files: which keys, under which names and modes, and what is missing in upstream's words."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kubelet_py.errors import VolumeError
from kubelet_py.volumes import config_map, downward_api, projected, secret
from kubelet_py.volumes.atomic_writer import File
from kubelet_py.volumes.plugin import Context

Object = dict[str, Any]
OBJECTS: dict[tuple[str, str], Object] = {
    ("configmap", "m"): {
        "data": {"a": "1", "b": "2"},
        "binaryData": {"raw": base64.b64encode(b"\xff").decode()},
    },
    ("secret", "s"): {"data": {"a": "hidden"}},
}
POD: Object = {
    "metadata": {
        "name": "p", "namespace": "ns", "uid": "u", "labels": {"a": 'x"y'},
        "annotations": {"b": "1\r\n\t\x01\u2028é\\", "a": "\U000e0001\x7f"},
    },
    "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
}


def context(**security: Any) -> Context:
    body = POD | {"spec": POD["spec"] | {"securityContext": security}}
    return Context(
        body,
        lambda kind, name: OBJECTS.get((kind, name)),
        lambda pod, audience, seconds: f"token for {audience or 'the API'}",
        allocatable={"cpu": "4", "memory": "8Gi"},
    )


@pytest.mark.parametrize(
    ("maker", "source", "wanted"),
    [
        (config_map, {"name": "m"}, {"a": File(b"1"), "b": File(b"2"), "raw": File(b"\xff")}),
        (config_map, {"name": "m", "defaultMode": 0o400, "items": [{"key": "a", "path": "x/y"}]},
         {"x/y": File(b"1", 0o400)}),
        (config_map, {"name": "m", "items": [{"key": "a", "path": "x", "mode": 0}]}, {"x": File(b"1", 0)}),
        (config_map, {"name": "no", "optional": True}, {}),
        (config_map, {"name": "m", "optional": True, "items": [{"key": "no", "path": "x"}]}, {}),
        (secret, {"secretName": "s"}, {"a": File(b"hidden")}),
        (secret, {"name": "s", "optional": True, "items": [{"key": "no", "path": "x"}]}, {}),
        (downward_api, {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels"}}]},
         {"l": File(b'a="x\\"y"')}),
        (downward_api, {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.annotations"}}]},
         {"l": File('a="\\U000e0001\\x7f"\nb="1\\r\\n\\t\\x01\\u2028é\\\\"'.encode())}),
        (downward_api, {"items": [{"path": "r", "resourceFieldRef":
                                   {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]},
         {"r": File(b"1500")}),
        (downward_api, {"items": [{"path": "r", "resourceFieldRef":
                                   {"containerName": "c", "resource": "limits.memory", "divisor": "1Gi"}}]},
         {"r": File(b"8")}),
        (projected, {"sources": [{"configMap": {"name": "m", "items": [{"key": "a", "path": "one"}]}},
                                 {"secret": {"name": "s", "items": [{"key": "a", "path": "two"}]}}],
                     "defaultMode": 0o440}, {"one": File(b"1", 0o440), "two": File(b"hidden", 0o440)}),
        (projected, {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]},
         {"t": File(b"token for vault", 0o644)}),
        (projected, {"sources": [{"secret": {"name": "s"}},
                                 {"configMap": {"name": "m", "items": [{"key": "b", "path": "a"}]}}]},
         {"a": File(b"2")}),
    ],
)  # fmt: skip
def test_the_files_of_a_volume(maker: Any, source: Object, wanted: dict[str, File]) -> None:
    assert maker.payload(context(), source) == wanted


@pytest.mark.parametrize(
    ("maker", "source", "text"),
    [
        (config_map, {"name": "no"}, 'configmap "no" not found'),
        (config_map, {"name": "m", "items": [{"key": "no", "path": "x"}]},
         "configmap references non-existent config key: no"),
        (secret, {"secretName": "no"}, 'secret "no" not found'),
        (secret, {"secretName": "s", "items": [{"key": "no", "path": "x"}]},
         "references non-existent secret key: no"),
        (projected, {"sources": [{"clusterTrustBundle": {"path": "x", "name": "b"}}]},
         "projected volumes of clusterTrustBundle are not supported by this node"),
        (projected, {"sources": [{"configMap": {"name": "no"}}, {"secret": {"name": "s"}},
                                 {"secret": {"name": "no"}}]},
         '[configmap "no" not found, secret "no" not found]'),
    ],
)  # fmt: skip
def test_what_is_missing(maker: Any, source: Object, text: str) -> None:
    with pytest.raises(VolumeError) as raised:
        maker.payload(context(), source)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("security", "mode", "owner"),
    [({}, 0o644, None), ({"runAsUser": 1000}, 0o600, 1000), ({"runAsUser": 7, "fsGroup": 8}, 0o640, 7)],
)
def test_who_may_read_a_token(security: Object, mode: int, owner: int | None) -> None:
    source = {"sources": [{"serviceAccountToken": {"path": "t"}}]}
    assert projected.payload(context(**security), source) == {"t": File(b"token for the API", mode, owner)}
