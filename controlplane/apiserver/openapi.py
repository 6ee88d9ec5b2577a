"""OpenAPI documents: what kubectl asks before create, apply, edit and explain.

kubectl validates nothing itself any more, but it will not send anything before it has seen that the server's
`patch` operation takes `fieldValidation` (v3, 1.27 and newer), or before it has the type of each field (v2 in
protobuf form, 1.20). All documents are built from the definitions file and the table of kinds when they are
first asked for, and kept compressed: together they would be several megabytes that are read once per client.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import orjson

from controlplane.apiserver.openapi_protobuf import encode_document
from controlplane.apiserver.resources import (
    RESOURCES,
    ResourceInfo,
    definition_name,
    group_versions,
    in_group,
)
from controlplane.apiserver.schema import META, MINOR, Schema, installed

Object = dict[str, Any]

PATCH_TYPES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_MEDIA = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")
_INFO = {"title": "Kubernetes", "version": MINOR}
_PREFIX = "#/$defs/"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
_ALWAYS = (META + "Status", META + "DeleteOptions", META + "Patch")
_WRITE = ("dryRun", "fieldManager", "fieldValidation")
_LIST = ("labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "timeoutSeconds", "watch")
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "list": _LIST,
    "get": ("pretty",),
    "create": _WRITE,
    "update": _WRITE,
    "patch": (*_WRITE, "force"),
    "delete": ("dryRun", "gracePeriodSeconds", "propagationPolicy"),
    "deletecollection": (*_LIST, "dryRun"),
}
_METHODS = {
    "list": "get",
    "get": "get",
    "create": "post",
    "update": "put",
    "patch": "patch",
    "delete": "delete",
    "deletecollection": "delete",
}
_ACTIONS = {"create": "post", "update": "put"}
_INTEGERS = ("limit", "timeoutSeconds", "gracePeriodSeconds")
_BOOLEANS = ("watch", "force")
_COLLECTION_VERBS = ("list", "create", "deletecollection")
_ITEM_VERBS = ("get", "update", "patch", "delete")


V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_V2_PROTOBUF_ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"


@lru_cache(maxsize=1)
def _installed() -> OpenAPI:
    return OpenAPI(installed())


def document(path: str, accept: str) -> tuple[bytes, str] | None:
    """Body and Content-Type for a path below /openapi, from the installed definitions; None for an unknown
    path.

    A client asks for the v2 protobuf with an `@` in the media type, which Go's own parser of answers refuses;
    the answer therefore names it with a dot, as upstream does.
    """
    documents = _installed()
    if path == "/swagger-2.0.0.pb-v1":
        return documents.v2_protobuf(), V2_PROTOBUF
    if path == "/openapi/v2":
        if _V2_PROTOBUF_ASKED in accept or V2_PROTOBUF in accept:
            return documents.v2_protobuf(), V2_PROTOBUF
        return documents.v2_json(), "application/json"
    if path == "/openapi/v3":
        return documents.v3_index(), "application/json"
    body = documents.v3(path.removeprefix("/openapi/v3/")) if path.startswith("/openapi/v3/") else None
    return None if body is None else (body, "application/json")


class OpenAPI:
    """The documents of one schema, as bytes. Thread-safe; each is built once."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._lock = threading.Lock()
        self._documents: dict[str, bytes] = {}

    def v2_json(self) -> bytes:
        """GET /openapi/v2 for clients that take JSON."""
        return self._kept("v2.json", lambda: orjson.dumps(_v2_document(self._schema)))

    def v2_protobuf(self) -> bytes:
        """GET /openapi/v2 as gnostic's openapi.v2 Document: the only form that kubectl reads."""
        return self._kept("v2.pb", lambda: encode_document(_v2_document(self._schema)))

    def v3_index(self) -> bytes:
        """GET /openapi/v3: one relative URL per group and version, with a hash for caches."""
        digest = self._kept("hash", lambda: _fingerprint(self._schema)).decode()
        paths = {key: {"serverRelativeURL": f"/openapi/v3/{key}?hash={digest}"} for key in map(_key, _all())}
        return orjson.dumps({"paths": paths})

    def v3(self, group_version: str) -> bytes | None:
        """GET /openapi/v3/{group_version}, e.g. "api/v1" or "apis/apps/v1"; None when that is not served."""
        found = next((pair for pair in _all() if _key(pair) == group_version.strip("/")), None)
        if found is None:
            return None
        return self._kept(group_version, lambda: orjson.dumps(_v3_document(self._schema, *found)))

    def _kept(self, name: str, build: Callable[[], bytes]) -> bytes:
        with self._lock:
            packed = self._documents.get(name)
            if packed is None:
                packed = zlib.compress(build(), 6)
                self._documents[name] = packed
        return zlib.decompress(packed)


