"""Objects in the form that a client asked for: as stored, as a table, or only their metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver.errors import bad_request
from controlplane.apiserver.negotiation import Wanted
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.routing import Request
from controlplane.storage.cache import Entry

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """A form of one kind's objects. Equal views give equal bytes, which is what event encodings are
    remembered by.
    """

    info: ResourceInfo
    wanted: Wanted
    include_object: str = "Metadata"

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        wanted = self.wanted
        return self.info.group, self.info.version, wanted.form, wanted.version, self.include_object


def view(request: Request, wanted: Wanted) -> View:
    """Raises StatusError (400) for an unknown includeObject."""
    assert request.info is not None
    include = request.query.get("includeObject") or "Metadata"
    if include not in ("Metadata", "Object", "None"):
        raise bad_request(f'unrecognized includeObject value: "{include}"')
    return View(request.info, wanted, include)


def one(registry: Registry, form: View, raw: bytes, now: float) -> bytes:
    """A single object (given in its own version's bytes) in the wanted form."""
    if form.wanted.form == "Object":
        return raw
    obj = orjson.loads(raw)
    if form.wanted.form == "PartialObjectMetadata":
        return orjson.dumps(partial(obj, form.wanted.version))
    return tabulated(form, [obj], obj["metadata"].get("resourceVersion", ""), now)


def event_object(registry: Registry, form: View, entry: Entry, now: float, first: bool) -> bytes:
    """The `object` of a watch event. Only the first table of a stream says what its columns are."""
    if form.wanted.form == "Object":
        return registry.render(form.info, entry)
    obj = registry.parsed(form.info, entry)
    if form.wanted.form == "PartialObjectMetadata":
        return orjson.dumps(partial(obj, form.wanted.version))
    return tabulated(form, [obj], str(entry.revision), now, with_columns=first)


def partial(obj: Object, version: str) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj["metadata"],
    }


def tabulated(
    form: View,
    objects: Sequence[Object],
    resource_version: str,
    now: float,
    *,
    with_columns: bool = True,
    metadata: Object | None = None,
) -> bytes:
    """A Table of these objects; `metadata` adds what a page of a list says (continue …)."""
    from controlplane.apiserver.tables import table  # many columns, which only kubectl asks for

    found = table(
        form.info,
        list(objects),
        include_object=form.include_object,
        version=form.wanted.version,
        resource_version=resource_version,
        with_columns=with_columns,
        now=now,
    )
    if metadata:
        found["metadata"].update(metadata)
    return orjson.dumps(found)
