"""A container's log as WebSocket messages, for clients that cannot read a stream of HTTP (browsers).

The messages are those of upstream's apimachinery (util/httpstream/wsstream): first an empty one, then pieces
of the log as they come, in binary messages or, for `base64.binary.k8s.io`, as base64 in text messages, each
piece encoded by itself. What the client sends is not looked at, only that it closes.
"""

from __future__ import annotations

import asyncio
import base64
import logging

import aiohttp
from aiohttp import web

from controlplane.apiserver.errors import StatusError

log = logging.getLogger(__name__)

BINARY, BASE64 = "binary.k8s.io", "base64.binary.k8s.io"
PROTOCOLS = (BINARY, BASE64)


def wanted(request: web.Request) -> bool:
    """Whether the client asks for a WebSocket. Raises StatusError (403) for protocols that logs lack."""
    upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
    if not upgrade or "upgrade" not in request.headers.get("Connection", "").lower():
        return False
    offered = [
        name.strip()
        for header in request.headers.getall("Sec-WebSocket-Protocol", ())
        for name in header.split(",")
    ]
    if offered and not set(offered) & set(PROTOCOLS):
        known = " and ".join(PROTOCOLS)
        text = f"unable to upgrade to a WebSocket: logs have {known}, not {', '.join(offered)}"
        raise StatusError(403, "Forbidden", text)
    return True


async def deliver(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Pass a kubelet's answer on until it ends or the client closes."""
    socket = web.WebSocketResponse(protocols=PROTOCOLS)
    await socket.prepare(request)
    closed = asyncio.ensure_future(_closed(socket))
    piece: asyncio.Task[bytes] | None = None
    try:
        await _send(socket, b"")
        while True:
            piece = asyncio.ensure_future(answer.content.readany())
            await asyncio.wait({piece, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not piece.done():
                break
            data = piece.result()
            if not data:
                break
            await _send(socket, data)
        await socket.close()
    except ConnectionError as error:
        log.debug("Dropped log path=%s reason=%s", request.path, error)
    except aiohttp.ClientError as error:
        log.info("Lost node connection path=%s reason=%s", request.path, error)
        await socket.close(code=aiohttp.WSCloseCode.INTERNAL_ERROR, message=b"lost the node")
    finally:
        unfinished = [task for task in (piece, closed) if task is not None and not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
    return socket


async def _closed(socket: web.WebSocketResponse) -> None:
    """Read until the client closes; pings are answered on the way."""
    async for _ in socket:
        pass


async def _send(socket: web.WebSocketResponse, data: bytes) -> None:
    if socket.ws_protocol == BASE64:
        await socket.send_str(base64.b64encode(data).decode())
    else:
        await socket.send_bytes(data)