def _all() -> list[tuple[str, str]]:
    return [pair for pair in group_versions() if not all(info.measured for info in in_group(*pair))]


def _described() -> list[ResourceInfo]:
    """The rows that the definitions file knows: what is only measured is an extension's, upstream too."""
    return [info for info in RESOURCES if not info.measured]


def _key(pair: tuple[str, str]) -> str:
    group, version = pair
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _fingerprint(schema: Schema) -> bytes:
    digest = hashlib.sha256(MINOR.encode())
    for info in _described():
        digest.update(f"{info.definition} {info.verbs} {sorted(info.subresources)}".encode())
    for name in schema.names():
        digest.update(name.encode())
    return digest.hexdigest()[:32].upper().encode()


# ---- documents


def _v2_document(schema: Schema) -> Object:
    paths: Object = {}
    for info in _described():
        paths.update(_paths(info, _operation_v2))
    names = _closure(schema, (name for info in _described() for name in _roots(info)))
    definitions = {
        name: _definition(name, schema.raw(name), "#/definitions/", v3=False) for name in sorted(names)
    }
    return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": definitions}


def _v3_document(schema: Schema, group: str, version: str) -> Object:
    paths: Object = {}
    rows = in_group(group, version)
    for info in rows:
        paths.update(_paths(info, _operation_v3))
    names = _closure(schema, (name for info in rows for name in _roots(info)))
    schemas = {
        name: _definition(name, schema.raw(name), "#/components/schemas/", v3=True) for name in sorted(names)
    }
    return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}


def _roots(info: ResourceInfo) -> Iterator[str]:
    yield from _ALWAYS
    yield info.definition
    if info.stored:
        yield info.definition + "List"
    for sub in info.subresources.values():
        if not sub.kind.endswith("Options"):
            yield definition_name(sub.group, sub.version, sub.kind)


def _closure(schema: Schema, roots: Iterable[str]) -> set[str]:
    """All definitions that the roots mention, directly or not."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(_references(schema.raw(name)))
    return seen


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        ref = node.get("$ref")
        if isinstance(ref, str):
            yield ref.rsplit("/", 1)[-1]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


# ---- definitions


def _definition(name: str, raw: Object, prefix: str, *, v3: bool) -> Object:
    """One definition, as upstream publishes it: the file's JSON Schema changes undone."""
    if name == _QUANTITY:
        shape: Object = {"oneOf": [{"type": "string"}, {"type": "number"}]} if v3 else {"type": "string"}
        return {"description": raw.get("description") or _QUANTITY_TEXT, **shape}
    if name == _INT_OR_STRING:
        alternatives: Object = (
            {"oneOf": [{"type": "integer"}, {"type": "string"}]} if v3 else {"type": "string"}
        )
        return {"description": _INT_OR_STRING_TEXT, "format": "int-or-string", **alternatives}
    out = _node(raw, prefix, v3=v3)
    for field in ("apiVersion", "kind"):
        (out.get("properties") or {}).get(field, {}).pop("enum", None)
    return out


_QUANTITY_TEXT = "A fixed-point number with a suffix, such as 500m or 1Gi."
_INT_OR_STRING_TEXT = "A number, or a string such as a percentage or the name of a port."


