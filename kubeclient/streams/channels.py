"""The channel protocols of Kubernetes: stdin, stdout, stderr, status and resize on one connection.

Two carriers, one meaning. Over WebSocket (v5, v4.channel.k8s.io and the unnamed first version) the first
byte of each message is the channel. Over SPDY (v4 … v1) each channel is a stream whose `streamtype` header
names it. Both are turned here into the same pairs of channel and bytes.

Channel 3 carries the end: since v4 a v1.Status as JSON (success, exit code, or an error), before that the
text of an error. Channel 4 is the terminal's size, `{"Width": 99, "Height": 33}`. Channel 255 (WebSocket v5)
closes the channel that its byte names; SPDY has FIN for that; older WebSocket versions cannot say it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from kubeclient.streams.errors import ProtocolError, StreamTimeout
from kubeclient.streams.spdy import Event, SpdyConnection, SpdyStream
from kubeclient.streams.websocket import WebSocket

STDIN, STDOUT, STDERR, STATUS, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255

WEBSOCKET_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io")
SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
PORT_FORWARD_SPDY = "portforward.k8s.io"
PORT_FORWARD_TUNNEL = "SPDY/3.1+portforward.k8s.io"
PORT_FORWARD_WEBSOCKET = ("v4.channel.k8s.io", "portforward.k8s.io")

_MAX_SIZES = 1 << 12  # bytes of terminal sizes at once; a client sends one, of some thirty
_EVENT = 64  # bytes that an event takes beside its data
_MAX_EARLY = 1 << 20  # bytes that a client may send before it has made all its streams

_NAMES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": STATUS, "resize": RESIZE}
_WITH_STATUS = frozenset({"v5.channel.k8s.io", "v4.channel.k8s.io"})
_WITH_RESIZE = frozenset({"v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"})


class RemoteCommand(Protocol):
    """The client's end of an exec or attach."""

    def receive(self) -> tuple[int, bytes] | None:
        """(channel, bytes) from the client: STDIN data, one RESIZE object, or CLOSE with the closed channel's
        number; None when the client is gone. Raises ProtocolError."""

    def send(self, channel: int, data: bytes) -> None:
        """Send output on STDOUT or STDERR; raises OSError when the client is gone."""

    def finish(self, status: Mapping[str, Any]) -> None:
        """Send the v1.Status and close every channel. The client then closes the connection."""

    def abort(self) -> None:
        """Drop the connection, from any thread."""


def success() -> dict[str, Any]:
    """The Status of a command that ended with exit code 0."""
    return {"metadata": {}, "status": "Success"}


def exited(code: int) -> dict[str, Any]:
    """The Status of a command that ended; clients read the exit code from the cause."""
    if code == 0:
        return success()
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def failed(message: str) -> dict[str, Any]:
    """The Status of a command that could not be run."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: {message}",
        "reason": "InternalError",
        "details": {"causes": [{"message": message}]},
        "code": 500,
    }


def choose(offered: Collection[str], supported: Collection[str]) -> str | None:
    """The first offered protocol that is supported (the client's order counts, as upstream); else None."""
    return next((name for name in offered if name in supported), None)


class Sizes:
    """Cuts the resize channel's bytes into JSON objects, wherever messages begin and end."""

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, data: bytes) -> list[bytes]:
        """Complete objects, each as compact JSON; raises ProtocolError when it is not JSON."""
        if len(data) > _MAX_SIZES:
            raise ProtocolError(f"Could not read terminal size: {len(data)} bytes at once")
        self._text = (self._text + data.decode("utf-8", "replace")).lstrip()
        found = []
        while self._text:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except (ValueError, RecursionError) as error:
                if len(self._text) > 1024:
                    raise ProtocolError("Could not read terminal size: not JSON") from error
                break
            self._text = self._text[end:].lstrip()
            found.append(json.dumps(value, separators=(",", ":")).encode())
        return found


