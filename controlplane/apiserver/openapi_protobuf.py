"""The protobuf form of a Swagger 2.0 document, which is all that kubectl 1.20 reads from /openapi/v2.

The message types are gnostic's openapi.v2 (github.com/google/gnostic, openapiv2/OpenAPIv2.proto). Only the
fields that a document of ours has are written. Extensions travel as YAML text; JSON is YAML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

Object = dict[str, Any]

_METHODS = {"get": 2, "put": 3, "post": 4, "delete": 5, "patch": 8}


def encode_document(document: Object) -> bytes:
    """The bytes of a gnostic Document for a Swagger document as openapi.py builds it."""
    info = _text(1, document["info"]["title"]) + _text(2, document["info"]["version"])
    paths = b"".join(_bytes(2, _path(name, item)) for name, item in document["paths"].items())
    definitions = b"".join(
        _bytes(1, _named_schema(name, item)) for name, item in document["definitions"].items()
    )
    return _text(1, document["swagger"]) + _bytes(2, info) + _bytes(8, paths) + _bytes(9, definitions)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _bytes(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _bytes(field, text.encode()) if text else b""


def _flag(field: int, value: bool) -> bytes:
    return _varint(field << 3) + b"\x01" if value else b""


def _texts(field: int, items: Iterable[str]) -> bytes:
    return b"".join(_text(field, item) for item in items)


def _any(value: Any) -> bytes:
    """An Any that holds YAML text."""
    return _bytes(2, orjson.dumps(value))


def _extensions(field: int, node: Mapping[str, Any]) -> bytes:
    return b"".join(
        _bytes(field, _text(1, key) + _bytes(2, _any(value)))
        for key, value in node.items()
        if key.startswith("x-")
    )


def _path(name: str, item: Object) -> bytes:
    body = b"".join(_bytes(_METHODS[method], _operation(found)) for method, found in item.items())
    return _text(1, name) + _bytes(2, body)


def _operation(node: Object) -> bytes:
    out = _texts(1, node["tags"]) + _text(5, node["operationId"])
    out += _texts(6, node["produces"]) + _texts(7, node["consumes"])
    out += b"".join(_bytes(8, _parameter(parameter)) for parameter in node["parameters"])
    return out + _bytes(9, _responses(node["responses"])) + _extensions(13, node)


def _parameter(node: Object) -> bytes:
    """ParametersItem → Parameter → NonBodyParameter → query (2) or path (4) parameter."""
    if node["in"] == "path":
        # PathParameterSubSchema: required 1, in 2, name 4, type 5.
        inner = _flag(1, True) + _text(2, "path") + _text(4, node["name"]) + _text(5, node["type"])
        return _bytes(1, _bytes(2, _bytes(4, inner)))
    # QueryParameterSubSchema: in 2, name 4, type 6.
    inner = _text(2, "query") + _text(4, node["name"]) + _text(6, node["type"])
    return _bytes(1, _bytes(2, _bytes(3, inner)))


def _responses(node: Object) -> bytes:
    out = b""
    for code, response in node.items():
        body = _text(1, response["description"]) + _bytes(2, _bytes(1, _schema(response["schema"])))
        out += _bytes(1, _text(1, code) + _bytes(2, _bytes(1, body)))
    return out


def _named_schema(name: str, node: Object) -> bytes:
    return _text(1, name) + _bytes(2, _schema(node))


def _schema(node: Object) -> bytes:
    out = _text(1, node.get("$ref") or "") + _text(2, node.get("format") or "")
    out += _text(4, node.get("description") or "")
    out += _texts(19, node.get("required") or ())
    out += b"".join(_bytes(20, _any(value)) for value in node.get("enum") or ())
    if isinstance(node.get("additionalProperties"), dict):
        out += _bytes(21, _bytes(1, _schema(node["additionalProperties"])))
    if node.get("type"):
        out += _bytes(22, _text(1, node["type"]))
    if isinstance(node.get("items"), dict):
        out += _bytes(23, _bytes(1, _schema(node["items"])))
    if node.get("properties"):
        named = b"".join(_bytes(1, _named_schema(name, item)) for name, item in node["properties"].items())
        out += _bytes(25, named)
    return out + _extensions(31, node)
