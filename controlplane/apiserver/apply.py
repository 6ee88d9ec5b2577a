"""Server-side apply: a client sends what it wants to own, the server keeps account of who owns what.

The account is metadata.managedFields. An apply merges the given fields into the object, takes back what the
same manager gave earlier and gives no longer, and stops with a conflict where it would change what somebody
else owns (unless forced). Rules: sigs.k8s.io/structured-merge-diff `merge.Updater`, apimachinery
pkg/util/managedfields.

Only objects that were applied at least once are accounted for: a write to any other object costs nothing
here. The first apply to an object without account gives all its fields to the manager `before-first-apply`,
as upstream does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver.errors import REQUIRED, Cause, apply_conflict, bad_request, invalid
from controlplane.apiserver.fieldsets import (
    FieldSet,
    Path,
    from_fields_v1,
    is_atomic,
    is_field_set,
    item_element,
    leaves,
    readable,
    to_fields_v1,
)
from controlplane.apiserver.schema import Definition, Field, Schema

Object = dict[str, Any]

BEFORE = "before-first-apply"
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_ANNOTATION = ("f:metadata", "f:annotations", f"f:{_LAST_APPLIED}")
_NOT_OWNED = ("apiVersion", "kind")
_NOT_OWNED_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "managedFields",
)


@dataclass(frozen=True, slots=True)
class Owner:
    """One manager's account: its identity in managedFields and the fields it owns."""

    manager: str
    operation: str
    api_version: str
    subresource: str
    time: str
    fields: FieldSet

    @property
    def identity(self) -> tuple[str, str, str, str]:
        return self.manager, self.operation, self.api_version, self.subresource

    def with_fields(self, fields: FieldSet, now: str) -> Owner:
        time = self.time if fields == self.fields else now
        return Owner(self.manager, self.operation, self.api_version, self.subresource, time, fields)

    def to_object(self) -> Object:
        out: Object = {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields_v1(self.fields),
        }
        if self.subresource:
            out["subresource"] = self.subresource
        return out


