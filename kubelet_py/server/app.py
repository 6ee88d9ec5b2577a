"""The kubelet's HTTPS server on port 10250: what the API server asks for logs, exec and port-forward.

It is the standard library's threading server with TLS, one thread per connection, because exec and
port-forward take the connection over: after the 101 the same socket speaks SPDY or WebSocket, and blocking
threads are the plainest way to pump two directions.

Everything is for those who may (access.py), /healthz too: port 10248 is there for strangers.
Paths, query names and texts are those of pkg/kubelet/server/server.go.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, unquote, urlsplit

from kubeclient.streams import channels
from kubeclient.streams.errors import StreamError
from kubeclient.streams.spdy import SpdyConnection
from kubeclient.streams.transport import Duplex
from kubeclient.streams.websocket import WebSocket, accept_key
from kubelet_py.server import host_logs, log_query, logs, observation, streaming, tls_settings
from kubelet_py.server import query as query_of
from kubelet_py.server.access import Access
from kubelet_py.server.errors import HttpError
from kubelet_py.server.handlers import Handlers, set_verbosity
from kubelet_py.server.healthz import HealthChecks
from kubelet_py.server.http_counts import HttpCounts
from kubelet_py.server.listener import Input, Listener, Output
from kubelet_py.server.streaming import ContainerStream
from runtime.errors import RuntimeFailure

log = logging.getLogger(__name__)

Object = dict[str, Any]

_IDLE = 120.0
_HANDSHAKE = 10.0
_CREATE_STREAMS = 30.0
_MAX_BODY = 1 << 20
_MAX_OUTPUT = 16 << 20  # of /run, kept until the end, as containerd's; a pod must not fill the agent's memory


class Backend(observation.Observed, Protocol):
    """What the server needs of the agent. LookupError carries a text for the client, in upstream's words."""

    def container_id(self, namespace: str, pod: str, container: str, uid: str | None = None) -> str: ...

    def log_path(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path: ...

    def container_running(self, namespace: str, pod: str, container: str) -> bool: ...

    def exec(
        self, container_id: str, argv: Sequence[str], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> ContainerStream: ...

    def attach(
        self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> ContainerStream: ...

    def port_forward(self, namespace: str, pod: str, port: int) -> socket.socket: ...


class KubeletServer:
    """Serves until `stop`; `port` is the real one after `start`, also when 0 was asked for."""

    def __init__(
        self,
        backend: Backend,
        *,
        address: str,
        port: int,
        cert_file: str,
        key_file: str,
        client_ca_file: str,
        access: Access,
        log_folder: Path,
        checks: HealthChecks | None = None,
        counts: HttpCounts | None = None,
        handlers: Handlers | None = None,
        limit_tls: Callable[[ssl.SSLContext], None] = lambda context: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client_ca_file = client_ca_file
        self.backend, self.access, self.clock = backend, access, clock
        self.log_folder, self.checks = log_folder, checks or HealthChecks()
        self.counts, self.handlers = counts or HttpCounts(), handlers or Handlers()
        self._limit_tls = limit_tls
        self._address = (address, port)
        self._lock = threading.Lock()
        self.use_certificate(cert_file, key_file)
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None
        self._connections: set[Duplex] = set()

    def _make_context(self, cert_file: str, key_file: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._limit_tls(context)
        context.load_cert_chain(cert_file, key_file)
        if self._client_ca_file:
            context.load_verify_locations(self._client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL  # whoever shows none may have a token
        context.set_alpn_protocols(["http/1.1"])
        return context

    def use_certificate(self, cert_file: str, key_file: str) -> None:
        """Show another one to those who connect from now on; open connections stay. Raises OSError."""
        files = tls_settings.Files(cert_file, key_file, self._client_ca_file)
        context = self._make_context(cert_file, key_file)
        with self._lock:
            self._shown, self._files, self._context = (cert_file, key_file), files, context

    def context(self) -> ssl.SSLContext:
        """For the next connection: with the files as they are now, or as they were while they do not fit
        together."""
        with self._lock:
            shown, changed = self._shown, self._files.changed()
        if changed:
            try:
                self.use_certificate(*shown)
                log.info("Read the serving certificate again file=%s", shown[0])
            except OSError as error:
                log.warning("Failed to read the serving certificate again file=%s error=%s", shown[0], error)
        return self._context

    @property
    def port(self) -> int:
        return self._address[1] if self._listener is None else int(self._listener.server_address[1])

    def start(self) -> None:
        """Bind and serve in a thread; raises OSError when the port is taken."""
        self._listener = Listener(self._address, _Handler, self, self.context)
        self._thread = threading.Thread(target=self._listener.serve, name="kubelet-server", daemon=True)
        self._thread.start()
        log.info("Started kubelet server address=%s port=%d", self._address[0], self.port)

    def stop(self) -> None:
        """Stop listening and end every open connection."""
        if self._listener is None:
            return
        self._listener.end()
        if self._thread is not None:
            self._thread.join()
        self._listener.server_close()
        with self._lock:
            for connection in self._connections:
                connection.close()

    def remember(self, connection: Duplex) -> None:
        with self._lock:
            self._connections.add(connection)

    def forget(self, connection: Duplex) -> None:
        with self._lock:
            self._connections.discard(connection)


class _Handler(BaseHTTPRequestHandler):
    """One connection: requests one after another, until one of them takes it over."""

    protocol_version = "HTTP/1.1"
    # What is no request at all is answered by the base class, whose page would be HTML.
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d: %(message)s\n"
    server: Listener
    request: ssl.SSLSocket

    def setup(self) -> None:
        self._duplex = Duplex(self.request)
        self.server.owner.remember(self._duplex)
        self._input = Input(self._duplex)
        self.rfile = self._input  # type: ignore[assignment]
        self.wfile = Output(self._duplex)  # type: ignore[assignment]
        self._body = b""
        self._answered = False

    def handle(self) -> None:
        try:
            self._duplex.settimeout(_HANDSHAKE)
            self._duplex.handshake()
            self._duplex.settimeout(_IDLE)
            super().handle()
        except (OSError, StreamError) as error:
            log.debug("Closed connection client=%s reason=%s", self.client_address[0], error)

    def finish(self) -> None:
        self.server.owner.forget(self._duplex)
        self._duplex.release()

    def do_GET(self) -> None:
        self._dispatch()

    # Each method is judged before it is told that the path does not have it.
    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("Served request client=%s %s", self.client_address[0], format % args)

    # -- the way of a request ------------------------------------------------------------------------

    def _dispatch(self) -> None:
        self._answered = False
        try:
            self._read_body()
            try:
                target = urlsplit(self.path)
            except ValueError as error:
                raise HttpError(400, "400: the request names no path\n") from error
            parts = [unquote(part) for part in target.path.split("/") if part]
            query = parse_qs(target.query, keep_blank_values=True)
            if self._body and self.headers.get("Content-Type", "").startswith(
                "application/x-www-form-urlencoded"
            ):
                query |= parse_qs(self._body.decode("utf-8", "replace"), keep_blank_values=True)
            known = bool(parts) and (parts[0] in self._ROUTES or parts[0] in observation.PAGES)
            with self.server.owner.counts.request(self.command, parts, known=known):
                self._route(target.path, parts, query)
        except HttpError as error:
            if self._answered:
                raise BrokenPipeError(error.message) from error
            self._text(error.code, error.message, error.headers)
        except StreamError as error:
            log.info("Dropped request path=%s reason=%s", self.path, error)
            self.close_connection = True

    def _route(self, path: str, parts: list[str], query: dict[str, list[str]]) -> None:
        head = parts[0] if parts else ""
        authorization = self.headers.get("Authorization", "")
        self.server.owner.access.check(self.request.getpeercert(), authorization, self.command, path)
        if reason := self.server.owner.handlers.refusal(parts):
            raise HttpError(405, f"{reason}\n")
        route = self._ROUTES.get(head)
        if head in observation.PAGES:
            route = (("GET",), partial(_Handler._page, head=head))
        if route is None:
            raise HttpError(404, "404 page not found\n")
        methods, call = route
        if self.command not in methods and not (self.command == "HEAD" and "GET" in methods):
            raise HttpError(405, "405: Method Not Allowed", (("Allow", ", ".join(methods)),))
        call(self, parts[1:], query)

    def _read_body(self) -> None:
        length = self.headers.get("Content-Length", "0")
        plain = length.isascii() and length.isdigit() and len(length) < 20
        if not plain or int(length) > _MAX_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise HttpError(413, "request body is too large or of unknown length")
        self._body = self._input.read(int(length))

    def _text(
        self,
        code: int,
        text: str,
        headers: Sequence[tuple[str, str]] = (),
        kind: str = "text/plain; charset=utf-8",
    ) -> None:
        self._bytes(code, text.encode(), kind, headers)

    def _bytes(self, code: int, data: bytes, kind: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._head(code, kind, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, code: int, kind: str, size: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._answered = True
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def version_string(self) -> str:
        return "kubelet-py"

    # -- plain answers -------------------------------------------------------------------------------

    def _healthz(self, parts: list[str], query: dict[str, list[str]]) -> None:
        found = self.server.owner.checks.page(parts, query)
        if found is None:
            raise HttpError(404, "404 page not found\n")
        self._text(*found)

    def _page(self, parts: list[str], query: dict[str, list[str]], *, head: str) -> None:
        owner = self.server.owner
        if (head, parts) == ("metrics", ["slis"]):
            self._bytes(200, *observation.instruments_answer(owner.checks.instruments))
        else:
            self._bytes(200, *observation.PAGES[head](owner.backend, parts, query))

    def _debug(self, parts: list[str], query: dict[str, list[str]]) -> None:
        self._text(200, set_verbosity(self.command, parts, self._body, logging.getLogger()))

    def _logs(self, parts: list[str], query: dict[str, list[str]]) -> None:
        folder = self.server.owner.log_folder
        if self.server.owner.handlers.log_query:
            if (asked := log_query.parse(query)) is not None:
                if parts:
                    raise HttpError(406, "path not allowed in query mode\n")
                asked.check(folder)
                if asked.services:
                    self._pieces(log_query.answer(asked, folder, log_query.run))
                    return
                parts = [part for part in asked.files[0].split("/") if part]
        elif "query" in query:
            raise HttpError(403, "node log query is not served by this node (enableSystemLogQuery)\n")
        found = host_logs.open_below(folder, parts)
        if isinstance(found, str):
            if not urlsplit(self.path).path.endswith("/"):
                place = (parts or ["logs"])[-1]
                raise HttpError(301, "", (("Location", f"{quote(place)}/"),))
            self._text(200, found, kind="text/html; charset=utf-8")
            return
        try:
            self._head(200, "text/plain; charset=utf-8", found.size)
            for piece in found.pieces() if self.command != "HEAD" else ():
                self.wfile.write(piece)
        finally:
            os.close(found.descriptor)

    def _container_logs(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if len(parts) != 3:
            raise HttpError(404, "404 page not found\n")
        namespace, pod, container = parts
        owner = self.server.owner
        options = logs.parse_options(query, owner.clock())
        try:
            path = owner.backend.log_path(namespace, pod, container, previous=options.previous)
        except LookupError as error:
            raise _lookup_failed(error, 400) from error
        watch = logs.Watch(self._duplex.fileno() if options.follow else None)
        pieces = logs.read_log(
            path,
            options,
            running=lambda: self._writes_to(path, namespace, pod, container),
            gone=self._duplex.peer_closed,
            watch=watch,
        )
        try:
            # The first piece may already fail; after the head of the answer it could not be told any more.
            first = next(pieces, None) if not options.follow else b""
        except OSError as error:
            raise HttpError(
                500, f"failed to try resolving symlinks in path {path}: {error.strerror}"
            ) from error
        try:
            self._chunked_head()
            if first:
                self._chunk(first)
            for piece in pieces:
                self._chunk(piece)
            self.wfile.write(b"0\r\n\r\n")
        except FileNotFoundError:
            self._chunk(f"unable to retrieve container logs: {path} does not exist\n".encode())
            self.wfile.write(b"0\r\n\r\n")
        finally:
            pieces.close()
            watch.close()

    def _writes_to(self, path: Path, namespace: str, pod: str, container: str) -> bool:
        """Whether the log may still grow: a container that was started again writes to a log of its own."""
        backend: Backend = self.server.owner.backend
        try:
            current = backend.log_path(namespace, pod, container, previous=False)
        except LookupError:
            return False
        return current == path and backend.container_running(namespace, pod, container)

    def _pieces(self, pieces: Iterator[bytes]) -> None:
        """All of them, as they come."""
        self._chunked_head()
        for piece in pieces if self.command != "HEAD" else ():
            self._chunk(piece)
        self.wfile.write(b"0\r\n\r\n" if self.command != "HEAD" else b"")

    def _chunked_head(self) -> None:
        self._answered = True
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        if data:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _run(self, parts: list[str], query: dict[str, list[str]]) -> None:
        namespace, pod, uid, container = query_of.container_path(parts)
        backend: Backend = self.server.owner.backend
        argv = " ".join(query.get("cmd", [])).split(" ")
        if not argv[0]:
            raise HttpError(400, "cmd must be given")
        identifier = _container_id(backend, namespace, pod, container, uid)
        try:
            stream = backend.exec(identifier, argv, tty=False, stdin=False, stdout=True, stderr=True)
        except (OSError, LookupError, RuntimeFailure) as error:
            raise HttpError(500, f"error executing command in container: {error}") from error
        output, end = bytearray(), b"{}"
        try:
            while (found := stream.receive()) is not None:
                channel, data = found
                if channel in (channels.STDOUT, channels.STDERR):
                    output += data[: _MAX_OUTPUT - len(output)]
                elif channel == channels.STATUS:
                    end = data
                    break
        finally:
            stream.close()
        import orjson

        answer = orjson.loads(end)
        if answer.get("exitCode") != 0:
            reason = answer.get("error") or f"command terminated with exit code {answer.get('exitCode')}"
            text = output.decode("utf-8", "replace")
            raise HttpError(500, f"error executing command in container: {reason}\n{text}")
        self._bytes(200, bytes(output), "text/plain; charset=utf-8")

    # -- upgrades ------------------------------------------------------------------------------------

    def _exec(self, parts: list[str], query: dict[str, list[str]]) -> None:
        self._command(parts, query, attach=False)

    def _attach(self, parts: list[str], query: dict[str, list[str]]) -> None:
        self._command(parts, query, attach=True)

    def _command(self, parts: list[str], query: dict[str, list[str]], *, attach: bool) -> None:
        namespace, pod, uid, container = query_of.container_path(parts)
        options = query_of.stream_options(query)
        argv = query.get("command", [])
        if not attach and not argv:
            raise HttpError(400, "you must specify at least 1 command to execute")
        backend: Backend = self.server.owner.backend
        identifier = _container_id(backend, namespace, pod, container, uid)

        def start() -> ContainerStream:
            settings = {
                "tty": options.tty,
                "stdin": options.stdin,
                "stdout": options.stdout,
                "stderr": options.stderr,
            }
            if attach:
                return backend.attach(identifier, **settings)
            return backend.exec(identifier, argv, **settings)

        if self._wants_websocket():
            protocol = self._accept_websocket(channels.WEBSOCKET_PROTOCOLS)
            greeting = (
                channels.STDOUT if options.stdout else channels.STDERR if options.stderr else channels.STATUS
            )
            websocket = WebSocket(self._duplex, self._input.rest())
            client: channels.RemoteCommand = channels.WebSocketCommand(
                websocket, protocol or "channel.k8s.io", greeting=greeting
            )
        else:
            protocol = self._accept_spdy(channels.SPDY_PROTOCOLS)
            spdy = channels.SpdyCommand(
                SpdyConnection(self._duplex, self._input.rest()), protocol or "channel.k8s.io"
            )
            self._duplex.settimeout(_CREATE_STREAMS)
            spdy.open(stdin=options.stdin, stdout=options.stdout, stderr=options.stderr, tty=options.tty)
            client = spdy
        self._duplex.settimeout(None)
        streaming.serve_command(client, start, attach=attach)

    def _port_forward(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if len(parts) not in (2, 3):
            raise HttpError(404, "404 page not found\n")
        namespace, pod = parts[:2]
        backend: Backend = self.server.owner.backend
        if not any(_is_pod(item, namespace, pod) for item in backend.pods()):
            raise HttpError(404, "pod does not exist")

        def connect(port: int) -> socket.socket:
            return backend.port_forward(namespace, pod, port)

        describe = f"{namespace}/{pod}"
        if not self._wants_websocket():
            self._accept_spdy((channels.PORT_FORWARD_SPDY,))
            self._duplex.settimeout(None)
            streaming.serve_port_forward(self._duplex, connect, describe)
            return
        ports = query_of.ports(query)
        supported = (channels.PORT_FORWARD_TUNNEL, *(channels.PORT_FORWARD_WEBSOCKET if ports else ()))
        protocol = self._accept_websocket(supported)
        self._duplex.settimeout(None)
        websocket = WebSocket(self._duplex, self._input.rest())
        if protocol == channels.PORT_FORWARD_TUNNEL:
            streaming.serve_port_forward_tunnel(websocket, connect, describe)
        else:
            streaming.serve_port_forward_channels(websocket, ports, connect, describe)

    def _wants_websocket(self) -> bool:
        connection = self.headers.get("Connection", "").lower()
        upgrade = self.headers.get("Upgrade", "")
        if "upgrade" not in connection or not upgrade:
            raise HttpError(
                400, f"unable to upgrade: missing upgrade headers in request: Connection={connection!r}"
            )
        if upgrade.lower() == "websocket":
            return True
        if upgrade.upper() != "SPDY/3.1":
            raise HttpError(400, f"unable to upgrade: unable to find a known protocol in {upgrade!r}")
        return False

    def _accept_spdy(self, supported: Sequence[str]) -> str:
        offered = query_of.listed(self.headers.get_all("X-Stream-Protocol-Version", []))
        chosen = channels.choose(offered, supported)
        if offered and chosen is None:
            accepted = tuple(("X-Accepted-Stream-Protocol-Versions", name) for name in supported)
            raise HttpError(
                403, f"unable to upgrade: unable to negotiate protocol: client supports {offered}", accepted
            )
        head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        if chosen:
            head += f"X-Stream-Protocol-Version: {chosen}\r\n"
        self._take_over(head)
        return chosen or ""

    def _accept_websocket(self, supported: Sequence[str]) -> str:
        key = self.headers.get("Sec-WebSocket-Key", "")
        if not key or self.headers.get("Sec-WebSocket-Version") != "13":
            raise HttpError(400, "not a WebSocket request of version 13", (("Sec-WebSocket-Version", "13"),))
        offered = query_of.listed(self.headers.get_all("Sec-WebSocket-Protocol", []))
        chosen = channels.choose(offered, supported)
        if offered and chosen is None:
            raise HttpError(
                400, f"requested protocol(s) are not supported: {offered}; supports {list(supported)}"
            )
        head = (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n"
        )
        if chosen:
            head += f"Sec-WebSocket-Protocol: {chosen}\r\n"
        self._take_over(head)
        return chosen or ""

    def _take_over(self, head: str) -> None:
        self._answered = True
        self.close_connection = True
        self._duplex.sendall(f"{head}\r\n".encode())

    _ROUTES: dict[
        str, tuple[tuple[str, ...], Callable[[_Handler, list[str], dict[str, list[str]]], None]]
    ] = {
        "healthz": (("GET",), _healthz),
        "debug": (("GET", "POST", "PUT", "PATCH", "DELETE"), _debug),
        "logs": (("GET",), _logs),
        "containerLogs": (("GET",), _container_logs),
        "run": (("POST",), _run),
        "exec": (("GET", "POST"), _exec),
        "attach": (("GET", "POST"), _attach),
        "portForward": (("GET", "POST"), _port_forward),
    }


def _container_id(backend: Backend, namespace: str, pod: str, container: str, uid: str | None) -> str:
    try:
        return backend.container_id(namespace, pod, container, uid)
    except LookupError as error:
        raise _lookup_failed(error, 500) from error


def _lookup_failed(error: LookupError, otherwise: int) -> HttpError:
    text = str(error.args[0]) if error.args else "not found"
    missing = text.rstrip().endswith("does not exist") or "not found in pod" in text
    return HttpError(404 if missing else otherwise, text)


def _is_pod(item: Object, namespace: str, name: str) -> bool:
    metadata = item.get("metadata", {})
    return bool(metadata.get("namespace") == namespace and metadata.get("name") == name)
