"""One HTTP request on its way through the handlers, and the answers that they all give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from controlplane.apiserver.errors import (
    NOT_SUPPORTED,
    Cause,
    StatusError,
    invalid,
    request_entity_too_large,
)
from controlplane.apiserver.negotiation import JSON, Wanted, decode, media_type, to_yaml
from controlplane.apiserver.registry import Write
from controlplane.apiserver.routing import Request
from controlplane.apiserver.schema import duplicates
from controlplane.apiserver.users import User

Object = dict[str, Any]

MAX_BODY = 3 * 1024 * 1024
_MAX_MANAGER = 128


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
        return decode(await self.body(), self.content_type, kind)

    async def optional_object(self, kind: str) -> Object | None:
        """None for an empty body, as DELETE may have."""
        body = await self.body()
        return decode(body, self.content_type, kind) if body.strip() else None

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


def answer(
    body: bytes, status: int = 200, *, wanted: Wanted | None = None, warnings: Sequence[str] = ()
) -> web.Response:
    """A JSON (or YAML) answer with its warnings, which kubectl prints."""
    content_type = JSON
    if wanted is not None and wanted.yaml:
        body, content_type = to_yaml(body), "application/yaml"
    response = web.Response(body=body, status=status, content_type=content_type)
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


