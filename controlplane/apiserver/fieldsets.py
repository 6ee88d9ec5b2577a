"""Which fields an object has, as sets of paths: the currency of server-side apply.

A path is a tuple of elements written as in FieldsV1: `f:spec` for a field or map key, `k:{"name":"c"}` for
an item of a keyed list, `v:"x"` for an item of a set. Whether a list is keyed, a set or atomic, and whether
a struct is owned whole, the schema says. Format and rules are those of sigs.k8s.io/structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from controlplane.apiserver.schema import Field, Schema, Type

Object = dict[str, Any]
Path = tuple[str, ...]
FieldSet = frozenset[Path]

# Values of list keys that the API fills in: a port without protocol is a TCP port.
_KEY_DEFAULTS = {"protocol": "TCP"}
_IN_LIST = Field("", Type("any"), False, "", (), "", (), "")


class Present:
    """Stands for an item of a list that is there, apart from its own fields."""


PRESENT = Present()


def leaves(schema: Schema, definition: str, obj: Object) -> dict[Path, Any]:
    """Every path that can be owned, with its value; items of keyed lists have PRESENT."""
    out: dict[Path, Any] = {}
    _Collector(schema, out).struct(definition, obj, ())
    return out


def to_fields_v1(paths: FieldSet) -> Object:
    """The FieldsV1 trie: a member with members below it says so with a dot."""
    root: Object = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _without_lone_dots(root)


def _without_lone_dots(node: Object) -> Object:
    if set(node) == {"."}:
        return {}
    return {key: _without_lone_dots(child) if key != "." else {} for key, child in node.items()}


def from_fields_v1(trie: Object) -> FieldSet:
    """The inverse of to_fields_v1."""
    return frozenset(_members(trie, ()))


def _members(node: Object, path: Path) -> Iterator[Path]:
    if path and (not node or "." in node):
        yield path
    for key, child in node.items():
        if key != ".":
            yield from _members(child if isinstance(child, dict) else {}, (*path, key))


def is_field_set(trie: Object) -> bool:
    """Whether all items of lists in it are named by JSON, as those who read the account rely on."""
    open_nodes = [trie]
    while open_nodes:
        for key, child in open_nodes.pop().items():
            if key.startswith(("k:", "v:")) and not _names_item(key):
                return False
            if isinstance(child, dict):
                open_nodes.append(child)
    return True


def _names_item(element: str) -> bool:
    try:
        parsed = orjson.loads(element[2:])
    except ValueError:
        return False
    return element.startswith("v:") or isinstance(parsed, dict)


def readable(path: Path) -> str:
    """A path as conflicts print it: .spec.template.spec.containers[name="c"].image"""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            pairs = orjson.loads(rest)
            text += (
                "[" + ",".join(f"{key}={orjson.dumps(pairs[key]).decode()}" for key in sorted(pairs)) + "]"
            )
        else:
            text += f"[={rest}]"
    return text


def item_element(keys: tuple[str, ...], item: Object) -> str:
    """The path element of an item of a keyed list."""
    pairs = {key: item.get(key, _KEY_DEFAULTS.get(key)) for key in keys}
    present = {key: value for key, value in pairs.items() if value is not None}
    return "k:" + orjson.dumps(present, option=orjson.OPT_SORT_KEYS).decode()


def value_element(item: Any) -> str:
    """The path element of an item of a set."""
    return "v:" + orjson.dumps(item).decode()


def is_atomic(schema: Schema, declared: Field) -> bool:
    """Whether one manager owns the value as a whole."""
    type_ = declared.type
    if type_.kind == "list":
        return declared.list_type not in ("map", "set")
    if type_.kind == "struct":
        return "atomic" in (declared.map_type, schema.definition(type_.ref).map_type)
    return type_.kind != "map" or declared.map_type == "atomic"


class _Collector:
    def __init__(self, schema: Schema, out: dict[Path, Any]) -> None:
        self._schema = schema
        self._out = out

    def struct(self, definition: str, value: Object, path: Path) -> None:
        if path and not value:
            self._out[path] = value
        fields = self._schema.definition(definition).fields
        for name, item in value.items():
            self.field(fields.get(name, _IN_LIST), item, (*path, f"f:{name}"))

    def field(self, declared: Field, value: Any, path: Path) -> None:
        type_ = declared.type
        if is_atomic(self._schema, declared) or not isinstance(value, (dict, list)) or not value:
            self._out[path] = value
        elif isinstance(value, dict) and type_.kind == "struct":
            self.struct(type_.ref, value, path)
        elif isinstance(value, dict):
            for key, item in value.items():
                self._out[(*path, f"f:{key}")] = item
        else:
            self._items(declared, value, path)

    def _items(self, declared: Field, value: list[Any], path: Path) -> None:
        element = declared.type.element
        for item in value:
            if declared.list_type == "set":
                self._out[(*path, value_element(item))] = item
                continue
            where = (*path, item_element(declared.list_keys, item))
            self._out[where] = PRESENT
            if element is not None and element.kind == "struct" and item:
                self.struct(element.ref, item, where)
