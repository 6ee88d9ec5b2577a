"""One GET of a probe or a hook, as upstream's pkg/probe/http makes it.

Redirects are followed as long as they stay with the host name: a container must not send the node elsewhere.
Nothing about the server is checked, not even its certificate. How it is asked: http_answer.py.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubelet_py.pods import http_answer
from kubelet_py.pods.http_answer import NoConnection
from kubelet_py.pods.model import Object

VERSION = "1.32"
MOST_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
# OpenSSL's words for an answer that is no TLS record: where Go sees "HTTP/" in it, it says so.
NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")


class NoAnswer(Exception):
    """The request got no answer; the text says why. `plain`: somebody answered a TLS greeting without TLS."""

    def __init__(self, text: str, *, plain: bool = False) -> None:
        super().__init__(text)
        self.plain = plain


@dataclass(frozen=True, slots=True)
class Answer:
    """`stopped`: it is a redirect to another host, which was not followed."""

    status: int
    body: bytes
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    tls: bool
    host: str
    port: int
    path: str
    headers: Sequence[tuple[str, str]]

    @property
    def place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.place}{self.path}"


def request_of(action: Mapping[str, Any], container: Object, ip: str, agent: str) -> Request:
    """The request that an httpGet action means; `agent`: probe or lifecycle. Raises NoAnswer for a port that
    has no number."""
    try:
        port = port_number(action["port"], container)
    except LookupError as error:
        raise NoAnswer(str(error)) from error
    path = action.get("path") or "/"
    headers = [(entry["name"], entry.get("value") or "") for entry in action.get("httpHeaders") or ()]
    if all(name.lower() != "user-agent" for name, _ in headers):
        headers.append(("User-Agent", f"kube-{agent}/{VERSION}"))
    tls = (action.get("scheme") or "HTTP").upper() == "HTTPS"
    path = path if path.startswith("/") else f"/{path}"
    return Request(tls, action.get("host") or ip, port, path, headers)


def get(request: Request, timeout: float) -> Answer:
    """Carry it out within `timeout` seconds in all. Raises NoAnswer."""
    due = time.monotonic() + timeout
    for _ in range(MOST_REDIRECTS):
        status, location, body = _once(request, max(0.0, due - time.monotonic()))
        if status not in REDIRECTS or not location:
            return Answer(status, body)
        target = _target(request, location)
        if target is None:
            return Answer(status, body, stopped=True)
        request = target
    raise NoAnswer(f'Get "{request.url}": stopped after {MOST_REDIRECTS} redirects')


def _target(request: Request, location: str) -> Request | None:
    """What a redirect asks for; None where that is another host's to answer."""
    from urllib.parse import urljoin, urlsplit  # late: redirects are rare

    try:
        found = urlsplit(urljoin(request.url, location))
        port = found.port
    except ValueError:
        return None
    if found.scheme not in ("http", "https") or found.hostname != request.host.lower():
        return None
    tls = found.scheme == "https"
    path = (found.path or "/") + (f"?{found.query}" if found.query else "")
    return Request(tls, request.host, port or (443 if tls else 80), path, request.headers)


def _once(request: Request, timeout: float) -> tuple[int, str, bytes]:
    try:
        message = http_answer.request(request.place, request.path, request.headers)
        return http_answer.exchange(request.host, request.port, message, timeout, tls=request.tls)
    except NoConnection as error:
        raise NoAnswer(f'Get "{request.url}": dial tcp {request.place}: {error}') from error
    except (http_answer.NoAnswer, OSError) as error:
        plain = isinstance(error, ssl.SSLError) and error.reason in NO_TLS
        raise NoAnswer(f'Get "{request.url}": {_words(error, request)}', plain=plain) from error


def _words(error: Exception, request: Request) -> str:
    """Go's words for the common ends, which people search for."""
    if isinstance(error, TimeoutError):
        return "context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    if isinstance(error, ssl.SSLError):
        if error.reason in NO_TLS:
            return "http: server gave HTTP response to HTTPS client"
        return f"tls: {error.reason or error}"
    if isinstance(error, OSError):
        return f"read tcp {request.place}: {(error.strerror or str(error)).lower()}"
    return str(error)


def port_number(port: int | str, container: Object) -> int:
    """A port given as number or by the name of one of the container's ports."""
    if isinstance(port, int) or str(port).isdigit():
        return int(port)
    for entry in container.get("ports") or ():
        if entry.get("name") == port:
            return int(entry["containerPort"])
    raise LookupError(f"couldn't find port: {port} in container {container.get('name', '')}")
