"""From the API server to a node: logs, exec, attach, port-forward and the proxy subresources.

The API server does not speak SPDY or the channel protocols. It authenticates, finds the node, and hands
the client's own upgrade request on; after the kubelet's 101 it only moves bytes, both ways, with the back
pressure of both sides. aiohttp has no SPDY either, but it gives out the connection: once the handler has
put another protocol on the transport, aiohttp's parser never sees what follows.

What the client sent to prove who it is (Authorization, cookies) stays here; the kubelet sees the API
server's client certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl as tls
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

log = logging.getLogger(__name__)

Query = Sequence[tuple[str, str]]
Deliver = Callable[[web.Request, aiohttp.ClientResponse], Awaitable[web.StreamResponse]]

_CONNECT = 10.0
_HEAD_LIMIT = 1 << 16
_BODY_LIMIT = 1 << 20
_CHUNK = 1 << 16
_LOOK = 1.0

# A path may come encoded already: its percent signs stay.
_PATH_SAFE = "/:@!$&'()*+,;=~-._%"

# Connection-level and identifying headers end at this server (RFC 9110, 7.6.1).
_PRIVATE = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_FORWARDED = (
    "Upgrade",
    "X-Stream-Protocol-Version",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "User-Agent",
)


class NodeUnreachable(Exception):
    """The kubelet could not be connected to; the text is for the client."""


class NodeRefused(Exception):
    """The kubelet answered a checked request with an error; `code` and `text` are the kubelet's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


class _Relayed(web.StreamResponse):
    """Tells aiohttp that the answer has been given by other means and the connection is finished."""

    def __init__(self) -> None:
        super().__init__(status=101)
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes | bytearray | memoryview = b"") -> None:
        return None


class _Side(asyncio.Protocol):
    """One end of a relay: what it receives goes out of the other end."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer: _Side | None = None
        self.original: asyncio.BaseProtocol | None = None
        self.received = bytearray()
        self.ended = False
        self.arrived = asyncio.Event()
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.peer is None or self.peer.transport is None:
            self.received += data
            self.arrived.set()
        else:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        """Pass a half-close on where the other side can; TLS cannot, so there it ends the connection."""
        self.arrived.set()
        self.ended = True
        other = self.peer.transport if self.peer is not None else None
        if other is None or self.peer is None or self.peer.ended or not other.can_write_eof():
            return False
        other.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.arrived.set()
        if not self.over.done():
            self.over.set_result(None)
        if self.original is not None:
            self.original.connection_lost(exc)

    def join(self, peer: _Side) -> None:
        """From now on, and for what has already come, send everything to `peer`."""
        self.peer = peer
        if self.received and peer.transport is not None:
            peer.transport.write(bytes(self.received))
            self.received.clear()


async def proxy_upgrade(
    request: web.Request, *, host: str, port: int, path: str, query: Query, ssl: tls.SSLContext | None
) -> web.StreamResponse:
    """Hand the client's upgrade request to `https://host:port/path?query` and relay until one side ends.

    When the kubelet does not switch protocols its answer becomes ours. Raises NodeUnreachable.
    """
    node = _Side()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_CONNECT):
            await loop.create_connection(lambda: node, host, port, ssl=ssl)
    except (OSError, TimeoutError) as error:
        raise NodeUnreachable(f"error dialing backend: {_dial_text(host, port, error)}") from error
    assert node.transport is not None
    try:
        node.transport.write(_request_head(request, host, port, path, query))
        head = await _read_head(node)
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            return await _plain_answer(node, head, status)
        await _relay(request, node, head)
    finally:
        node.transport.close()
    return _Relayed()


async def _relay(request: web.Request, node: _Side, head: bytes) -> None:
    transport = request.transport
    if transport is None or transport.is_closing():
        return
    client = _Side()
    client.transport = transport
    client.original = transport.get_protocol()
    transport.set_protocol(client)
    transport.resume_reading()
    transport.write(head)
    node.join(client)
    client.join(node)
    await asyncio.wait({node.over, client.over}, return_when=asyncio.FIRST_COMPLETED)
    if not client.over.done():
        # aiohttp closes the connection (which sends what is still buffered) and wants to hear of it.
        original, client.original = client.original, None
        transport.set_protocol(original)


def _request_head(request: web.Request, host: str, port: int, path: str, query: Query) -> bytes:
    target = quote(path, safe=_PATH_SAFE)
    if query:
        target += f"?{urlencode(query)}"
    name = f"[{host}]" if ":" in host else host
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {name}:{port}", "Connection: Upgrade"]
    for header in _FORWARDED:
        lines += [f"{header}: {value}" for value in request.headers.getall(header, ())]
    if request.method == "POST":
        lines.append("Content-Length: 0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


async def _read_head(node: _Side) -> bytes:
    while (end := node.received.find(b"\r\n\r\n")) < 0:
        closed = node.transport is None or node.transport.is_closing()
        if closed or len(node.received) > _HEAD_LIMIT:
            raise NodeUnreachable("error dialing backend: the kubelet did not answer with HTTP")
        node.arrived.clear()
        await node.arrived.wait()
    head = bytes(node.received[: end + 4])
    del node.received[: end + 4]
    if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit():
        raise NodeUnreachable("error dialing backend: the kubelet did not answer with HTTP")
    return head


async def _plain_answer(node: _Side, head: bytes, status: int) -> web.Response:
    """The kubelet's refusal, whole; these are short texts."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    length = headers.get("content-length", "")
    wanted = min(int(length), _BODY_LIMIT) if length.isdigit() else _BODY_LIMIT
    while len(node.received) < wanted and node.transport is not None and not node.transport.is_closing():
        node.arrived.clear()
        await node.arrived.wait()
    kept = {
        name: value
        for name, value in headers.items()
        if name.startswith("x-") or name == "sec-websocket-version"
    }
    kept["Content-Type"] = headers.get("content-type", "text/plain")
    return web.Response(status=status, body=bytes(node.received[:wanted]), headers=kept)


