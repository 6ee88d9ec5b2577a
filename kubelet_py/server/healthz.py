"""Port 10248: /healthz over plain HTTP on the loopback address, for service managers and load balancers.

It answers 200 while the agent's loop turns, and 500 with the reason once it has not for two minutes, which
is upstream's sync loop check. There is nothing else on this port, and nobody is asked who they are.
"""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs, urlsplit

from kubelet_py.instruments import Instrument, Number
from kubelet_py.server.listener import Listener

log = logging.getLogger(__name__)

Check = Callable[[], str]
"""Why the agent is not healthy; "" when it is."""

SLOW_SECONDS = 120.0


def loop_check(turned_at: Callable[[], float], clock: Callable[[], float]) -> Check:
    """Healthy while the loop has turned within SLOW_SECONDS."""

    def check() -> str:
        slow = clock() - turned_at() > SLOW_SECONDS
        return "sync Loop took longer than expected" if slow else ""

    return check


class HealthChecks:
    """The agent's checks by upstream's names; each that runs is counted, for /metrics/slis.

    ping: somebody answers; log: upstream's logger works, here the same as ping; syncloop: the loop turns.
    """

    NAMES = ("ping", "log", "syncloop")

    def __init__(self, loop: Check = lambda: "") -> None:
        self._loop = loop
        self._state = Number(
            "kubernetes_healthcheck",
            "This metric records the result of a single healthcheck.",
            "name",
            "type",
            kind="gauge",
        )
        self._total = Number(
            "kubernetes_healthchecks_total",
            "This metric records the results of all healthcheck.",
            "name",
            "type",
            "status",
        )
        self.instruments: tuple[Instrument, ...] = (self._state, self._total)

    def page(self, parts: Sequence[str], query: Mapping[str, Sequence[str]]) -> tuple[int, str] | None:
        """/healthz and /healthz/NAME: code and text; None where there is no such check.

        ?verbose lists the checks, ?exclude=NAME leaves one out (apiserver's pkg/server/healthz).
        """
        if len(parts) > 1 or not set(parts) <= set(self.NAMES):
            return None
        excluded = [] if parts else [name for name in query.get("exclude", ()) if name]
        reasons = {name: self._run(name) for name in parts or self.NAMES if name not in excluded}
        failing = next(filter(None, reasons.values()), "")
        if parts or "verbose" not in query:
            return (500, f"healthz check failed: {failing}\n") if failing else (200, "ok")
        lines = [_line(name, reasons.get(name)) for name in self.NAMES]
        if unknown := sorted(set(excluded) - set(self.NAMES)):
            names = ", ".join(f'"{name}"' for name in unknown)
            lines.append(f"warn: some health checks cannot be excluded: no matches for {names}")
        lines.append(f"healthz check {'failed' if failing else 'passed'}")
        return 500 if failing else 200, "\n".join([*lines, ""])

    def _run(self, name: str) -> str:
        reason = self._loop() if name == "syncloop" else ""
        self._state.set(0 if reason else 1, name, "healthz")
        self._total.add(name, "healthz", "error" if reason else "success")
        return reason


def _line(name: str, reason: str | None) -> str:
    """None: it was left out."""
    if reason is None:
        return f"[+]{name} excluded: ok"
    return f"[-]{name} failed: {reason}" if reason else f"[+]{name} ok"


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection, one request."""

    timeout = 10.0
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d: %(message)s\n"
    server: Listener

    def do_GET(self) -> None:
        try:
            target = urlsplit(self.path)
        except ValueError:
            self._answer(400, "400: the request names no path\n")
            return
        head, *parts = [part for part in target.path.split("/") if part] or [""]
        query = parse_qs(target.query, keep_blank_values=True)
        found = self.server.owner.page(parts, query) if head == "healthz" else None
        self._answer(*(found or (404, "404 page not found\n")))

    do_HEAD = do_GET

    def _answer(self, code: int, text: str) -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def version_string(self) -> str:
        return "kubelet-py"

    def log_message(self, format: str, *args: object) -> None:
        log.debug("Served healthz client=%s", self.client_address[0])


class HealthzServer:
    """Serves until `stop`; `port` is the real one after `start`, also when 0 was asked for."""

    def __init__(self, address: str, port: int, checks: HealthChecks) -> None:
        self._address, self.port, self._checks = address, port, checks
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """A port that is taken is told, and the node does without, as upstream."""
        try:
            self._listener = Listener((self._address, self.port), _Handler, self._checks, None)
        except OSError as error:
            text = f"{error.strerror} (set another healthzPort, or 0 for none)"
            log.warning("Failed to serve healthz address=%s port=%d error=%s", self._address, self.port, text)
            return
        self.port = int(self._listener.server_address[1])
        self._thread = threading.Thread(target=self._listener.serve, name="healthz", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._listener is not None and self._thread is not None:
            self._listener.end()
            self._thread.join()
            self._listener.server_close()
