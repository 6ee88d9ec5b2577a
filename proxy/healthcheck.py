"""/healthz and /livez of the proxy: is what we know in the kernel?

As upstream (pkg/proxy/healthcheck/proxier_health.go): healthy as long as no change has been waiting for
longer than two sync periods. The server is a thread that sleeps until somebody asks.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from proxy.errors import ConfigError


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

    def answer(self) -> tuple[int, bytes]:
        """HTTP status and JSON body."""
        with self._lock:
            now = self._clock()
            late = self._waiting_since is not None and now - self._waiting_since > self._patience
            healthy = bool(self._updated) and not late
            body = {"lastUpdated": _stamp(self._updated), "currentTime": _stamp(now), "nodeEligible": True}
        return (200 if healthy else 503), json.dumps(body).encode()


class HealthServer:
    """Serves /healthz and /livez on `address`. Raises ConfigError when it cannot be bound."""

    def __init__(self, address: tuple[str, int], health: Health) -> None:
        handler = type("Handler", (_Handler,), {"health": health})
        try:
            self._server = ThreadingHTTPServer(address, handler)
        except OSError as error:
            host, port = address
            text = f"Could not bind {host}:{port} for healthz: {error.strerror} (use --healthz-bind-address)"
            raise ConfigError(text) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="healthz", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    health: Health
    timeout = 10

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/healthz", "/livez"):
            self.send_error(404)
            return
        status, body = self.health.answer()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds; they are not worth a line."""


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
