"""LIST: pages of a consistent state, joined from stored bytes.

A list is the state at one revision. The first page is the present; a continue token carries its revision, and
later pages are cut from the same state, rebuilt by undoing the events since (`Collection.snapshot`). The
server therefore keeps nothing between pages, and a token dies (410 Expired) when history does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from controlplane.apiserver import list_options, rendering
from controlplane.apiserver.errors import (
    bad_request,
    continue_expired,
    expired,
    too_large_resource_version,
)
from controlplane.apiserver.registry import Registry
from controlplane.apiserver.rendering import View
from controlplane.apiserver.routing import Request
from controlplane.apiserver.selection import Selection
from controlplane.storage.cache import Entry, Place, TooOldError

Object = dict[str, Any]

_CHUNK = 256 * 1024
_DIGITS = 20  # of the largest number of 64 bits


@dataclass(frozen=True, slots=True)
class Page:
    """The entries of one answer, the revision they are of, and the metadata of the list."""

    entries: list[Entry]
    revision: int
    metadata: Object


def parse_revision(text: str) -> int:
    """A resourceVersion of a query. Raises StatusError (400)."""
    plain = text.isascii() and text.isdigit()
    if not plain or len(text) > _DIGITS or int(text) >= 1 << 64:
        why = "value out of range" if plain else "invalid syntax"
        raise bad_request(f'Invalid value: "{text}": strconv.ParseUint: parsing "{text}": {why}')
    return int(text)


def page(registry: Registry, request: Request, selection: Selection) -> Page:
    """What a LIST answers. Raises StatusError (400, 410, 422, 504)."""
    assert request.info is not None
    list_options.check(request)
    limit = parse_limit(request.query.get("limit", ""))
    collection = registry.collection(request.info)
    revision, after = _position(registry, request)
    try:
        if revision is None:
            revision = registry.cache.revision
            entries = collection.present(request.namespace, after)
        else:
            if revision > registry.cache.revision:  # of a token that this server has not written
                raise continue_expired()
            entries = collection.snapshot(revision, request.namespace, after)
    except TooOldError as error:
        raise (continue_expired() if after else expired(_too_old(revision, registry))) from error
    chosen = list(selection.choose(entries))
    metadata: Object = {"resourceVersion": str(revision)}
    if limit and len(chosen) > limit:
        remaining = len(chosen) - limit
        chosen = chosen[:limit]
        metadata["continue"] = _token(revision, (chosen[-1].namespace, chosen[-1].name))
        if not selection.selective:
            metadata["remainingItemCount"] = remaining
    return Page(chosen, revision, metadata)


def parse_limit(text: str) -> int:
    try:
        return max(int(text or 0), 0)
    except ValueError:
        raise bad_request(f'limit: Invalid value: "{text}": must be an integer') from None


def _position(registry: Registry, request: Request) -> tuple[int | None, Place | None]:
    """(revision to read at or None for the newest, last place of the page before)."""
    token = request.query.get("continue", "")
    text = request.query.get("resourceVersion", "")
    if token:
        if text and text != "0":
            raise bad_request("specifying resource version is not allowed when using continue")
        return _read_token(token)
    if not text:
        return None, None
    revision = reached(registry, text)
    if request.query.get("resourceVersionMatch") == list_options.EXACT:
        return revision, None
    return None, None


def reached(registry: Registry, text: str) -> int:
    """A revision that a client has seen. Raises StatusError (400; 504 for one that is not written yet)."""
    revision = parse_revision(text)
    if revision > registry.cache.revision:
        raise too_large_resource_version(revision, registry.cache.revision)
    return revision


def _too_old(revision: int | None, registry: Registry) -> str:
    return f"too old resource version: {revision} ({registry.cache.revision})"


def _token(revision: int, place: Place) -> str:
    content = {"v": "meta.k8s.io/v1", "rv": revision, "start": "/".join(filter(None, place)) + "\0"}
    return base64.urlsafe_b64encode(orjson.dumps(content)).rstrip(b"=").decode()


def _read_token(token: str) -> tuple[int, Place]:
    try:
        content = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        namespace, _, name = content["start"].removesuffix("\0").rpartition("/")
        return parse_revision(str(content["rv"])), (namespace, name)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise bad_request(f"invalid continue token: continue key is not valid: {error}") from error


def body(registry: Registry, form: View, found: Page, now: float) -> Iterator[bytes]:
    """The answer in chunks of about 256 KiB, so that a long list is not copied whole."""
    info = form.info
    if form.wanted.form == "Table":
        objects = [registry.parsed(info, entry) for entry in found.entries]
        yield rendering.tabulated(form, objects, str(found.revision), now, metadata=found.metadata)
        return
    kind, api_version = info.list_kind, info.api_version
    if form.wanted.form == "PartialObjectMetadata":
        kind, api_version = "PartialObjectMetadataList", f"meta.k8s.io/{form.wanted.version}"
    head = {"kind": kind, "apiVersion": api_version, "metadata": found.metadata}
    parts = [orjson.dumps(head)[:-1], b',"items":[']
    size = 0
    separator = b""
    for entry in found.entries:
        item = rendering.event_object(registry, form, entry, now, False)
        parts += (separator, item)
        separator = b","
        size += len(item)
        if size >= _CHUNK:
            yield b"".join(parts)
            parts, size = [], 0
    parts.append(b"]}\n")
    yield b"".join(parts)
