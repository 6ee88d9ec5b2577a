"""Exec, attach and port-forward: from the client's protocol to the runtime's stream and back.

The request is answered with 101 before the container is asked, as upstream does, so that failures reach
the client as a v1.Status on its error channel. Then two threads work: the request's own brings the
client's bytes to the container, a second one brings the output back and ends the session.

When the command has ended, the client must still read what is under way: closing a socket on which unread
input waits would reset the connection and lose it. So after the Status we wait for the client to close.
"""

from __future__ import annotations

import json
import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kubeclient.streams import channels
from kubeclient.streams.errors import StreamError
from kubeclient.streams.spdy import SpdyConnection, SpdyStream
from kubeclient.streams.transport import ByteTransport
from kubeclient.streams.websocket import Tunnel, WebSocket
from runtime.errors import RuntimeFailure

log = logging.getLogger(__name__)

_LINGER = 5.0
_PIECE = 1 << 16
_QUEUED = 64  # pieces that may wait for a slow port before the whole connection waits

_FORWARDED = 1000  # connections of one client at a time; each may take two threads

Connect = Callable[[int], socket.socket]
"""Gives a socket connected to a port of the pod; raises OSError or LookupError with a text for the client."""


class ContainerStream(Protocol):
    """What the runtime gives for an exec or attach (runtime.streams.Stream)."""

    def send(self, channel: int, data: bytes) -> None: ...

    def receive(self) -> tuple[int, bytes] | None: ...

    def close_channel(self, channel: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """Which streams a command has."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


def serve_command(
    client: channels.RemoteCommand, start: Callable[[], ContainerStream], *, attach: bool = False
) -> None:
    """Run one exec or attach to its end; returns when the client has gone.

    `start` asks the runtime; a RuntimeFailure, LookupError or OSError it raises becomes the Status. An attach
    ends with success however the container ended, as upstream.
    """
    try:
        container = start()
    except (OSError, LookupError, RuntimeFailure) as error:
        verb = "attaching to container" if attach else "executing command in container"
        _finish(client, channels.failed(f"error {verb}: {_text(error)}"))
        _drain(client)
        return
    done = threading.Event()
    back = threading.Thread(
        target=_output, args=(client, container, attach, done), name="stream-output", daemon=True
    )
    back.start()
    try:
        _input(client, container)
    except (OSError, StreamError) as error:
        log.info("Dropped stream reason=%s", error)
    finally:
        done.set()
        container.close()
        back.join()


def _input(client: channels.RemoteCommand, container: ContainerStream) -> None:
    container_reads = True
    while (found := client.receive()) is not None:
        channel, data = found
        if not container_reads:
            continue
        try:
            if channel == channels.CLOSE:
                container.close_channel(data[0])
            else:
                container.send(channel, data)
        except OSError:
            container_reads = False  # it has ended; what the client still sends is for nobody


def _output(
    client: channels.RemoteCommand, container: ContainerStream, attach: bool, done: threading.Event
) -> None:
    status = channels.failed("the connection to the container was lost")
    try:
        while (found := container.receive()) is not None:
            channel, data = found
            if channel in (channels.STDOUT, channels.STDERR):
                client.send(channel, data)
            elif channel == channels.STATUS:
                status = _status_of(data, attach)
                break
        _finish(client, status)
        # The client closes when it has read the Status; a client that does not is dropped.
        if not done.wait(_LINGER):
            client.abort()
    except (OSError, ValueError, KeyError) as error:
        log.warning("Dropped stream reason=%r", error)
        client.abort()


def _status_of(data: bytes, attach: bool) -> dict[str, object]:
    answer = json.loads(data)
    if "error" in answer:
        verb = "attaching to container" if attach else "executing command in container"
        return channels.failed(f"error {verb}: {answer['error']}")
    return channels.success() if attach else channels.exited(int(answer["exitCode"]))


def _finish(client: channels.RemoteCommand, status: dict[str, object]) -> None:
    try:
        client.finish(status)
    except OSError as error:
        log.debug("Could not send status reason=%s", error)


def _drain(client: channels.RemoteCommand) -> None:
    timer = threading.Timer(_LINGER, client.abort)
    timer.start()
    try:
        while client.receive() is not None:
            pass
    except (OSError, StreamError):
        pass  # it only had to go
    finally:
        timer.cancel()


def _text(error: BaseException) -> str:
    return str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)


# -- port-forward over SPDY --------------------------------------------------------------------------


class _Forward:
    """One forwarded connection: a data stream, an error stream and, once both are here, a socket."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.data: SpdyStream | None = None
        self.error: SpdyStream | None = None
        self.inbox: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self.socket: socket.socket | None = None
        self.over = threading.Event()

    def put(self, piece: bytes | None) -> None:
        """Queue the client's bytes; None ends them. Waits while the port is slow, unless all is over."""
        while not self.over.is_set():
            try:
                self.inbox.put(piece, timeout=0.5)
                return
            except queue.Full:
                continue

    def finish(self) -> None:
        """No more bytes of the client's are wanted; who waits for some is told."""
        self.over.set()
        try:
            self.inbox.put_nowait(None)
        except queue.Full:
            pass  # nobody waits

    def stop(self) -> None:
        self.finish()
        if self.socket is not None:
            try:
                self.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the port's side was faster


def serve_port_forward(transport: ByteTransport, connect: Connect, describe: str) -> None:
    """Forward every connection that the client opens, until it goes.

    Each is a pair of streams, `streamtype` error and data, with the same `requestid` and a `port`. What goes
    wrong is written to the error stream as text (pkg/kubelet/cri/streaming/portforward/httpstream.go).
    """
    connection = SpdyConnection(transport)
    pairs: dict[str, _Forward] = {}
    streams: dict[int, _Forward] = {}
    try:
        while (event := connection.receive()) is not None:
            stream = event.stream
            if event.kind == "open":
                forward = _pair(pairs, stream)
                if forward is None:
                    stream.reset()
                    continue
                streams[stream.id] = forward
                if forward.data is not None and forward.error is not None:
                    _start_forward(forward, connect, describe)
                continue
            forward = streams.get(stream.id)
            if forward is None or forward.data is not stream:
                continue
            if event.data:
                forward.put(event.data)
            if event.kind != "data":
                forward.put(None)
                if event.kind == "reset":
                    forward.stop()
            _forget_finished(pairs, streams)
    except (OSError, StreamError) as error:
        log.info("Dropped port-forward target=%s reason=%s", describe, error)
    finally:
        for forward in set(streams.values()):
            forward.stop()
        connection.close()


def _pair(pairs: dict[str, _Forward], stream: SpdyStream) -> _Forward | None:
    kind, port = stream.headers.get("streamtype", ""), stream.headers.get("port", "")
    plain = port.isascii() and port.isdigit() and len(port) <= 5
    if kind not in ("error", "data") or not plain or not 0 < int(port) < 65536:
        return None
    # Clients before 1.2 sent no request id; their data stream is the one after the error stream.
    request = stream.headers.get("requestid") or str(stream.id if kind == "error" else stream.id - 2)
    if request not in pairs and len(pairs) >= _FORWARDED:
        return None
    forward = pairs.setdefault(request, _Forward(int(port)))
    if getattr(forward, kind) is not None:
        return None
    setattr(forward, kind, stream)
    return forward


def _forget_finished(pairs: dict[str, _Forward], streams: dict[int, _Forward]) -> None:
    for key in [key for key, forward in pairs.items() if forward.over.is_set()]:
        del pairs[key]
    for number in [number for number, forward in streams.items() if forward.over.is_set()]:
        del streams[number]


def _start_forward(forward: _Forward, connect: Connect, describe: str) -> None:
    threading.Thread(
        target=_forward, args=(forward, connect, describe), name="port-forward", daemon=True
    ).start()


def _forward(forward: _Forward, connect: Connect, describe: str) -> None:
    data, error = forward.data, forward.error
    assert data is not None and error is not None
    try:
        try:
            with connect(forward.port) as connected:
                forward.socket = connected
                sender = threading.Thread(target=_to_port, args=(forward, connected), daemon=True)
                sender.start()
                while piece := connected.recv(_PIECE):
                    data.write(piece)
                data.close()
                forward.finish()
                sender.join()
        except (OSError, LookupError) as problem:
            error.write(f"error forwarding port {forward.port} to pod {describe}: {_text(problem)}".encode())
        forward.over.set()
        data.close()
        error.close()
    except OSError as problem:
        log.debug("Dropped forwarded connection target=%s reason=%s", describe, problem)
    finally:
        forward.stop()


def _to_port(forward: _Forward, connected: socket.socket) -> None:
    try:
        while not forward.over.is_set():
            piece = forward.inbox.get()
            if piece is None:
                connected.shutdown(socket.SHUT_WR)
                return
            connected.sendall(piece)
    except OSError:
        pass  # the port closed; the reading side reports what there is to report


def serve_port_forward_tunnel(websocket: WebSocket, connect: Connect, describe: str) -> None:
    """SPDY inside WebSocket messages (kubectl since 1.31)."""
    serve_port_forward(Tunnel(websocket), connect, describe)


# -- port-forward over WebSocket channels ------------------------------------------------------------


def serve_port_forward_channels(
    websocket: WebSocket, ports: Sequence[int], connect: Connect, describe: str
) -> None:
    """The form of the Python and JavaScript clients: port i has data channel 2i and error channel 2i+1.

    Each channel is opened by two bytes, the port number, little endian
    (pkg/kubelet/cri/streaming/portforward/websocket.go). There is no half-close; when every port's connection
    has ended, the WebSocket is closed.
    """
    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            websocket.send(bytes((channel,)) + struct.pack("<H", port))
    connected: dict[int, socket.socket] = {}
    threads = []
    open_ports = threading.Semaphore(0)
    for index, port in enumerate(ports):
        try:
            connected[2 * index] = connect(port)
        except (OSError, LookupError) as error:
            text = f"error forwarding port {port} to pod {describe}: {_text(error)}"
            websocket.send(bytes((2 * index + 1,)) + text.encode())
            open_ports.release()
            continue
        thread = threading.Thread(
            target=_from_port, args=(websocket, 2 * index, connected[2 * index], open_ports), daemon=True
        )
        threads.append(thread)
    closer = threading.Thread(target=_close_after, args=(websocket, open_ports, len(ports)), daemon=True)
    for thread in (*threads, closer):
        thread.start()
    try:
        while (message := websocket.receive()) is not None:
            target = connected.get(message[0]) if message else None
            if target is not None and len(message) > 1:
                try:
                    target.sendall(message[1:])
                except OSError:
                    continue  # the port closed; its reader ends the channel
    except (OSError, StreamError) as error:
        log.info("Dropped port-forward target=%s reason=%s", describe, error)
    finally:
        for sock in connected.values():
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by the other side
        websocket.abort()
        for thread in (*threads, closer):
            thread.join()
        for sock in connected.values():
            sock.close()


def _from_port(websocket: WebSocket, channel: int, source: socket.socket, over: threading.Semaphore) -> None:
    try:
        while piece := source.recv(_PIECE):
            websocket.send(bytes((channel,)) + piece)
    except OSError as error:
        log.debug("Ended forwarded channel number=%d reason=%s", channel, error)
    finally:
        over.release()


def _close_after(websocket: WebSocket, over: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        over.acquire()
    websocket.close()
