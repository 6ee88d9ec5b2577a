"""Types at run time: which fields a kind has, how lists merge, what does not fit.

No type is written down in this repository. The package kubernetes-validate carries every definition of
upstream's OpenAPI document, and this module reads that one file. The parsed file would cost tens of
megabytes for a process that uses a few dozen of its 638 definitions, so only the byte offsets are kept; a
definition is read with pread and compiled (descriptions thrown away) the first time somebody asks for it.

Behaviour follows apimachinery's JSON decoding: null means unset, names are case-sensitive, unknown fields are
dropped and reported, and wrong types are reported in the words of Go's encoding/json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from controlplane.apiserver.errors import TYPE_INVALID, Cause
from controlplane.apiserver.schema_scalars import json_word, special

Object = dict[str, Any]

MINOR = "v1.32.0"
META = "io.k8s.apimachinery.pkg.apis.meta.v1."

Kind = Literal[
    "struct",
    "list",
    "map",
    "string",
    "integer",
    "number",
    "boolean",
    "bytes",
    "quantity",
    "int-or-string",
    "time",
    "micro-time",
    "any",
]

_SPECIAL: dict[str, Kind] = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "int-or-string",
    META + "Time": "time",
    META + "MicroTime": "micro-time",
    META + "FieldsV1": "any",
    META + "Patch": "any",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "any",
}

_TOP_LEVEL_KEY = re.compile(rb'"(io\.k8s[^"]*)": ?\{')
_PLAIN: Mapping[str, type] = {"string": str, "boolean": bool}
_INTEGER_BOUNDS = {"int32": 2**31, "int64": 2**63}


class SchemaFileError(Exception):
    """The package with the API's definitions is missing or has no directory for our version."""


