"""/healthz, /livez and /metrics of the proxy, and the health ports of Services.

As upstream (pkg/proxy/healthcheck): the proxy is healthy as long as no change has been waiting for longer
than two sync periods. A Service of type LoadBalancer with externalTrafficPolicy Local has a port of its own
on every node, where balancers ask whether this node has endpoints of it. Each server is a thread that
sleeps until somebody asks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from proxy.changes import Name, Served
from proxy.errors import ConfigError, ProxyError

log = logging.getLogger(__name__)

Answer = tuple[int, bytes, Mapping[str, str]]
"""Status, body, headers (Content-Type among them)."""
Page = Callable[[], Answer]
_JSON = {"Content-Type": "application/json"}


class Health:
    """What the proxier reports and the server answers; `clock` in seconds since the epoch."""

    def __init__(self, patience: float, clock: Callable[[], float] = time.time) -> None:
        self._patience = patience
        self._clock = clock
        self._waiting_since: float | None = None
        self._updated = 0.0
        self._lock = threading.Lock()

    def queued(self) -> None:
        with self._lock:
            if self._waiting_since is None:
                self._waiting_since = self._clock()

    def synced(self) -> None:
        with self._lock:
            self._waiting_since = None
            self._updated = self._clock()

    def healthy(self) -> bool:
        with self._lock:
            late = self._waiting_since is not None and self._clock() - self._waiting_since > self._patience
            return bool(self._updated) and not late

    def answer(self) -> Answer:
        healthy, now = self.healthy(), self._clock()
        with self._lock:
            body = {"lastUpdated": _stamp(self._updated), "currentTime": _stamp(now), "nodeEligible": True}
        return (200 if healthy else 503), json.dumps(body).encode(), _JSON


class StatusServer:
    """Serves pages by path ("" for any path) on an address. Raises ConfigError when it cannot be bound."""

    def __init__(self, address: tuple[str, int], pages: Mapping[str, Page], what: str = "healthz") -> None:
        handler = type("Handler", (_Handler,), {"pages": pages})
        server = type("Server", (_Server,), {"address_family": _family(address[0])})
        try:
            self._server = server(address, handler)
        except OSError as error:
            host, port = address
            text = f"Could not bind {host}:{port} for {what}: {error.strerror} (use --{what}-bind-address)"
            raise ConfigError(text) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name=what, daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class ServiceHealth:
    """The health ports (spec.healthCheckNodePort) of Services, opened and closed as they come and go."""

    def __init__(self, health: Health, hosts: Callable[[], Sequence[str]]) -> None:
        """`hosts`: the addresses to listen on, asked for each port, as a host's addresses change."""
        self._health = health
        self._hosts = hosts
        self._ports: dict[Name, int] = {}
        self._seen: dict[tuple[Name, int], tuple[int, int]] = {}  # its port and endpoints here, by IP version
        self._servers: dict[int, tuple[Name, list[StatusServer]]] = {}

    def change(self, version: int, changed: Mapping[Name, Served]) -> None:
        """Services of one address family changed."""
        for name, served in changed.items():
            if served:
                port = next((p.health_check_port for p, _ in served if p.health_check_port), 0)
                local = {e.ip for _, endpoints in served for e in endpoints if e.local and e.ready}
                self._seen[name, version] = (port, len(local))
            else:
                self._seen.pop((name, version), None)
            self._listen(name, max((port for port, _ in self._of(name)), default=0))

    def _of(self, name: Name) -> list[tuple[int, int]]:
        return [self._seen[name, version] for version in (4, 6) if (name, version) in self._seen]

    def _listen(self, name: Name, port: int) -> None:
        before = self._ports.get(name, 0)
        if port == before:
            return
        if before:
            del self._ports[name]
            if before in self._servers and self._servers[before][0] == name:
                _stop(self._servers.pop(before)[1])
        if port:
            self._ports[name] = port
            self._open(name, port)

    def _open(self, name: Name, port: int) -> None:
        """On all addresses or, as upstream, on none."""
        opened: list[StatusServer] = []
        try:
            hosts = self._hosts()
            for host in hosts:
                opened.append(StatusServer((host, port), {"": lambda: self._answer(name)}, "service-health"))
        except ProxyError as error:
            _stop(opened)
            # The Service works all the same; balancers will take this node for one without endpoints.
            log.error("Failed to serve health port service=%s/%s port=%d err=%s", *name, port, error)
            return
        if not hosts:
            log.warning(
                "Opened no health port: no address of this host is among nodePortAddresses "
                "service=%s/%s port=%d",
                *name,
                port,
            )
        for server in opened:
            server.start()
        self._servers[port] = (name, opened)

    def _answer(self, name: Name) -> Answer:
        # A pod of both families is one endpoint.
        count = max((local for _, local in self._of(name)), default=0)
        healthy = self._health.healthy()
        body = {
            "service": {"namespace": name[0], "name": name[1]},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        headers = {**_JSON, "X-Load-Balancing-Endpoint-Weight": str(count)}
        return (200 if count and healthy else 503), json.dumps(body).encode(), headers

    def stop(self) -> None:
        for _name, servers in self._servers.values():
            _stop(servers)
        self._servers.clear()


def _stop(servers: Sequence[StatusServer]) -> None:
    for server in servers:
        server.stop()


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """As the base's but for two things: `::` takes IPv4 in whatever the host's sysctl says, and nobody is
        asked for the host's full name: a dead name server would hold up the sync that opens a health port."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    pages: Mapping[str, Page]
    timeout = 10

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0]) or self.pages.get("")
        if page is None:
            self.send_error(404)
            return
        status, body, headers = page()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; they are not worth a line."""


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