def _node(raw: Object, prefix: str, *, v3: bool) -> Object:
    out: Object = {}
    for key, value in raw.items():
        if key == "$ref":
            out[key] = prefix + value.removeprefix(_PREFIX).rsplit("/", 1)[-1]
        elif key == "type" and isinstance(value, list):
            out[key] = value[0]
        elif key == "properties":
            out[key] = {name: _node(item, prefix, v3=v3) for name, item in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            out[key] = _node(value, prefix, v3=v3)
        else:
            out[key] = value
    if v3 and "$ref" in out and len(out) > 1:
        return {
            **{key: value for key, value in out.items() if key != "$ref"},
            "allOf": [{"$ref": out["$ref"]}],
        }
    return out


# ---- paths


Operation = Callable[[ResourceInfo, str, str, Object, str], Object]


def _paths(info: ResourceInfo, operation: Operation) -> Object:
    """The paths of one kind: collection, item, subresources; and the collection over all namespaces."""
    base = info.path_prefix
    collection = (
        f"{base}/namespaces/{{namespace}}/{info.plural}" if info.namespaced else f"{base}/{info.plural}"
    )
    own = {"group": info.group, "version": info.version, "kind": info.kind}
    out: Object = {}
    _add(out, collection, info, _COLLECTION_VERBS, own, info.definition, operation)
    if info.stored:
        _add(out, f"{collection}/{{name}}", info, _ITEM_VERBS, own, info.definition, operation)
    if info.namespaced and info.stored:
        _add(out, f"{base}/{info.plural}", info, ("list",), own, info.definition, operation)
    for name, sub in info.subresources.items():
        if sub.kind.endswith("Options") or name == "log":
            continue
        kind = {"group": sub.group, "version": sub.version, "kind": sub.kind}
        path = f"{collection}/{{name}}/{name}"
        out[path] = {
            _METHODS[verb]: operation(
                info, verb, path, kind, definition_name(sub.group, sub.version, sub.kind)
            )
            for verb in ("get", "create", "update", "patch")
            if verb in sub.verbs
        }
    return out


def _add(
    out: Object,
    path: str,
    info: ResourceInfo,
    verbs: Iterable[str],
    kind: Object,
    definition: str,
    operation: Operation,
) -> None:
    item = {
        _METHODS[verb]: operation(info, verb, path, kind, definition) for verb in verbs if verb in info.verbs
    }
    if item:
        out[path] = item


def _common(info: ResourceInfo, verb: str, path: str, kind: Object) -> Object:
    words = "".join(part.strip("{}").capitalize() for part in path.split("/") if part)
    return {
        "operationId": f"{verb}{words}",
        "tags": [f"{info.group.split('.')[0] or 'core'}_{info.version}"],
        "x-kubernetes-action": _ACTIONS.get(verb, verb),
        "x-kubernetes-group-version-kind": kind,
    }


def _parameter_names(path: str) -> list[str]:
    return [part.strip("{}") for part in path.split("/") if part.startswith("{")]


def _type(parameter: str) -> str:
    return "integer" if parameter in _INTEGERS else "boolean" if parameter in _BOOLEANS else "string"


def _answer(verb: str, definition: str) -> str:
    if verb == "list":
        return definition + "List"
    return META + "Status" if verb in ("delete", "deletecollection") else definition


def _operation_v3(info: ResourceInfo, verb: str, path: str, kind: Object, definition: str) -> Object:
    def reference(name: str) -> Object:
        return {"schema": {"$ref": f"#/components/schemas/{name}"}}

    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}
        for name in _parameter_names(path)
    ]
    parameters += [
        {"name": name, "in": "query", "schema": {"type": _type(name), "uniqueItems": True}}
        for name in _PARAMETERS[verb]
    ]
    out = {**_common(info, verb, path, kind), "parameters": parameters}
    if verb in ("create", "update"):
        out["requestBody"] = {"content": {"*/*": reference(definition)}, "required": True}
    elif verb == "patch":
        body = reference(META + "Patch")
        out["requestBody"] = {"content": dict.fromkeys(PATCH_TYPES, body), "required": True}
    elif verb == "delete":
        out["requestBody"] = {"content": {"*/*": reference(META + "DeleteOptions")}}
    content = {media: reference(_answer(verb, definition)) for media in _MEDIA}
    out["responses"] = {"200": {"description": "OK", "content": content}}
    return out


def _operation_v2(info: ResourceInfo, verb: str, path: str, kind: Object, definition: str) -> Object:
    return {
        **_common(info, verb, path, kind),
        "consumes": list(PATCH_TYPES) if verb == "patch" else ["*/*"],
        "produces": list(_MEDIA),
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "type": "string", "uniqueItems": True}
                for name in _parameter_names(path)
            ),
            *({"name": name, "in": "query", "type": _type(name)} for name in _PARAMETERS[verb]),
        ],
        "responses": {
            "200": {"description": "OK", "schema": {"$ref": f"#/definitions/{_answer(verb, definition)}"}}
        },
    }