@dataclass(frozen=True, slots=True)
class Type:
    """The shape of a value. `ref` names the definition of a struct; `element` is the type of items or map
    values.
    """

    kind: Kind
    ref: str = ""
    element: Type | None = None
    format: str = ""

    @property
    def go_name(self) -> str:
        """The Go type, as decoding errors print it: []v1.Container, map[string]string, int32."""
        if self.kind in ("list", "map"):
            element = self.element.go_name if self.element else "interface {}"
            return f"[]{element}" if self.kind == "list" else f"map[string]{element}"
        if self.kind == "struct":
            return ".".join(self.ref.rsplit(".", 2)[-2:])
        return {"boolean": "bool", "number": "float64", "integer": self.format or "int64"}.get(
            self.kind, self.kind
        )


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a struct, with what merging needs.

    `strategies` and `merge_key` steer strategic merge patches ("merge", "replace", "retainKeys"); `list_type`
    ("map", "set", "atomic" or "") , `list_keys` and `map_type` ("atomic", "granular" or "") steer
    server-side apply.
    """

    name: str
    type: Type
    required: bool
    merge_key: str
    strategies: tuple[str, ...]
    list_type: str
    list_keys: tuple[str, ...]
    map_type: str


@dataclass(frozen=True, slots=True)
class Definition:
    """A struct. `map_type` is "atomic" where server-side apply owns it whole. `plain` are those of its fields
    that a value of one Python type fits, whatever it is.
    """

    name: str
    fields: Mapping[str, Field]
    plain: Mapping[str, type]
    map_type: str
    free_form: bool

    @property
    def short_name(self) -> str:
        return self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True, slots=True)
class SchemaResult:
    """What checking a body gave.

    `obj` is the body without nulls and unknown fields, a copy if it had any; `unknown` lists the dropped
    paths in document order; `causes` holds wrong types, each message being the whole sentence that upstream
    puts into its 400.
    """

    obj: Object
    unknown: list[str]
    causes: list[Cause]


def definitions_file(minor: str = MINOR) -> Path:
    """Where kubernetes-validate keeps one version's definitions; found without importing the package (it
    is slow).
    """
    spec = importlib.util.find_spec("kubernetes_validate")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "kubernetes-json-schema" / f"{minor}-local" / "_definitions.json"
        if path.is_file():
            return path
    raise SchemaFileError(f"Could not find the API definitions {minor}: ENOENT (install kubernetes-validate)")


class Schema:
    """All definitions of one Kubernetes version, compiled on demand. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._offsets = _scan(path)
        self._compiled: dict[str, Definition] = {}

    @classmethod
    def load(cls, path: Path | None = None) -> Schema:
        """Opens the installed file; about 5 ms. Raises SchemaFileError."""
        return cls(path or definitions_file())

    def close(self) -> None:
        os.close(self._fd)

    def names(self) -> Iterator[str]:
        return iter(self._offsets)

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def raw(self, name: str) -> Object:
        """One definition as the file has it (JSON Schema dialect), parsed afresh: for OpenAPI. KeyError if
        absent.
        """
        start, size = self._offsets[name]
        parsed: Object = orjson.loads(os.pread(self._fd, size, start))
        return parsed

    def definition(self, name: str) -> Definition:
        """The compiled struct. KeyError when there is none of that name."""
        found = self._compiled.get(name)
        if found is None:
            found = _compile(name, self.raw(name))
            self._compiled[name] = found
        return found

    def field(self, definition: str, path: tuple[str, ...]) -> Field | None:
        """The field at a path of names, walking through list items and map values; None where nothing is
        declared.
        """
        current: Field | None = None
        for name in path:
            if current is not None:
                inner = innermost(current.type)
                if inner.kind != "struct":
                    return None
                definition = inner.ref
            current = self.definition(definition).fields.get(name)
            if current is None:
                return None
        return current

    def merge_key(self, definition: str, path: tuple[str, ...]) -> str | None:
        """The key by which strategic merge joins the list at `path`, or None when the list is replaced
        whole.
        """
        found = self.field(definition, path)
        return found.merge_key if found and "merge" in found.strategies and found.merge_key else None

    def check(self, definition: str, obj: Object) -> SchemaResult:
        """Compares a decoded body with its type; never raises for what a client sent.

        What fits to the letter, as most bodies do, is handed back as it is, not copied.
        """
        if self._fits(self.definition(definition), obj):
            return SchemaResult(obj, [], [])
        walk = _Walk(self)
        pruned = walk.struct(self.definition(definition), obj, "", "")
        return SchemaResult(pruned, walk.unknown, walk.causes)

    def _fits(self, definition: Definition, value: Object) -> bool:
        """Whether a walk would neither drop nor change anything: it says no more, but in half the time."""
        if definition.free_form:
            return True
        fields, plain = definition.fields, definition.plain
        for key, inner in value.items():
            if plain.get(key) is type(inner):
                continue
            declared = fields.get(key)
            if declared is None or not self._fits_type(declared.type, inner):
                return False
        return True

    def _fits_type(self, type_: Type, value: Any) -> bool:
        kind = type_.kind
        if kind in _PLAIN:
            return _PLAIN[kind] is type(value)
        if kind == "struct":
            return type(value) is dict and self._fits(self.definition(type_.ref), value)
        if type_.element is not None:
            element = type_.element
            if kind == "list":
                return type(value) is list and all(self._fits_type(element, each) for each in value)
            return type(value) is dict and all(self._fits_type(element, each) for each in value.values())
        if kind == "any":
            return value is not None
        if kind == "integer":
            bound = _INTEGER_BOUNDS.get(type_.format, 2**63)
            return type(value) is int and -bound <= value < bound
        if kind == "number":
            return type(value) in (int, float)
        found = special(kind, value)
        return found is not None and not found[1] and type(found[0]) is type(value) and found[0] == value


@lru_cache(maxsize=1)
def installed() -> Schema:
    """The installed definitions, opened once per process."""
    return Schema.load()


