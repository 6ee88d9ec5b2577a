"""The three kinds of patch that kubectl sends: JSON Patch, merge patch, strategic merge patch.

All are pure: the document goes in, a new one comes out, nothing given is changed. JSON Patch is RFC 6902,
merge patch RFC 7386. Strategic merge is Kubernetes' own: lists with a merge key are joined by that key, and
directives inside the patch say what cannot be said by values:

    $patch: replace | merge | delete        for a map, or for an item of a list
    $retainKeys: [..]                       drop all other keys of this map (unions such as volumes)
    $deleteFromPrimitiveList/<field>: [..]  take values out of a list of scalars
    $setElementOrder/<field>: [..]          the order of the merged list

The schema says which lists merge and by which key (apimachinery pkg/util/strategicpatch).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from controlplane.apiserver.errors import StatusError, bad_request, unprocessable_patch
from controlplane.apiserver.schema import Definition, Field, Schema, Type

Object = dict[str, Any]

_GONE = object()
_DIRECTIVE = "$patch"
_RETAIN = "$retainKeys"
_DELETE_PRIMITIVES = "$deleteFromPrimitiveList/"
_ORDER = "$setElementOrder/"
_MAX_OPERATIONS = 10000
_MAX_DIGITS = 20  # of an index; Python refuses to read numbers of thousands
# Some dozen copies of a thing into itself would be more than any memory holds.
_MAX_COPIED = 3 * 1024 * 1024
_TOO_MUCH = (
    "Request entity too large: Unable to complete the copy, the accumulated size increase of copy is {},"
    f" exceeding the limit {_MAX_COPIED}"
)


# ---- RFC 6902


def json_patch(doc: Any, ops: Any) -> Any:
    """Applies the operations in order. StatusError: 422 if one cannot be applied, 400 if malformed."""
    if not isinstance(ops, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        )
    if len(ops) > _MAX_OPERATIONS:
        raise bad_request(
            f"The allowed maximum operations in a JSON patch is {_MAX_OPERATIONS}, got {len(ops)}"
        )
    result = copy.deepcopy(doc)
    copied = 0
    for op in ops:
        if not isinstance(op, dict) or op.get("op") not in _OPERATIONS:
            kind = op.get("op") if isinstance(op, dict) else op
            raise bad_request(f"Unexpected kind: {kind}")
        if op["op"] == "copy":
            copied += _length(_walk(result, _pointer(op.get("from")), str(op.get("from"))))
            if copied > _MAX_COPIED:
                raise StatusError(413, "RequestEntityTooLarge", _TOO_MUCH.format(copied), {})
        result = _OPERATIONS[op["op"]](result, op)
    return result


def _length(value: Any) -> int:
    """Of a value as JSON. What orjson finds too deep can never be stored."""
    try:
        return len(orjson.dumps(value))
    except orjson.JSONEncodeError as error:
        raise bad_request(f"error applying patch: {error}") from error


def _pointer(text: Any) -> list[str]:
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise _no_path(text)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _no_path(path: Any) -> StatusError:
    """Upstream's answer does not tell which path, and some clients compare it byte for byte; the log may."""
    error = unprocessable_patch()
    error.add_note(f"path {path!r} does not exist")
    return error


def _walk(doc: Any, parts: Sequence[str], path: str) -> Any:
    for part in parts:
        doc = _child(doc, part, path)
    return doc


def _child(node: Any, part: str, path: str) -> Any:
    if isinstance(node, dict) and part in node:
        return node[part]
    if isinstance(node, list):
        return node[_index(part, len(node) - 1, path)]
    raise _no_path(path)


def _index(part: str, last: int, path: str) -> int:
    if not part.isdecimal() or len(part) > _MAX_DIGITS or not 0 <= int(part) <= last:
        raise _no_path(path)
    return int(part)


def _add(doc: Any, op: Object) -> Any:
    return _put(doc, op.get("path"), copy.deepcopy(op.get("value")))


def _put(doc: Any, path: Any, value: Any) -> Any:
    parts = _pointer(path)
    if not parts:
        return value
    parent = _walk(doc, parts[:-1], path)
    if isinstance(parent, dict):
        parent[parts[-1]] = value
    elif isinstance(parent, list):
        position = len(parent) if parts[-1] == "-" else _index(parts[-1], len(parent), path)
        parent.insert(position, value)
    else:
        raise _no_path(path)
    return doc


def _remove(doc: Any, op: Object) -> Any:
    path = op.get("path")
    parts = _pointer(path)
    if not parts:
        raise _no_path(path)
    parent = _walk(doc, parts[:-1], str(path))
    _child(parent, parts[-1], str(path))
    if isinstance(parent, list):
        del parent[int(parts[-1])]
    else:
        del parent[parts[-1]]
    return doc


