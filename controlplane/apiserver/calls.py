"""One HTTP request on its way through the handlers, and the answers that they all give."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from controlplane.apiserver.errors import (
    INVALID,
    NOT_SUPPORTED,
    TOO_LONG,
    Cause,
    StatusError,
    invalid,
    request_entity_too_large,
)
from controlplane.apiserver.negotiation import JSON, YAML, Wanted, decode, media_type, to_yaml
from controlplane.apiserver.registry import Write
from controlplane.apiserver.routing import TRUE, Request
from controlplane.apiserver.schema import duplicates
from controlplane.apiserver.users import User

Object = dict[str, Any]

MAX_BODY = 3 * 1024 * 1024
_MAX_MANAGER = 128
_MUCH_YAML = 16 * 1024  # reading or writing more of it takes longer than anybody else should wait
# People at a terminal or a browser, who get their JSON in lines.
_READ_BY_PEOPLE = ("curl", "Wget", "Mozilla/5.0")


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
        """The whole body. Raises StatusError (413)."""
        try:
            return await self.http.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise request_entity_too_large(MAX_BODY) from error

    async def object(self, kind: str) -> Object:
        """The body as an object. Raises StatusError (400, 413, 415)."""
        return await self.decoded(self.content_type, kind)

    async def decoded(self, content_type: str, kind: str) -> Object:
        """The body read as `content_type`. Raises StatusError (400, 413, 415)."""
        body = await self.body()
        if len(body) > _MUCH_YAML and media_type(content_type) == YAML:
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
        return _pretty(self.request.query, self.http.headers.get("User-Agent", ""))


def _pretty(query: Mapping[str, str], agent: str) -> bool:
    given = query.get("pretty", "")
    return given in TRUE if given else agent.startswith(_READ_BY_PEOPLE)


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


class Answer(web.Response):
    """Its body is JSON until `presented` has seen it, whatever its content type says."""


async def presented(http: web.Request, request: Request, response: web.StreamResponse) -> web.StreamResponse:
    """An answer as it goes out: in YAML for who asked for it, in lines for who reads it himself."""
    if not isinstance(response, Answer) or not isinstance(response.body, bytes):
        return response
    body = response.body
    if response.content_type == YAML:
        much = len(body) > _MUCH_YAML
        response.body = await asyncio.to_thread(to_yaml, body) if much else to_yaml(body)
    elif _pretty(request.query, http.headers.get("User-Agent", "")):
        response.body = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
    return response


def answer(
    body: bytes, status: int = 200, *, wanted: Wanted | None = None, warnings: Sequence[str] = ()
) -> web.Response:
    """A JSON answer (`presented` turns it into YAML) with its warnings, which kubectl prints."""
    content_type = YAML if wanted is not None and wanted.yaml else JSON
    response = Answer(body=body, status=status, content_type=content_type)
    response.headers["Cache-Control"] = "no-cache, private"
    for text in warnings:
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{quoted}"')
    return response


def refusal(error: StatusError) -> web.Response:
    """The answer that a StatusError is."""
    response = answer(error.body(), error.code)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.code == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="kubernetes"'
    return response
