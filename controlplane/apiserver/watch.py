"""WATCH: a stream of changes that misses none, from any revision that history still covers.

Each watcher is a listener on its collection and a buffer of encoded lines. An event is encoded once for each
form in which somebody wants it; choosing who gets it looks only at the parsed labels and fields beside the
bytes. An object that begins or ceases to match a selector is ADDED or DELETED for that watcher, whatever it
was for the collection (apiserver pkg/storage/cacher).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson

from controlplane.apiserver import rendering
from controlplane.apiserver.errors import StatusError, expired
from controlplane.apiserver.listing import parse_revision
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.rendering import View
from controlplane.apiserver.routing import Request
from controlplane.apiserver.selection import Selection
from controlplane.storage.cache import Entry, Event, TooOldError

Object = dict[str, Any]

BOOKMARK_SECONDS = 60.0
_DIGITS = 20  # more than Go reads, and than Python may be made to
_LONGEST = 10 * 365 * 86400.0
_BACKLOG = 10_000  # lines; a client that is this far behind starts again from a list


class Watcher:
    """One client's stream. `lines` is the generator that the HTTP answer is written from."""

    def __init__(
        self,
        registry: Registry,
        form: View,
        selection: Selection,
        request: Request,
        clock: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._form = form
        self._selection = selection
        self._request = request
        self._clock = clock
        self._buffer: list[bytes] = []
        self._wake = asyncio.Event()
        self._first = form.wanted.form == "Table"
        self._ended = False
        self._rang = False
        self._stop: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Collect what happened since the asked revision, and listen from here on.

        No time passes between the two: both happen in one step of the loop.
        """
        try:
            self._replay()
        except StatusError as error:
            self._fail(error)
            return
        self._stop = self._registry.cache.listen(
            self._registry.collection_name(self._form.info), self._on_event
        )

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Chunks of whole lines until the timeout, the end of the server, or an error event."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _timeout(self._request)
        # One timer for many events: it is made anew only when it has run off, not for each wait.
        bookmarks = self._request.flag("allowWatchBookmarks")
        limit = min(deadline, loop.time() + BOOKMARK_SECONDS) if bookmarks else deadline
        timer = loop.call_at(limit, self._ring)
        try:
            while True:
                if self._buffer:
                    chunk = b"".join(self._buffer)
                    self._buffer.clear()
                    yield chunk
                    continue
                if self._ended:
                    break
                if self._rang:
                    if bookmarks:
                        yield self._bookmark()
                    if limit >= deadline:
                        break
                    self._rang = False
                    limit = min(deadline, loop.time() + BOOKMARK_SECONDS)
                    timer = loop.call_at(limit, self._ring)
                    continue
                self._wake.clear()
                await self._wake.wait()
        finally:
            timer.cancel()
            self._stop()

    def _ring(self) -> None:
        self._rang = True
        self._wake.set()

    def end(self) -> None:
        """Finish the stream after what is buffered (the server stops)."""
        self._ended = True
        self._wake.set()

    def _replay(self) -> None:
        text = self._request.query.get("resourceVersion", "")
        revision = parse_revision(text) if text else 0
        collection = self._registry.collection(self._form.info)
        initial = self._request.query.get("sendInitialEvents")
        if initial == "true" or (initial is None and revision == 0):
            for entry in self._selection.choose(collection.present(self._selection.namespace)):
                self._push("ADDED", entry, None)
            if initial == "true" and self._request.flag("allowWatchBookmarks"):
                self._buffer.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
            return
        if revision == 0:
            return
        newest = self._registry.cache.revision
        if revision > newest:
            # Written by a database that is gone; a list starts the client afresh.
            raise expired(f"too large resource version: {revision} ({newest})")
        try:
            events = collection.since(revision)
        except TooOldError as error:
            raise expired(f"too old resource version: {revision} ({collection.floor})") from error
        for event in events:
            self._on_event(event)

    def _on_event(self, event: Event) -> None:
        previous = event.previous
        before = previous is not None and self._selection.matches(previous)
        after = event.type != "DELETED" and self._selection.matches(event.entry)
        if after:
            self._push("MODIFIED" if before else "ADDED", event.entry, event)
        elif before and event.type == "DELETED":
            self._push("DELETED", event.entry, event)
        elif before and previous is not None:
            self._push("DELETED", _as_of(previous, event.revision), event)
        if len(self._buffer) > _BACKLOG:
            self._buffer.clear()
            self._fail(expired("the watch fell too far behind and has to start again from a list"))

    def _push(self, kind: str, entry: Entry, event: Event | None) -> None:
        key = (kind, self._form.key)
        line = event.encoded.get(key) if event is not None and not self._first else None
        if line is None:
            obj = rendering.event_object(self._registry, self._form, entry, self._clock(), self._first)
            line = b'{"type":"%b","object":%b}\n' % (kind.encode(), obj)
            if event is not None and not self._first:
                event.encoded[key] = line
            self._first = False
        self._buffer.append(line)
        self._wake.set()

    def _bookmark(self, annotations: Object | None = None) -> bytes:
        info = self._form.info
        metadata: Object = {
            "resourceVersion": str(self._registry.cache.revision),
            "creationTimestamp": None,
        }
        if annotations:
            metadata["annotations"] = annotations
        obj: Object = {"kind": info.kind, "apiVersion": info.api_version, "metadata": metadata}
        if self._form.wanted.form != "Object":
            version = f"meta.k8s.io/{self._form.wanted.version}"
            obj = {"kind": self._form.wanted.form, "apiVersion": version, "metadata": metadata}
            if self._form.wanted.form == "Table":
                partial = {"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": metadata}
                obj |= {"columnDefinitions": [], "rows": [{"cells": [], "object": partial}]}
        return orjson.dumps({"type": "BOOKMARK", "object": obj}) + b"\n"

    def _fail(self, error: StatusError) -> None:
        self._stop()
        self._buffer.append(orjson.dumps({"type": "ERROR", "object": error.to_object()}) + b"\n")
        self.end()


def _as_of(previous: Entry, revision: int) -> Entry:
    """The last state that matched, under the revision at which it ceased to."""
    obj = previous.parse()
    obj["metadata"]["resourceVersion"] = str(revision)
    return Entry(previous.namespace, previous.name, revision, orjson.dumps(obj))


def _timeout(request: Request) -> float:
    text = request.query.get("timeoutSeconds", "")
    if text.isascii() and text.isdigit() and len(text) < _DIGITS and int(text) > 0:
        return min(float(text), _LONGEST)
    return random.uniform(1800, 3600)  # spread, so that clients do not all come back at once