def _replace(doc: Any, op: Object) -> Any:
    path = op.get("path")
    parts = _pointer(path)
    _walk(doc, parts, str(path))
    value = copy.deepcopy(op.get("value"))
    if not parts:
        return value
    parent = _walk(doc, parts[:-1], str(path))
    parent[int(parts[-1]) if isinstance(parent, list) else parts[-1]] = value
    return doc


def _move(doc: Any, op: Object) -> Any:
    value = _walk(doc, _pointer(op.get("from")), str(op.get("from")))
    doc = _remove(doc, {"path": op.get("from")})
    return _put(doc, op.get("path"), value)


def _copy(doc: Any, op: Object) -> Any:
    value = _walk(doc, _pointer(op.get("from")), str(op.get("from")))
    return _put(doc, op.get("path"), copy.deepcopy(value))


def _test(doc: Any, op: Object) -> Any:
    path = op.get("path")
    try:
        found = _walk(doc, _pointer(path), str(path))
    except StatusError:
        if op.get("value") is None and isinstance(path, str):
            return doc
        raise
    if found != op.get("value"):
        raise unprocessable_patch()
    return doc


_OPERATIONS: dict[str, Callable[[Any, Object], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


# ---- RFC 7386


def merge_patch(doc: Any, patch: Any) -> Any:
    """null removes a key, a map merges, anything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(doc) if isinstance(doc, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


# ---- strategic merge

_SCALARS = (str, bool, int, float)


def strategic_merge(schema: Schema, definition: str, doc: Object, patch: Object) -> Object:
    """`doc` (an object of `definition`) with `patch` applied. StatusError 400 for malformed directives."""
    return _Strategic(schema).struct(schema.definition(definition), doc, patch) or {}


class _Strategic:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def struct(self, definition: Definition | None, original: Object, patch: Object) -> Object | None:
        """Merges a map; None means that the patch deletes it. Without a definition (free maps) maps merge
        plainly.
        """
        if not _has_directive(patch):
            merged = dict(original)
            for key, value in patch.items():
                self._merge_key(definition, merged, key, value, None)
            return merged
        directive = patch.get(_DIRECTIVE)
        body = {key: value for key, value in patch.items() if key != _DIRECTIVE}
        if directive == "replace":
            replaced: Object = _clean(body)
            return replaced
        if directive == "delete":
            return None
        if directive not in (None, "merge"):
            raise bad_request(f"Unknown patch type: {directive}")
        result = dict(original)
        if _RETAIN in body:
            kept = body.pop(_RETAIN)
            if not isinstance(kept, list) or any(key not in kept for key in body if not key.startswith("$")):
                raise bad_request("retainKeys list must contain all keys present in the patch")
            result = {key: value for key, value in result.items() if key in kept}
        for key, value in body.items():
            if not key.startswith((_ORDER, _DELETE_PRIMITIVES)):
                self._merge_key(definition, result, key, value, body.get(_ORDER + key))
        for key, value in body.items():
            self._apply_list_directive(definition, result, key, value, body)
        return result

    def _merge_key(
        self, definition: Definition | None, result: Object, key: str, value: Any, order: Any
    ) -> None:
        if value is None:
            result.pop(key, None)
            return
        if type(value) in _SCALARS:
            result[key] = value
            return
        declared = definition.fields.get(key) if definition else None
        merged = self._value(declared, result.get(key), value, order)
        if merged is None:
            result.pop(key, None)
        else:
            result[key] = merged

    def _value(self, declared: Field | None, original: Any, value: Any, order: Any) -> Any:
        if isinstance(value, dict):
            if declared is not None and "replace" in declared.strategies and _DIRECTIVE not in value:
                return _clean(value)
            base = original if isinstance(original, dict) else {}
            if not base and not _has_directive(value) and not isinstance(original, dict):
                return _clean(value)
            return self.struct(self._inner(declared.type if declared else None), base, value)
        if isinstance(value, list) and declared is not None and "merge" in declared.strategies:
            base_list = original if isinstance(original, list) else []
            if declared.merge_key:
                element = declared.type.element
                return self._joined(declared.merge_key, self._inner(element), base_list, value, order)
            return _in_order(_union(base_list, value), order, base_list)
        return _clean(value)

    def _inner(self, type_: Type | None) -> Definition | None:
        return self._schema.definition(type_.ref) if type_ is not None and type_.kind == "struct" else None

    def _joined(
        self, key: str, element: Definition | None, original: list[Any], patch: list[Any], order: Any
    ) -> list[Any]:
        """Items of `patch` joined to those of `original` by `key`; unknown ones are added at the end."""
        for item in patch:
            if not isinstance(item, dict):
                raise bad_request(f"expected a map in a list that merges by {key}, found {item!r}")
        if any(item.get(_DIRECTIVE) == "replace" for item in patch):
            return [_clean(item) for item in patch if item.get(_DIRECTIVE) != "replace" or len(item) > 1]
        result = list(original)
        places: dict[Any, list[int]] = {}  # looked for one by one, many items would keep everybody waiting
        for number, old in enumerate(result):
            if isinstance(old, dict):
                places.setdefault(_hashable(old.get(key)), []).append(number)
        for item in patch:
            if key not in item:
                raise bad_request(f"map: {item} does not contain declared merge key: {key}")
            named = _hashable(item[key])
            if item.get(_DIRECTIVE) == "delete":
                for number in places.pop(named, ()):
                    result[number] = _GONE
            elif named in places:
                result[places[named][0]] = self.struct(element, result[places[named][0]], item)
            else:
                places[named] = [len(result)]
                result.append(_clean(item))
        result = [item for item in result if item is not _GONE]
        if order is None:
            return result
        wanted = [entry.get(key) for entry in _order(order) if isinstance(entry, dict)]
        return _sorted_by(result, wanted, lambda item: item.get(key), original)

    def _apply_list_directive(
        self, definition: Definition | None, result: Object, key: str, value: Any, body: Object
    ) -> None:
        if key.startswith(_DELETE_PRIMITIVES):
            name = key.removeprefix(_DELETE_PRIMITIVES)
            if isinstance(result.get(name), list):
                deleted = set(map(_hashable, value if isinstance(value, list) else ()))
                result[name] = [item for item in result[name] if _hashable(item) not in deleted]
        elif key.startswith(_ORDER):
            name = key.removeprefix(_ORDER)
            declared = definition.fields.get(name) if definition else None
            if name in body or declared is None or not isinstance(result.get(name), list):
                return
            if declared.merge_key:
                merge_key = declared.merge_key
                wanted = [entry.get(merge_key) for entry in _order(value) if isinstance(entry, dict)]
                result[name] = _sorted_by(
                    result[name], wanted, lambda item: item.get(merge_key), result[name]
                )
            else:
                result[name] = _in_order(result[name], value, result[name])


def _union(original: list[Any], patch: list[Any]) -> list[Any]:
    known = set(map(_hashable, original))
    return [*original, *(item for item in patch if _hashable(item) not in known)]


def _in_order(items: list[Any], order: Any, original: list[Any]) -> list[Any]:
    return items if order is None else _sorted_by(items, _order(order), lambda item: item, original)


def _order(value: Any) -> list[Any]:
    """Of $setElementOrder. Raises StatusError (400)."""
    if not isinstance(value, list):
        raise bad_request(f"{_ORDER.rstrip('/')}: a list was expected")
    return value


def _sorted_by(
    items: list[Any], wanted: list[Any], key: Callable[[Any], Any], original: list[Any]
) -> list[Any]:
    """Orders the items named in `wanted`; others (only the server has them) keep their place before what
    followed.
    """
    ranks: dict[Any, int] = {}
    for index, value in enumerate(wanted):
        ranks.setdefault(_hashable(value), index)
    keyed = [(_hashable(key(item)), item) for item in items]
    named = sorted(((name, item) for name, item in keyed if name in ranks), key=lambda pair: ranks[pair[0]])
    server_only = deque((name, item) for name, item in keyed if name not in ranks)
    position = {_hashable(key(item)): index for index, item in enumerate(original)}
    result: list[Any] = []
    for name, item in named:
        own = position.get(name)
        while server_only and own is not None and position.get(server_only[0][0], own) < own:
            result.append(server_only.popleft()[1])
        result.append(item)
    return result + [item for _, item in server_only]


def _hashable(value: Any) -> Any:
    """Equal for equal values of JSON, and a key of a dict."""
    if isinstance(value, (dict, list)):
        return (orjson.dumps(value, option=orjson.OPT_SORT_KEYS),)
    return value


def _has_directive(value: Object) -> bool:
    return any(key.startswith("$") for key in value)


def _clean(value: Any) -> Any:
    """A value taken over as new: directives, nulls and deletions in it have nothing to act on."""
    if isinstance(value, dict):
        return {
            key: item if type(item) in _SCALARS else _clean(item)
            for key, item in value.items()
            if item is not None and not (key.startswith("$") and _is_directive(key))
        }
    if isinstance(value, list):
        return [
            _clean(item)
            for item in value
            if not (isinstance(item, dict) and item.get(_DIRECTIVE) == "delete")
        ]
    return value


def _is_directive(key: str) -> bool:
    return key in (_DIRECTIVE, _RETAIN) or key.startswith((_ORDER, _DELETE_PRIMITIVES))
