"""The life of a write: decode, default, admit, prepare, validate, store.

Every create, update, patch and delete of every kind passes through here in the same order, so that a rule
has one place (apiserver pkg/registry/generic/registry/store.go). All steps between reading the present
version and handing the new one to the cache run without giving up the thread: two clients that change the
same object cannot meet in the middle, so a patch never has to be tried twice. Only the commit is awaited.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from controlplane.apiserver import deletion, strategy
from controlplane.apiserver.admission import Admission
from controlplane.apiserver.allocators import ServiceAllocator, carry_over
from controlplane.apiserver.apply import apply as server_side_apply
from controlplane.apiserver.apply import record_update
from controlplane.apiserver.conversion import from_storage, to_storage
from controlplane.apiserver.defaults import apply as apply_defaults
from controlplane.apiserver.errors import (
    REQUIRED,
    Cause,
    already_exists,
    bad_request,
    cannot_decode,
    conflict,
    internal,
    invalid,
    not_found,
    strict_decoding,
    success_body,
)
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.schema import Schema
from controlplane.apiserver.timestamps import rfc3339
from controlplane.apiserver.users import SERVER, User
from controlplane.apiserver.validation import validate_create, validate_update
from controlplane.errors import StoreError
from controlplane.storage.cache import Cache, Collection, Entry

Object = dict[str, Any]
Settle = Callable[[bool], None]

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # no vowels: no words
_GENERATED_PREFIX = 58
_NAME_TRIES = 8


@dataclass(frozen=True, slots=True)
class Write:
    """How a write was asked for. `warnings` is filled on the way and becomes Warning headers.

    `manager` is who owns the written fields in the account that server-side apply keeps.
    """

    user: User
    manager: str = "unknown"
    dry_run: bool = False
    field_validation: str = "Warn"
    duplicates: tuple[str, ...] = ()
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Written:
    """The object as stored (or as it would be, for a dry run), encoded in the version that was asked for."""

    body: bytes
    created: bool = False
    removed: bool = False


class Registry:
    """Reads and writes of all stored kinds. Used on the event loop's thread only."""

    def __init__(
        self,
        cache: Cache,
        schema: Schema,
        admission: Admission,
        services: ServiceAllocator,
        clock: Callable[[], float],
    ) -> None:
        self.cache = cache
        self.schema = schema
        self.admission = admission
        self._services = services
        self._clock = clock
        for entry in self.collection(_SERVICES).present():
            services.adopt(entry.parse())

    @staticmethod
    def collection_name(info: ResourceInfo) -> str:
        return f"{info.storage_version[0] or 'core'}/{info.plural}"

    def collection(self, info: ResourceInfo) -> Collection:
        return self.cache.collection(self.collection_name(info))

    def get(self, info: ResourceInfo, namespace: str, name: str) -> Entry:
        """The stored version. Raises StatusError (404)."""
        entry = self.cache.get(self.collection_name(info), namespace, name)
        if entry is None:
            raise not_found(info, name)
        return entry

    def render(self, info: ResourceInfo, entry: Entry) -> bytes:
        """An object's bytes in the version of `info`; the stored ones unless `info` is a view."""
        if not info.is_view:
            return entry.raw
        return orjson.dumps(from_storage(info, entry.parse()))

    def parsed(self, info: ResourceInfo, entry: Entry) -> Object:
        return from_storage(info, entry.parse()) if info.is_view else entry.parse()

    # Writes

    async def create(
        self, info: ResourceInfo, namespace: str, body: Object, write: Write, *, applied: bool = False
    ) -> Written:
        """POST. `applied`: the body carries the account of an apply. Raises StatusError."""
        obj = self._decode(info, namespace, body, write)
        metadata = obj["metadata"]
        if not applied:
            metadata.pop("managedFields", None)
        if metadata.pop("resourceVersion", None) not in (None, "", "0"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            metadata.pop(name, None)
        collection = self.collection_name(info)
        name = self._name(info, collection, namespace, metadata)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = rfc3339(self._clock())
        strategy.prepare_create(info, obj, write.user)
        apply_defaults(info, obj)
        self.admission.create(info, namespace, obj, write.user, write.warnings)
        causes = validate_create(info, obj)
        if causes:
            raise invalid(info.kind, info.group, name, causes)
        if self.cache.latest(collection, namespace, name) is not None:
            raise already_exists(info, name)
        stored = to_storage(info, obj) if info.is_view else obj
        settle = self._allocate(info, stored, None)
        written = await self._store(info, namespace, name, stored, None, write, settle)
        if strategy.key_of(info) == ("", "namespaces") and not write.dry_run:
            await self.ensure_default_account(name)
        return written

    async def ensure_default_account(self, namespace: str) -> None:
        """Every namespace has a ServiceAccount `default` from its first moment.

        Upstream leaves this to a controller, and a pod created right after its namespace is refused now and
        then; that controller finds it made, and makes it again should somebody delete it.
        """
        if self.cache.latest(self.collection_name(_ACCOUNTS), namespace, "default") is None:
            account = {"metadata": {"name": "default", "namespace": namespace}}
            await self.create(_ACCOUNTS, namespace, account, Write(SERVER))

    async def update(
        self, info: ResourceInfo, namespace: str, name: str, body: Object, write: Write, subresource: str = ""
    ) -> Written:
        """PUT. Raises StatusError."""
        new = self._decode(info, namespace, body, write)
        given = new["metadata"].setdefault("name", name)
        if given != name:
            raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")
        entry = self.cache.latest(self.collection_name(info), namespace, name)
        if entry is None:
            if strategy.key_of(info) in strategy.CREATED_BY_UPDATE and not subresource:
                return await self.create(info, namespace, new, write)
            raise not_found(info, name)
        return await self._replace(info, entry, self.parsed(info, entry), new, write, subresource)

    async def patch(
        self,
        info: ResourceInfo,
        namespace: str,
        name: str,
        change: Callable[[Object], Object],
        write: Write,
        subresource: str = "",
    ) -> Written:
        """PATCH: `change` gets a copy of the present object, returns the wanted one. Raises StatusError."""
        entry = self.cache.latest(self.collection_name(info), namespace, name)
        if entry is None:
            raise not_found(info, name)
        old = self.parsed(info, entry)
        wanted = change(self.parsed(info, entry))
        if not isinstance(wanted, dict) or not isinstance(wanted.get("metadata"), dict):
            raise invalid(info.kind, info.group, name, [Cause(REQUIRED, "metadata", "Required value")])
        new = self._decode(info, namespace, wanted, write, old)
        if new["metadata"].get("name") != name:
            given = new["metadata"].get("name") or ""
            raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")
        return await self._replace(info, entry, old, new, write, subresource)

    async def apply(
        self,
        info: ResourceInfo,
        namespace: str,
        name: str,
        body: Object,
        write: Write,
        *,
        force: bool,
        subresource: str = "",
    ) -> Written:
        """PATCH with an apply configuration; creates what does not exist. Raises StatusError."""
        config = self._decode(info, namespace, body, write)
        if config["metadata"].setdefault("name", name) != name:
            given = config["metadata"]["name"]
            raise bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")
        entry = self.cache.latest(self.collection_name(info), namespace, name)
        if entry is None and subresource:
            raise not_found(info, name)
        old = None if entry is None else self.parsed(info, entry)
        new = server_side_apply(
            self.schema,
            info.definition,
            old,
            config,
            manager=write.manager,
            force=force,
            now=rfc3339(self._clock()),
            fill=lambda obj: apply_defaults(info, obj),
            subresource=subresource,
        )
        if entry is None or old is None:
            return await self.create(info, namespace, new, write, applied=True)
        present = self.parsed(info, entry)
        return await self._replace(info, entry, present, new, write, subresource, applied=True)

    async def amend(
        self, info: ResourceInfo, namespace: str, name: str, change: Callable[[Object], Object], write: Write
    ) -> Written:
        """A change that the server itself makes to spec and status at once (a binding, a spent budget).

        `change` may raise StatusError. Raises StatusError.
        """
        entry = self.cache.latest(self.collection_name(info), namespace, name)
        if entry is None:
            raise not_found(info, name)
        return await self._store(info, namespace, name, change(entry.parse()), entry, write, None)

    async def delete(
        self,
        info: ResourceInfo,
        namespace: str,
        name: str,
        options: deletion.DeleteOptions,
        write: Write,
    ) -> Written:
        """DELETE of one object. Raises StatusError."""
        entry = self.cache.latest(self.collection_name(info), namespace, name)
        if entry is None:
            raise not_found(info, name)
        self.admission.delete(info, namespace, name, write.user)
        obj = entry.parse()
        deletion.check_preconditions(info, name, obj, options)
        decision = deletion.decide(info, obj, options, self._clock())
        dry_run = write.dry_run or options.dry_run
        if decision.action == "unchanged":
            return Written(self.render(info, entry))
        if decision.action == "keep":
            if dry_run:
                return Written(orjson.dumps(from_storage(info, decision.obj)))
            stored = await self._commit(
                self.cache.put(self.collection_name(info), namespace, name, decision.obj, entry)
            )
            return Written(self.render(info, stored))
        if not dry_run:
            last = await self._remove(info, entry, decision.obj)
            if strategy.key_of(info) in strategy.RETURNED_WHEN_DELETED:
                return Written(self.render(info, last), removed=True)
        elif strategy.key_of(info) in strategy.RETURNED_WHEN_DELETED:
            return Written(orjson.dumps(decision.obj), removed=True)
        details = {"name": name, "group": info.group, "kind": info.plural, "uid": obj["metadata"]["uid"]}
        return Written(success_body(details={k: v for k, v in details.items() if v}), removed=True)

    # Steps

    def _decode(
        self, info: ResourceInfo, namespace: str, body: Object, write: Write, old: Object | None = None
    ) -> Object:
        """Check kind and place, drop what the kind does not have. Raises StatusError (400).

        Parts that are as in `old` (a patched status leaves the spec alone) were checked when it was written.
        """
        if not isinstance(body, dict):
            raise bad_request(f"the object provided is unrecognized (must be of type {info.kind})")
        kind, api_version = body.get("kind") or info.kind, body.get("apiVersion") or info.api_version
        if kind != info.kind or api_version != info.api_version:
            raise bad_request(
                f'{kind} in version "{api_version}" cannot be handled as a {info.kind}: no kind "{kind}" is'
                f' served for {info.plural} in version "{info.api_version}"'
            )
        kept = _kept(body, old) if old else {}
        result = self.schema.check(info.definition, {k: v for k, v in body.items() if k not in kept})
        if result.causes:
            raise cannot_decode(info.kind, info.version, result.causes[0].message)
        self._unknown_fields(info, [f'unknown field "{path}"' for path in result.unknown], write)
        obj: Object = {"kind": kind, "apiVersion": api_version, "metadata": {}}
        fitted = result.obj | kept
        obj.update((key, fitted[key]) for key in body if key in fitted)
        obj["kind"], obj["apiVersion"] = kind, api_version
        metadata = obj["metadata"]
        if info.namespaced:
            if metadata.setdefault("namespace", namespace) != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
        else:
            metadata.pop("namespace", None)
        return obj

    def _unknown_fields(self, info: ResourceInfo, problems: list[str], write: Write) -> None:
        problems = problems + [f'duplicate field "{path}"' for path in write.duplicates]
        if not problems or write.field_validation == "Ignore":
            return
        if write.field_validation == "Strict":
            raise strict_decoding(info.kind, info.version, problems)
        write.warnings[:] = dict.fromkeys((*write.warnings, *problems))  # each once, in their order

    def _name(self, info: ResourceInfo, collection: str, namespace: str, metadata: Object) -> str:
        name = metadata.get("name")
        if name:
            return str(name)
        prefix = metadata.get("generateName")
        if not prefix:
            text = "Required value: name or generateName is required"
            raise invalid(info.kind, info.group, "", [Cause(REQUIRED, "metadata.name", text)])
        for _ in range(_NAME_TRIES):
            suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
            name = metadata["name"] = str(prefix)[:_GENERATED_PREFIX] + suffix
            if self.cache.latest(collection, namespace, name) is None:
                break
        return str(name)

    async def _replace(
        self,
        info: ResourceInfo,
        entry: Entry,
        old: Object,
        new: Object,
        write: Write,
        subresource: str,
        *,
        applied: bool = False,
    ) -> Written:
        """Everything from "both versions are known" on: shared by PUT and PATCH."""
        name = entry.name
        metadata, present = new["metadata"], old["metadata"]
        version = metadata.get("resourceVersion")
        if version and version != "0" and version != present["resourceVersion"]:
            raise conflict(info, name)
        uid = metadata.get("uid")
        if uid and uid != present.get("uid"):
            text = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {present['uid']}"
            raise conflict(info, name, text)
        apply_defaults(info, new)
        # What was stored before a default was known has it from now on, also where the old part is kept.
        apply_defaults(info, old)
        strategy.prepare_update(info, new, old, subresource, rfc3339(self._clock()))
        if strategy.key_of(info) == ("", "services") and not subresource:
            carry_over(new, old)
        self.admission.update(info, entry.namespace, new, old, write.user, subresource)
        causes = validate_update(info, new, old, subresource)
        if causes:
            raise invalid(info.kind, info.group, name, causes)
        if not applied:
            record_update(
                self.schema,
                info.definition,
                old,
                new,
                manager=write.manager,
                now=rfc3339(self._clock()),
                subresource=subresource,
            )
        stored = to_storage(info, new) if info.is_view else new
        before = to_storage(info, old) if info.is_view else old
        settle = self._allocate(info, stored, before) if not subresource else None
        if deletion.finished(info, stored):
            if write.dry_run:
                return Written(orjson.dumps(new))
            last = await self._remove(info, entry, stored)
            return Written(self.render(info, last), removed=True)
        if stored == before:
            if settle:
                settle(False)
            return Written(self.render(info, entry))
        return await self._store(info, entry.namespace, name, stored, entry, write, settle)

    def _allocate(self, info: ResourceInfo, new: Object, old: Object | None) -> Settle | None:
        if strategy.key_of(info) != ("", "services"):
            return None
        return self._services.allocate(new, old)

    async def _store(
        self,
        info: ResourceInfo,
        namespace: str,
        name: str,
        obj: Object,
        previous: Entry | None,
        write: Write,
        settle: Settle | None,
    ) -> Written:
        created = previous is None
        if write.dry_run:
            if settle:
                settle(False)
            return Written(orjson.dumps(from_storage(info, obj) if info.is_view else obj), created)
        future = self.cache.put(self.collection_name(info), namespace, name, obj, previous)
        if settle:
            done = settle
            future.add_done_callback(lambda result: done(not result.cancelled() and not result.exception()))
        return Written(self.render(info, await self._commit(future)), created)

    async def _remove(self, info: ResourceInfo, entry: Entry, last: Object) -> Entry:
        future = self.cache.remove(self.collection_name(info), entry, last)
        if strategy.key_of(info) == ("", "services"):
            held = entry.parse()

            def release(result: asyncio.Future[Entry]) -> None:
                if not result.cancelled() and not result.exception():
                    self._services.release(held)

            future.add_done_callback(release)
        return await self._commit(future)

    @staticmethod
    async def _commit(future: Any) -> Entry:
        try:
            # A client that hangs up must not cancel a write that is on its way to the disk.
            stored: Entry = await asyncio.shield(future)
        except StoreError as error:
            raise internal(str(error)) from error
        return stored


def _kept(body: Object, old: Object) -> Object:
    """What of a body is as it was, to the letter: Python's 1, 1.0 and True are equal, JSON's are not."""
    dumps = orjson.dumps
    return {key: part for key, part in body.items() if key in old and dumps(part) == dumps(old[key])}


def _core(plural: str) -> ResourceInfo:
    info = lookup("", "v1", plural)
    assert info is not None
    return info


_SERVICES, _ACCOUNTS = _core("services"), _core("serviceaccounts")
