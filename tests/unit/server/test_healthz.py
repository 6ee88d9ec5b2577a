"""Port 10248 over a real socket."""

from __future__ import annotations

import http.client
import socket

import pytest

from kubelet_py.server.healthz import SLOW_SECONDS, HealthChecks, HealthzServer, loop_check


def ask(server: HealthzServer, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_it_is_healthy_while_the_loop_turns() -> None:
    now = [SLOW_SECONDS]
    server = HealthzServer("127.0.0.1", 0, HealthChecks(loop_check(lambda: 0.0, lambda: now[0])))
    server.start()
    try:
        assert ask(server, "/healthz") == ask(server, "/healthz/ping") == (200, "ok")
        assert [ask(server, path)[0] for path in ("/pods", "/", "/healthz/nope")] == [404] * 3
        listed = "[+]ping ok\n[+]log ok\n[+]syncloop ok\nhealthz check passed\n"
        assert ask(server, "/healthz?verbose") == (200, listed)
        now[0] += 1
        assert ask(server, "/healthz") == (
            500,
            "healthz check failed: sync Loop took longer than expected\n",
        )
        assert ask(server, "/healthz?exclude=syncloop") == (200, "ok")
        assert ask(server, "/healthz?verbose&exclude=%E2%82%AC")[1].endswith("healthz check failed\n")
        assert ask(server, "/healthz/syncloop?exclude=syncloop")[0] == 500, "it was asked for"
        code, text = ask(server, "/healthz?verbose&exclude=log&exclude=none")
        assert (code, text.splitlines()) == (
            500,
            [
                "[+]ping ok",
                "[+]log excluded: ok",
                "[-]syncloop failed: sync Loop took longer than expected",
                'warn: some health checks cannot be excluded: no matches for "none"',
                "healthz check failed",
            ],
        )
    finally:
        server.stop()


def test_a_request_without_a_path_is_refused() -> None:
    server = HealthzServer("127.0.0.1", 0, HealthChecks())
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            raw.sendall(b"GET http://[/healthz HTTP/1.0\r\n\r\n")
            assert b" 400 " in raw.recv(100)
    finally:
        server.stop()


def test_a_port_that_is_taken_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HealthzServer("127.0.0.1", taken.getsockname()[1], HealthChecks())
        server.start()
        server.stop()
    assert "set another healthzPort" in caplog.text