async def proxy_http(
    request: web.Request,
    *,
    host: str,
    port: int,
    path: str,
    query: Query,
    ssl: tls.SSLContext | None,
    method: str | None = None,
    checked: bool = False,
    deliver: Deliver | None = None,
) -> web.StreamResponse:
    """Send a request to a kubelet (or, with `ssl` None, to a plain HTTP server) and stream its answer.

    The answer's status and headers are passed on; with `checked`, an error answer raises NodeRefused
    instead, so that the caller can make a v1.Status of it (pods/log). `deliver` hands the answer to the
    client in another way. Ends when the client goes, also while the other side is silent. Raises
    NodeUnreachable.
    """
    verb = method or request.method
    scheme = "https" if ssl is not None else "http"
    name = f"[{host}]" if ":" in host else host
    target = f"{scheme}://{name}:{port}{quote(path, safe=_PATH_SAFE)}"
    if query:
        target += f"?{urlencode(query)}"
    headers = [(key, value) for key, value in request.headers.items() if key.lower() not in _PRIVATE]
    body = request.content if request.body_exists and method is None else None
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT)
    import yarl

    async with aiohttp.ClientSession(
        timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        try:
            answer = await session.request(
                verb,
                yarl.URL(target, encoded=True),
                headers=headers,
                data=body,
                ssl=ssl if ssl is not None else True,
                allow_redirects=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept"),
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise NodeUnreachable(f"error dialing backend: {_dial_text(host, port, error)}") from error
        async with answer:
            if checked and not 200 <= answer.status <= 206:
                raise NodeRefused(
                    answer.status, (await answer.content.read(_BODY_LIMIT)).decode("utf-8", "replace")
                )
            return await (deliver or _stream)(request, answer)


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for key, value in answer.headers.items():
        if key.lower() not in _PRIVATE:
            response.headers.add(key, value)
    if answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = asyncio.ensure_future(answer.content.readany())
            while not (await asyncio.wait({pending}, timeout=_LOOK))[0]:
                if request.transport is None or request.transport.is_closing():
                    return response  # the client of a silent stream has gone
            data = pending.result()
            if not data:
                break
            await response.write(data)
        await response.write_eof()
    except ConnectionError as error:
        log.debug("Dropped stream path=%s reason=%s", request.path, error)
    except aiohttp.ClientError as error:
        # The answer is under way and cannot be turned into an error; closing short says that it is cut.
        log.info("Lost node connection path=%s reason=%s", request.path, error)
        if request.transport is not None:
            request.transport.close()
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pending
    return response


def _dial_text(host: str, port: int, error: BaseException) -> str:
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None)
    # asyncio words refusals in its own way; people know the kernel's words.
    text = f"connect: {os.strerror(number).lower()}" if number else str(cause) or type(cause).__name__
    return f"dial tcp {host}:{port}: {text}"