def innermost(type_: Type) -> Type:
    """The type below all lists and maps."""
    while type_.element is not None:
        type_ = type_.element
    return type_


def duplicates(body: bytes) -> list[str]:
    """Paths of JSON keys given twice in one object, e.g. `spec.replicas`; the last value is the one that
    counts.

    orjson drops the earlier value silently, so this is asked separately, when fieldValidation wants to know.
    """
    text = body.decode("utf-8", errors="replace")
    found = False

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        out = dict(items)
        if len(out) != len(items):
            found = True
            counts = Counter(key for key, _ in items)
            out[_TWICE] = [key for key, count in counts.items() if count > 1]
        return out

    try:
        tree = json.loads(text, object_pairs_hook=pairs)
    except ValueError:
        return []
    return list(_duplicate_paths(tree, "")) if found else []


_TWICE = "\0twice"


def _duplicate_paths(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name in dict.fromkeys(node.get(_TWICE, ())):
            yield f"{path}.{name}" if path else name
        for name, value in node.items():
            if name != _TWICE:
                yield from _duplicate_paths(value, f"{path}.{name}" if path else name)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _duplicate_paths(value, f"{path}[{index}]")


def _scan(path: Path) -> dict[str, tuple[int, int]]:
    """Offsets of every definition. Only top-level keys of $defs begin with io.k8s, so no JSON parser is
    needed.
    """
    content = path.read_bytes()
    starts = [(match.group(1).decode(), match.end() - 1) for match in _TOP_LEVEL_KEY.finditer(content)]
    if not starts:
        raise SchemaFileError(f"Could not read {path}: EINVAL (it holds no io.k8s definitions)")
    out: dict[str, tuple[int, int]] = {}
    for index, (name, start) in enumerate(starts):
        limit = starts[index + 1][1] if index + 1 < len(starts) else len(content)
        out[name] = (start, _object_end(content, start, limit) - start)
    return out


def _object_end(content: bytes, start: int, limit: int) -> int:
    """The end of the JSON object at `start`: the last brace before the next key, or the one two levels up
    at the end.
    """
    if limit < len(content):
        return (
            content.rindex(b"}", start, content.rindex(b'"', start, content.rindex(b'"', start, limit))) + 1
        )
    text = content[start:limit].decode()
    _, end = json.JSONDecoder().raw_decode(text)
    return start + len(text[:end].encode())


def _compile(name: str, raw: Object) -> Definition:
    required = frozenset(raw.get("required") or ())
    fields = {
        key: _compile_field(key, value, key in required)
        for key, value in (raw.get("properties") or {}).items()
    }
    plain = {key: _PLAIN[each.type.kind] for key, each in fields.items() if each.type.kind in _PLAIN}
    return Definition(name, fields, plain, raw.get("x-kubernetes-map-type") or "", "properties" not in raw)


def _compile_field(name: str, raw: Object, required: bool) -> Field:
    return Field(
        name=name,
        type=_compile_type(raw),
        required=required,
        merge_key=raw.get("x-kubernetes-patch-merge-key") or "",
        strategies=tuple((raw.get("x-kubernetes-patch-strategy") or "").split(",")),
        list_type=raw.get("x-kubernetes-list-type") or "",
        list_keys=tuple(raw.get("x-kubernetes-list-map-keys") or ()),
        map_type=raw.get("x-kubernetes-map-type") or "",
    )


def _compile_type(raw: Object) -> Type:
    ref = raw.get("$ref")
    if ref:
        name = ref.rsplit("/", 1)[-1]
        if ".JSON" in name and not name.endswith("JSONSchemaProps"):
            return Type("any")
        special = _SPECIAL.get(name)
        return Type(special) if special else Type("struct", ref=name)
    declared = raw.get("type")
    base = declared[0] if isinstance(declared, list) else declared
    if base == "array":
        return Type("list", element=_compile_type(raw.get("items") or {}))
    if base == "object":
        values = raw.get("additionalProperties")
        return Type("map", element=_compile_type(values)) if values else Type("any")
    if base == "string":
        return Type("bytes" if raw.get("format") == "byte" else "string")
    if base == "integer":
        return Type("integer", format=raw.get("format") or "int64")
    if base in ("number", "boolean"):
        return Type(base)
    return Type("any")


class _Walk:
    """One pass over one body: copies what fits, notes the rest."""

    def __init__(self, schema: Schema) -> None:
        self.unknown: list[str] = []
        self.causes: list[Cause] = []
        self._schema = schema

    def struct(self, definition: Definition, value: Object, path: str, names: str) -> Object:
        if definition.free_form:
            return value
        out: Object = {}
        fields, plain, struct = definition.fields, definition.plain, definition.short_name
        for key, inner in value.items():
            # Most values are plain and fit: nobody will ask for their paths.
            if plain.get(key) is type(inner):
                out[key] = inner
                continue
            declared = fields.get(key)
            where = f"{path}.{key}" if path else key
            if declared is None:
                self.unknown.append(where)
            elif inner is not None:
                chain = f"{names}.{key}" if names else key
                fitted = self._value(declared.type, inner, where, struct, chain)
                if fitted is not None:
                    out[key] = fitted
        return out

    def _value(self, type_: Type, value: Any, path: str, struct: str, names: str) -> Any:
        kind = type_.kind
        if kind == "struct" and isinstance(value, dict):
            return self.struct(self._schema.definition(type_.ref), value, path, names)
        if kind == "list" and isinstance(value, list):
            assert type_.element is not None
            return self._list(type_.element, value, path, struct, names)
        if kind == "map" and isinstance(value, dict):
            assert type_.element is not None
            return self._map(type_.element, value, path, struct, names)
        if kind == "any":
            return value
        if kind in ("struct", "list", "map"):
            return self._wrong(type_.go_name, value, path, struct, names)
        return self._scalar(type_, value, path, struct, names)

    def _list(self, element: Type, value: list[Any], path: str, struct: str, names: str) -> list[Any]:
        out = []
        for index, item in enumerate(value):
            fitted = (
                _zero(element)
                if item is None
                else self._value(element, item, f"{path}[{index}]", struct, names)
            )
            if fitted is not None:
                out.append(fitted)
        return out

    def _map(self, element: Type, value: Object, path: str, struct: str, names: str) -> Object:
        out = {}
        for key, item in value.items():
            fitted = (
                _zero(element) if item is None else self._value(element, item, f"{path}.{key}", struct, names)
            )
            if fitted is not None:
                out[key] = fitted
        return out

    def _scalar(self, type_: Type, value: Any, path: str, struct: str, names: str) -> Any:
        kind = type_.kind
        if kind == "string" and isinstance(value, str):
            return value
        if kind == "boolean" and isinstance(value, bool):
            return value
        if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
            bound = _INTEGER_BOUNDS.get(type_.format, 2**63)
            return (
                value if -bound <= value < bound else self._wrong(type_.go_name, value, path, struct, names)
            )
        if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        problem = special(kind, value)
        if problem is None:
            return self._wrong(type_.go_name, value, path, struct, names)
        fitted, text = problem
        if text:
            self.causes.append(Cause(TYPE_INVALID, path, text))
        return fitted

    def _wrong(self, go_name: str, value: Any, path: str, struct: str, names: str) -> None:
        place = f"Go struct field {struct}.{names} of type {go_name}"
        text = f"json: cannot unmarshal {json_word(value, go_name)} into {place}"
        self.causes.append(Cause(TYPE_INVALID, path, text))


def _zero(type_: Type) -> Any:
    """Go's zero value: what a null inside a list or map decodes to."""
    if type_.kind in ("struct", "map"):
        return {}
    return {"string": "", "bytes": "", "integer": 0, "number": 0, "boolean": False, "list": []}.get(
        type_.kind
    )
