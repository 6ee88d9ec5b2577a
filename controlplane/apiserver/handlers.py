"""The verbs on objects and collections: HTTP in, registry, HTTP out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver import deletion, list_options, listing, rendering
from controlplane.apiserver.answers import answer
from controlplane.apiserver.calls import Call
from controlplane.apiserver.errors import (
    StatusError,
    bad_request,
    method_not_allowed,
    unsupported_media_type,
)
from controlplane.apiserver.negotiation import OBJECT, YAML, Wanted, media_type, wanted
from controlplane.apiserver.patch import json_patch, merge_patch, strategic_merge
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.selection import Selection
from controlplane.apiserver.watch import Watcher

Object = dict[str, Any]
Change = Callable[[Object], Object]

_APPLY = "application/apply-patch+yaml"
_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    _APPLY,
)
_STREAMED = 512 * 1024  # longer lists go out in chunks


class ObjectHandler:
    """get, list, watch, create, update, patch, delete, deletecollection of every stored kind."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._watchers: set[Watcher] = set()

    async def handle(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        """Answer a request about objects or their `status`. Raises StatusError."""
        request = call.request
        verb = request.verb
        served = info.verbs
        if request.subresource:
            served = info.subresources[request.subresource].verbs
        if verb not in served:
            raise method_not_allowed()
        if request.name and verb in ("create", "list", "deletecollection") and not request.subresource:
            raise method_not_allowed()
        if not request.name and verb == "patch":
            raise method_not_allowed()
        if info.namespaced and not request.namespace and verb in ("create", "deletecollection"):
            raise method_not_allowed()
        method: Callable[[Call, ResourceInfo], Any] = getattr(self, f"_{verb}")
        response: web.StreamResponse = await method(call, info)
        return response

    def end_watches(self) -> None:
        """Finish every stream cleanly, so that clients come back at once instead of waiting."""
        for watcher in tuple(self._watchers):
            watcher.end()

    async def _get(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        form = wanted(call.accept)
        if request.query.get("resourceVersion"):
            listing.reached(self._registry, request.query["resourceVersion"])
        entry = self._registry.get(info, request.namespace, request.name)
        return self.single(call, self._registry.render(info, entry), 200, form)

    async def _list(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        form = wanted(call.accept)
        view = rendering.view(call.request, form)
        page = listing.page(self._registry, call.request, self._selection(call, info))
        chunks = listing.body(self._registry, view, page, self._clock())
        first = next(chunks)
        if form.yaml or call.pretty or len(first) < _STREAMED // 2:
            return answer(first + b"".join(chunks), wanted=form)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(call.http)
        await response.write(first)
        for chunk in chunks:
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _watch(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        selection = self._selection(call, info)
        list_options.check(call.request)
        listing.parse_revision(call.request.query.get("resourceVersion") or "0")
        view = rendering.view(call.request, wanted(call.accept))
        watcher = Watcher(self._registry, view, selection, call.request, self._clock)
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        self._watchers.add(watcher)
        try:
            watcher.start()
            await response.prepare(call.http)
            lines = watcher.lines()
            async with contextlib.aclosing(lines):
                async for chunk in lines:
                    await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            pass  # the client hung up, as watchers do
        finally:
            self._watchers.discard(watcher)
        return response

    async def _create(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        form = wanted(call.accept)
        write = await call.write()
        obj = await call.object(info.kind)
        written = await self._registry.create(info, call.request.namespace, obj, write)
        return self.single(call, written.body, 201, form, write.warnings)

    async def _update(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        form = wanted(call.accept)
        write = await call.write()
        obj = await call.object(info.kind)
        obj.setdefault("metadata", {})
        written = await self._registry.update(
            info, request.namespace, request.name, obj, write, request.subresource
        )
        return self.single(call, written.body, 201 if written.created else 200, form, write.warnings)

    async def _patch(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        form = wanted(call.accept)
        write = await call.write()
        if media_type(call.content_type) == _APPLY:
            config = await call.decoded(YAML, info.kind)
            written = await self._registry.apply(
                info,
                request.namespace,
                request.name,
                config,
                write,
                force=request.flag("force"),
                subresource=request.subresource,
            )
            return self.single(call, written.body, 201 if written.created else 200, form, write.warnings)
        change = await self.change(call, info)
        written = await self._registry.patch(
            info, request.namespace, request.name, change, write, request.subresource
        )
        return self.single(call, written.body, 201 if written.created else 200, form, write.warnings)

    async def _delete(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        form = wanted(call.accept)
        options = deletion.read_options(await call.optional_object("DeleteOptions"), request.query)
        write = await call.write()
        written = await self._registry.delete(info, request.namespace, request.name, options, write)
        if form.form != "Object" and not written.body.startswith(b'{"kind":"Status"'):
            return self.single(call, written.body, 200, form)
        return answer(written.body, wanted=form)

    async def _deletecollection(self, call: Call, info: ResourceInfo) -> web.StreamResponse:
        request = call.request
        options = deletion.read_options(await call.optional_object("DeleteOptions"), request.query)
        write = await call.write()
        page = listing.page(self._registry, request, self._selection(call, info))
        waiting = [
            self._registry.delete(info, entry.namespace, entry.name, options, write) for entry in page.entries
        ]
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(result, StatusError) and result.code == 404:
                continue  # somebody else was faster
            if isinstance(result, BaseException):
                raise result
        view = rendering.view(request, OBJECT)
        return answer(b"".join(listing.body(self._registry, view, page, self._clock())))

    async def change(self, call: Call, info: ResourceInfo) -> Change:
        """The patch of a request (not an apply) as a function. Raises StatusError (400, 415)."""
        media = media_type(call.content_type)
        if media not in _PATCHES[:3]:
            raise unsupported_media_type(_PATCHES)
        body = await call.body()
        try:
            patch = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise bad_request(f"error decoding patch: {error}") from error
        if media == "application/json-patch+json":
            return lambda obj: json_patch(obj, patch)
        if not isinstance(patch, dict):
            raise bad_request("error decoding patch: an object was expected")
        if media == "application/merge-patch+json":
            return lambda obj: merge_patch(obj, patch)
        schema, definition = self._registry.schema, info.definition
        return lambda obj: strategic_merge(schema, definition, obj, patch)

    def single(
        self,
        call: Call,
        body: bytes,
        status: int,
        form: Wanted,
        warnings: list[str] | tuple[str, ...] = (),
    ) -> web.StreamResponse:
        """One object in the wanted form."""
        if form.form != "Object":
            body = rendering.one(self._registry, rendering.view(call.request, form), body, self._clock())
        return answer(body, status, wanted=form, warnings=warnings)

    def _selection(self, call: Call, info: ResourceInfo) -> Selection:
        query = call.request.query
        fields = query.get("fieldSelector", "")
        if call.request.name:  # the old way to watch one object
            pinned = f"metadata.name={call.request.name}"
            fields = f"{fields},{pinned}" if fields else pinned
        return Selection(info, call.request.namespace, query.get("labelSelector", ""), fields)
