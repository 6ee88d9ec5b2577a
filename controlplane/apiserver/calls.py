"""One HTTP request on its way through the handlers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver.answers import MUCH_YAML, pretty
from controlplane.apiserver.errors import (
    INVALID,
    NOT_SUPPORTED,
    TOO_LONG,
    Cause,
    invalid,
    request_entity_too_large,
    timed_out,
)
from controlplane.apiserver.negotiation import JSON, YAML, decode, media_type
from controlplane.apiserver.registry import Write
from controlplane.apiserver.routing import Request
from controlplane.apiserver.schema import duplicates
from controlplane.apiserver.users import User

Object = dict[str, Any]

MAX_BODY = 3 * 1024 * 1024
_MAX_MANAGER = 128
BODY_SECONDS = 60.0  # upstream's --request-timeout


@dataclass(frozen=True, slots=True)
class Call:
    """The request as aiohttp has it, as Kubernetes means it, and who sent it."""

    http: web.Request
    request: Request
    user: User

    @property
    def accept(self) -> str:
        return self.http.headers.get("Accept", "")

    @property
    def content_type(self) -> str:
        return self.http.headers.get("Content-Type", "")

    async def body(self) -> bytes:
        """The whole body. Raises StatusError (413, 504)."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self.http.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise request_entity_too_large(MAX_BODY) from error
        except TimeoutError as error:
            raise timed_out() from error

    async def object(self, kind: str) -> Object:
        """The body as an object. Raises StatusError (400, 413, 415)."""
        return await self.decoded(self.content_type, kind)

    async def decoded(self, content_type: str, kind: str) -> Object:
        """The body read as `content_type`. Raises StatusError (400, 413, 415)."""
        body = await self.body()
        if len(body) > MUCH_YAML and media_type(content_type) == YAML:
            return await asyncio.to_thread(decode, body, content_type, kind)
        return decode(body, content_type, kind)

    async def optional_object(self, kind: str) -> Object | None:
        """None for an empty body, as DELETE may have."""
        return await self.object(kind) if (await self.body()).strip() else None

    async def write(self) -> Write:
        """How this write was asked for. Raises StatusError (422)."""
        query = self.request.query
        validation = query.get("fieldValidation") or "Warn"
        if validation not in ("Ignore", "Warn", "Strict"):
            text = f'Unsupported value: "{validation}": supported values: "", "Ignore", "Strict", "Warn"'
            cause = Cause(NOT_SUPPORTED, "fieldValidation", text)
            raise invalid("CreateOptions", "meta.k8s.io", "", [cause])
        twice: tuple[str, ...] = ()
        if "fieldValidation" in query and validation != "Ignore" and self._json():
            twice = tuple(duplicates(await self.body()))
        return Write(self.user, self._manager(), self.dry_run(), validation, twice)

    def _manager(self) -> str:
        """Who owns what is written: `?fieldManager=`, else the first word of the client's User-Agent.

        An apply has to give the parameter: there the name is part of the contract (see `apply`).
        """
        given = self.request.query.get("fieldManager", "")
        if given or "apply-patch" in self.content_type:
            _check_manager(given)
            return given
        agent = self.http.headers.get("User-Agent", "").partition("/")[0]
        return agent[:_MAX_MANAGER] or "unknown"

    def dry_run(self) -> bool:
        """`?dryRun=All`. Raises StatusError (422) for anything else."""
        value = self.request.query.get("dryRun")
        if not value:
            return False
        if value != "All":
            cause = Cause(NOT_SUPPORTED, "dryRun", f'Unsupported value: "{value}": supported values: "All"')
            raise invalid("CreateOptions", "meta.k8s.io", "", [cause])
        return True

    def _json(self) -> bool:
        media = media_type(self.content_type)
        return media in ("", JSON) or media.endswith("+json")

    @property
    def pretty(self) -> bool:
        """`?pretty=`, else: would a person read the answer as it comes?"""
        return pretty(self.request.query, self.http.headers.get("User-Agent", ""))


def _check_manager(name: str) -> None:
    """Raises StatusError (422)."""
    cause = None
    if len(name.encode()) > _MAX_MANAGER:
        text = f"Too long: may not be more than {_MAX_MANAGER} bytes"
        cause = Cause(TOO_LONG, "fieldManager", text)
    elif not name.isprintable():
        quoted = orjson.dumps(name).decode()
        cause = Cause(
            INVALID, "fieldManager", f"Invalid value: {quoted}: should only contain printable characters"
        )
    if cause is not None:
        raise invalid("CreateOptions", "meta.k8s.io", "", [cause])