class WebSocketCommand:
    """Exec or attach over a WebSocket."""

    def __init__(self, websocket: WebSocket, protocol: str, *, greeting: int | None = None) -> None:
        self._websocket, self._protocol = websocket, protocol
        self._sizes, self._waiting = Sizes(), deque[tuple[int, bytes]]()
        if greeting is not None:
            # Upstream tells the client that the connection stands by an empty message on the first channel
            # that it will write to (remotecommand/websocket.go).
            websocket.send(bytes((greeting,)))

    def receive(self) -> tuple[int, bytes] | None:
        while not self._waiting:
            message = self._websocket.receive()
            if message is None:
                return None
            if not message:
                continue
            channel, data = message[0], message[1:]
            if channel == STDIN and data:
                return channel, data
            if channel == RESIZE:
                self._waiting.extend((RESIZE, size) for size in self._sizes.feed(data))
            elif channel == CLOSE and self._protocol == "v5.channel.k8s.io" and data:
                return CLOSE, data[:1]
        return self._waiting.popleft()

    def send(self, channel: int, data: bytes) -> None:
        self._websocket.send(bytes((channel,)) + data)

    def finish(self, status: Mapping[str, Any]) -> None:
        data = _status(status, self._protocol)
        if data:
            self._websocket.send(bytes((STATUS,)) + data)
        self._websocket.close()

    def abort(self) -> None:
        self._websocket.abort()


class SpdyCommand:
    """Exec or attach over SPDY; `open` waits until the client has made its streams."""

    def __init__(self, connection: SpdyConnection, protocol: str) -> None:
        self._connection, self._protocol = connection, protocol
        self._streams: dict[int, SpdyStream] = {}
        self._channels: dict[int, int] = {}
        self._sizes = Sizes()
        self._early: deque[Event] = deque()
        self._waiting: deque[tuple[int, bytes]] = deque()

    def open(self, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> None:
        """Wait for the streams that these options imply; raises StreamTimeout, ProtocolError."""
        expected = {STATUS}
        expected |= {STDIN} if stdin else set()
        expected |= {STDOUT} if stdout else set()
        expected |= {STDERR} if stderr and not tty else set()
        expected |= {RESIZE} if tty and self._protocol in _WITH_RESIZE else set()
        early = 0
        while not expected <= self._streams.keys():
            try:
                event = self._connection.receive()
            except TimeoutError as error:
                raise StreamTimeout(
                    "Could not start: timed out waiting for client to create streams"
                ) from error
            if event is None:
                raise ProtocolError("Could not start: the client went away before it created its streams")
            if event.kind == "open":
                self._add(event.stream)
            else:
                early += len(event.data) + _EVENT
                if early > _MAX_EARLY:
                    raise ProtocolError("Could not start: too much came before its streams")
                self._early.append(event)

    def _add(self, stream: SpdyStream) -> None:
        kind = stream.headers.get("streamtype", "")
        channel = _NAMES.get(kind)
        if channel is None or channel in self._streams:
            raise ProtocolError(f"Could not accept stream: unexpected type {kind!r}")
        self._streams[channel] = stream
        self._channels[stream.id] = channel

    def receive(self) -> tuple[int, bytes] | None:
        while not self._waiting:
            event = self._early.popleft() if self._early else self._connection.receive()
            if event is None:
                return None
            if event.kind == "open":
                self._add(event.stream)
                continue
            channel = self._channels.get(event.stream.id)
            if channel == STDIN:
                if event.data:
                    self._waiting.append((STDIN, event.data))
                if event.kind != "data":
                    self._waiting.append((CLOSE, bytes((STDIN,))))
            elif channel == RESIZE and event.data:
                self._waiting.extend((RESIZE, size) for size in self._sizes.feed(event.data))
        return self._waiting.popleft()

    def send(self, channel: int, data: bytes) -> None:
        stream = self._streams.get(channel)
        if stream is not None:
            stream.write(data)

    def finish(self, status: Mapping[str, Any]) -> None:
        data = _status(status, self._protocol)
        if data:
            self._streams[STATUS].write(data)
        # Output first: a client may take the end of the error stream for the end of everything.
        for channel in (STDOUT, STDERR, STATUS, STDIN, RESIZE):
            if channel in self._streams:
                self._streams[channel].close()

    def abort(self) -> None:
        self._connection.close()


def _status(status: Mapping[str, Any], protocol: str) -> bytes:
    if protocol in _WITH_STATUS:
        return json.dumps(status, separators=(",", ":")).encode()
    if status["status"] == "Success":
        return b""
    return str(status["message"]).encode()
