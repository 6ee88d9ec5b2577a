"""Answers as they go out: a status line, a few headers and a body that is there as a whole.

Most answers are one object of some kilobytes, and making them ready the way that aiohttp's Response does it
(compression, chunks, cookies, a body in pieces) took as long as finding what to answer. An `Answer` is
written in one piece and knows nothing of all that. Streams (watches, long lists, logs) stay aiohttp's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache

import orjson
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.negotiation import JSON, YAML, Wanted, to_yaml
from controlplane.apiserver.routing import TRUE, Request

MUCH_YAML = 16 * 1024  # reading or writing more of it takes longer than anybody else should wait
_MOST_WARNED, _LONGEST_WARNING = 4096, 256  # characters
# People at a terminal or a browser, who get their JSON in lines.
_READ_BY_PEOPLE = ("curl", "Wget", "Mozilla/5.0")


class Answer(web.StreamResponse):
    """Its `content` is JSON until `presented` has seen it, also where YAML was asked for (`yaml`)."""

    def __init__(self, content: bytes, status: int = 200, *, yaml: bool = False) -> None:
        super().__init__(status=status)
        self.content = content
        self.yaml = yaml
        self._writer: AbstractStreamWriter | None = None
        self._head = b""
        self._without_content = self._stays = False

    @property
    def keep_alive(self) -> bool:
        """Whether the connection goes on, which aiohttp asks when the answer is out."""
        return self._stays

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """What goes before the content. Called by aiohttp."""
        self._stays = request.keep_alive
        self._without_content = request.method == "HEAD"
        version = request.version
        lines = [
            f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}",
            f"Content-Type: {YAML if self.yaml else JSON}",
            "Cache-Control: no-cache, private",
            f"Content-Length: {len(self.content)}",
            f"Date: {_date(int(time.time()))}",
        ]
        if not self._stays and version >= HttpVersion11:
            lines.append("Connection: close")
        elif self._stays and version < HttpVersion11:
            lines.append("Connection: keep-alive")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        head = "\r\n".join(lines)
        if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
            raise ValueError("a header contains a line break")
        self._head = head.encode() + b"\r\n\r\n"
        self._writer = request.writer
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send all of it. Called by aiohttp."""
        assert self._writer is not None
        await self._writer.write_eof(self._head if self._without_content else self._head + self.content)


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def answer(
    body: bytes, status: int = 200, *, wanted: Wanted | None = None, warnings: Sequence[str] = ()
) -> Answer:
    """A JSON answer (`presented` turns it into YAML) with its warnings, which kubectl prints."""
    response = Answer(body, status, yaml=wanted is not None and wanted.yaml)
    for text in _told(warnings):
        response.headers.add("Warning", f'299 - "{_quoted(text)}"')
    return response


def _told(warnings: Sequence[str]) -> list[str]:
    """All of them where they are few; else the beginnings of the first, as upstream's filters/warning.go: a
    body may have a hundred thousand unknown fields, and clients read no endless head."""
    if sum(map(len, warnings)) <= _MOST_WARNED:
        return list(warnings)
    told: list[str] = []
    left = _MOST_WARNED
    for text in warnings:
        if left <= 0:
            break
        told.append(text[:_LONGEST_WARNING])
        left -= len(told[-1])
    return told


def _quoted(text: str) -> str:
    """As it may stand between quotes in a header: what a client named its fields is part of some warnings."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def refusal(error: StatusError) -> Answer:
    """The answer that a StatusError is."""
    response = answer(error.body(), error.code)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.code == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="kubernetes"'
    return response


async def presented(http: web.Request, request: Request, response: web.StreamResponse) -> web.StreamResponse:
    """An answer as it goes out: in YAML for who asked for it, in lines for who reads it himself."""
    if not isinstance(response, Answer):
        return response
    body = response.content
    if response.yaml:
        much = len(body) > MUCH_YAML
        response.content = await asyncio.to_thread(to_yaml, body) if much else to_yaml(body)
    elif pretty(request.query, http.headers.get("User-Agent", "")):
        response.content = orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)
    return response


def pretty(query: Mapping[str, str], agent: str) -> bool:
    """`?pretty=`, else: would a person read the answer as it comes?"""
    given = query.get("pretty", "")
    return given in TRUE if given else agent.startswith(_READ_BY_PEOPLE)