def apply(
    schema: Schema,
    definition: str,
    live: Object | None,
    config: Object,
    *,
    manager: str,
    force: bool,
    now: str,
    fill: Callable[[Object], None],
    subresource: str = "",
) -> Object:
    """The object after `manager` applied `config`; `live` is None when it does not exist yet.

    `config` must have passed Schema.check; `now` is an RFC 3339 time; `fill` gives an object of this kind its
    defaults, in place. The result is neither defaulted nor validated. Raises StatusError: 409 with a cause
    per field owned by somebody else, 422 without a manager, 400 when the config itself carries managedFields.
    """
    if not manager:
        cause = Cause(REQUIRED, "fieldManager", "Required value: is required for apply patch")
        raise invalid("PatchOptions", "meta.k8s.io", "", [cause])
    if (config.get("metadata") or {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    wanted = frozenset(_owned(schema, definition, config))
    api_version = config.get("apiVersion") or ""
    owners = _owners(schema, definition, live, manager, now, fill)
    mine = next(
        (o for o in owners if o.identity == (manager, "Apply", api_version, subresource)),
        Owner(manager, "Apply", api_version, subresource, now, frozenset()),
    )
    others = [owner for owner in owners if owner.identity != mine.identity]
    merger = _Merger(schema)
    result = merger.struct(schema.definition(definition), live or {}, config)
    kept = wanted.union(*(owner.fields for owner in others))
    _take_back(schema, definition, result, mine.fields, kept)
    others = _settle(schema, definition, live, result, others, force=force, now=now)
    _write(result, [*others, mine.with_fields(wanted, now)])
    return result


def record_update(
    schema: Schema,
    definition: str,
    old: Object,
    new: Object,
    *,
    manager: str,
    now: str,
    subresource: str = "",
) -> None:
    """Accounts for an ordinary write, in place in `new`; does nothing for objects that were never applied.

    A client may write the account itself, to hand its fields over to another manager (kubectl does so when
    it goes over from the client's side to the server's), or end it by a list of one empty entry.
    """
    entries = (old.get("metadata") or {}).get("managedFields")
    given = new.setdefault("metadata", {})
    written = None if subresource else given.get("managedFields")
    if not entries or written == [{}]:
        given.pop("managedFields", None)
        return
    if written and written != entries and all(_readable_entry(entry) for entry in written):
        entries = written
    owners = [_read(entry) for entry in entries]
    before, after = _owned(schema, definition, old), _owned(schema, definition, new)
    changed = frozenset(path for path, value in after.items() if path not in before or before[path] != value)
    gone = frozenset(before) - frozenset(after)
    api_version = new.get("apiVersion") or ""
    identity = (manager, "Update", api_version, subresource)
    mine = next((o for o in owners if o.identity == identity), None)
    mine = mine or Owner(manager, "Update", api_version, subresource, now, frozenset())
    others = [o.with_fields(o.fields - changed - gone, now) for o in owners if o.identity != identity]
    _write(new, [*others, mine.with_fields((mine.fields | changed) - gone, now)])


def _owned(schema: Schema, definition: str, obj: Object) -> dict[Path, Any]:
    """The leaves that somebody can own: not identity, not what the server writes."""
    slim = {key: value for key, value in obj.items() if key not in _NOT_OWNED}
    metadata = {k: v for k, v in (obj.get("metadata") or {}).items() if k not in _NOT_OWNED_METADATA}
    slim["metadata"] = metadata
    if not metadata:
        del slim["metadata"]
    return leaves(schema, definition, slim)


def _readable_entry(entry: Object) -> bool:
    """One that is not is none: then the account that there was goes on."""
    return (
        bool(entry.get("manager"))
        and entry.get("operation") in ("Apply", "Update")
        and entry.get("fieldsType") == "FieldsV1"
        and isinstance(entry.get("fieldsV1"), dict)
        and is_field_set(entry["fieldsV1"])
    )


def _read(entry: Object) -> Owner:
    return Owner(
        entry.get("manager") or "",
        entry.get("operation") or "",
        entry.get("apiVersion") or "",
        entry.get("subresource") or "",
        entry.get("time") or "",
        from_fields_v1(entry.get("fieldsV1") or {}),
    )


def _owners(
    schema: Schema,
    definition: str,
    live: Object | None,
    manager: str,
    now: str,
    fill: Callable[[Object], None],
) -> list[Owner]:
    if live is None:
        return []
    entries = live["metadata"].get("managedFields")
    if entries:
        return [_read(entry) for entry in entries]
    present = _owned(schema, definition, live)
    fields = frozenset(present)
    api_version = live.get("apiVersion") or ""
    applied: FieldSet = frozenset()
    if manager == "kubectl":
        # What kubectl itself applied from the client's side is its own already, and goes when it gives it up.
        # It looks after the annotation as a manager of its own, "kubectl-last-applied".
        applied = fields & _client_side(schema, definition, live, present, fill)
        fields -= applied
        applied -= {_ANNOTATION}
    owners = (
        Owner(BEFORE, "Update", api_version, "", now, fields),
        Owner(manager, "Apply", api_version, "", now, applied),
    )
    return [owner for owner in owners if owner.fields]


def _client_side(
    schema: Schema,
    definition: str,
    live: Object,
    present: dict[Path, Any],
    fill: Callable[[Object], None],
) -> FieldSet:
    """What kubectl applied, with the defaults that came of it: a probe that goes takes its timeouts along.

    A default that has another value by now is whose who changed it, as the replicas of `kubectl scale`.
    """
    text = (live["metadata"].get("annotations") or {}).get(_LAST_APPLIED)
    if not text:
        return frozenset()
    try:
        config = orjson.loads(text)
    except ValueError:
        return frozenset({_ANNOTATION})
    if not isinstance(config, dict):
        return frozenset({_ANNOTATION})
    checked = schema.check(definition, config)
    given = frozenset(_owned(schema, definition, checked.obj))
    if not checked.causes:
        fill(checked.obj)
    filled = _owned(schema, definition, checked.obj)
    unchanged = {path for path, value in filled.items() if path in present and present[path] == value}
    return given | unchanged | {_ANNOTATION}


def _settle(
    schema: Schema,
    definition: str,
    live: Object | None,
    result: Object,
    others: list[Owner],
    *,
    force: bool,
    now: str,
) -> list[Owner]:
    """Conflicts with other owners, or (forced) their loss; fields that are gone are nobody's."""
    before = _owned(schema, definition, live) if live else {}
    after = _owned(schema, definition, result)
    changed = frozenset(path for path, value in after.items() if path not in before or before[path] != value)
    gone = frozenset(before) - frozenset(after)
    if not force:
        causes = [
            Cause("FieldManagerConflict", readable(path), _conflict_with(owner))
            for owner in others
            for path in sorted(owner.fields & changed)
        ]
        if causes:
            raise apply_conflict(causes)
    settled = [owner.with_fields(owner.fields - changed - gone, now) for owner in others]
    return [owner for owner in settled if owner.fields]


def _conflict_with(owner: Owner) -> str:
    text = f'conflict with "{owner.manager}"'
    if owner.subresource:
        text += f' with subresource "{owner.subresource}"'
    if owner.operation != "Update":
        return text
    return f"{text} using {owner.api_version}" + (f" at {owner.time}" if owner.time else "")


def _write(obj: Object, owners: list[Owner]) -> None:
    metadata = dict(obj.get("metadata") or {})
    metadata["managedFields"] = [owner.to_object() for owner in owners if owner.fields]
    obj["metadata"] = metadata


class _Merger:
    """Puts a config into an object: keyed lists by key, sets united, atomic values replaced."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def struct(self, definition: Definition, live: Object, config: Object) -> Object:
        out = dict(live)
        for name, value in config.items():
            declared = definition.fields.get(name)
            out[name] = self._field(declared, live.get(name), value) if declared else copy.deepcopy(value)
        return out

    def _field(self, declared: Field, live: Any, value: Any) -> Any:
        if is_atomic(self._schema, declared) or live is None:
            return copy.deepcopy(value)
        if declared.type.kind == "struct" and isinstance(live, dict):
            return self.struct(self._schema.definition(declared.type.ref), live, value)
        if declared.type.kind == "map" and isinstance(live, dict):
            return {**live, **value}
        if declared.list_type == "set":
            return [*live, *(item for item in value if item not in live)]
        return self._joined(declared, live, value)

    def _joined(self, declared: Field, live: list[Any], value: list[Any]) -> list[Any]:
        element = declared.type.element
        out = list(live)
        places = {item_element(declared.list_keys, item): index for index, item in enumerate(live)}
        for item in value:
            place = places.get(item_element(declared.list_keys, item))
            if place is None or element is None:
                out.append(copy.deepcopy(item))
            else:
                out[place] = self.struct(self._schema.definition(element.ref), out[place], item)
        return out


def _take_back(schema: Schema, definition: str, obj: Object, given: FieldSet, kept: FieldSet) -> None:
    """Removes from `obj` what its manager gave earlier and nobody owns any more.

    A field goes with all that is in it, defaults too, unless somebody owns something there. An item of a list
    stays only where somebody owns the item itself (`prune` of merge.Updater). In the metadata is what the
    server wrote for itself and nobody owns, such as finalizers: there goes what was given and no more.
    """
    owned, fields = _with_parents(kept), {path for path in given if path[0] == "f:metadata"}
    fields |= {path for path in _with_parents(given - fields) if not path[-1].startswith("k:")}
    items = {path for path in given if path[-1].startswith("k:")}
    for path in sorted((fields - owned) | (items - kept), key=len):
        _delete(schema, schema.definition(definition), obj, path)


def _with_parents(paths: FieldSet) -> set[Path]:
    return {path[:length] for path in paths for length in range(1, len(path) + 1)}


def _delete(schema: Schema, definition: Definition, obj: Object, path: Path) -> None:
    name = path[0].removeprefix("f:")
    declared = definition.fields.get(name)
    if declared is None or name not in obj:
        return
    if len(path) == 1:
        del obj[name]
        return
    value = obj[name] = copy.copy(obj[name])
    if declared.type.kind == "map":
        value.pop(path[1].removeprefix("f:"), None)
    elif declared.type.kind == "struct" and isinstance(value, dict):
        _delete(schema, schema.definition(declared.type.ref), value, path[1:])
    elif isinstance(value, list):
        _delete_item(schema, declared, value, path[1:])
    if not value:
        del obj[name]


def _delete_item(schema: Schema, declared: Field, items: list[Any], path: Path) -> None:
    if path[0].startswith("v:"):
        wanted = orjson.loads(path[0][2:])
        items[:] = [item for item in items if item != wanted]
        return
    element = declared.type.element
    for index, item in enumerate(items):
        if item_element(declared.list_keys, item) != path[0]:
            continue
        if len(path) == 1:
            del items[index]
        elif element is not None and path[1].removeprefix("f:") not in declared.list_keys:
            items[index] = dict(item)
            _delete(schema, schema.definition(element.ref), items[index], path[1:])
        return
