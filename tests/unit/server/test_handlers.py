"""Pages that an administrator switches off, the log's level, and the versions of TLS that are spoken."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from kubelet_py.paths import NodePaths
from kubelet_py.port import Port
from kubelet_py.server import tls_settings
from kubelet_py.server.errors import HttpError
from kubelet_py.server.handlers import Handlers, set_verbosity
from kubelet_py.server.healthz import HealthChecks
from tests.unit.server.live_server import Node

OFF = "Debug endpoints are disabled."


@pytest.fixture
def closed(node: Node) -> Iterator[Node]:
    """The node without debugging handlers."""
    node.server.handlers = Handlers(debugging=False)
    yield node
    node.server.handlers = Handlers()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/exec/default/web/main?command=x&output=1", "POST"), ("/attach/default/web/main?output=1", "POST"),
        ("/portForward/default/web", "POST"), ("/run/default/web/main?cmd=id", "POST"),
        ("/containerLogs/default/web/main", "GET"), ("/runningpods/", "GET"), ("/logs/", "GET"),
        ("/debug/pprof/heap", "GET"),
    ],
)  # fmt: skip
def test_debugging_handlers_can_be_switched_off(closed: Node, path: str, method: str) -> None:
    assert closed.get(path, method) == (405, f"{OFF}\n")


def test_what_is_no_debugging_stays_without_its_handlers(closed: Node) -> None:
    assert [closed.get(path)[0] for path in ("/pods", "/healthz", "/metrics", "/configz")] == [200] * 4
    assert closed.get("/debug/flags/v", "PUT") == (405, "flags endpoint is disabled.\n")


def test_single_pages_can_be_switched_off(node: Node) -> None:
    assert node.get("/debug/pprof/") == (405, "profiling endpoint is disabled.\n")
    node.server.handlers = Handlers(system_logs=False, flags=False)
    try:
        assert node.get("/logs/") == (405, "logs endpoint is disabled.\n")
        assert node.get("/debug/flags/v", "PUT") == (405, "flags endpoint is disabled.\n")
        assert node.get("/runningpods/")[0] == 200
    finally:
        node.server.handlers = Handlers()


def test_who_may_not_does_not_learn_what_is_switched_off(closed: Node) -> None:
    connection = closed.http(closed.pki.issue("nobody"))
    connection.request("GET", "/logs/")
    assert connection.getresponse().status == 403
    connection.close()


def test_the_logs_level_can_be_set_while_the_agent_runs(node: Node) -> None:
    logger = logging.getLogger("test-of-verbosity")
    for text, level in (("4", logging.DEBUG), ("2", logging.INFO)):
        said = set_verbosity("PUT", ["flags", "v"], text.encode(), logger)
        assert said == f"successfully set klog.logging.verbosity to {text}" and logger.level == level
    for method, parts, body, code in (
        ("GET", ["flags", "v"], b"", 406),
        ("PUT", ["flags", "v"], b"loud", 400),
        ("PUT", ["flags", "w"], b"1", 404),
        ("GET", [], b"", 404),
    ):
        with pytest.raises(HttpError) as caught:
            set_verbosity(method, parts, body, logger)
        assert caught.value.code == code
    assert node.get("/debug/flags/v") == (406, "unsupported http method")


@pytest.mark.parametrize(
    ("least", "suites", "offered", "spoken"),
    [
        ("", (), ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        ("VersionTLS13", (), ssl.TLSVersion.TLSv1_2, ""),
        ("VersionTLS13", (), ssl.TLSVersion.TLSv1_3, "TLSv1.3"),
        ("", ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
         ssl.TLSVersion.TLSv1_2, "TLSv1.2"),
        ("", ("TLS_AES_128_GCM_SHA256",), ssl.TLSVersion.TLSv1_2, ""),
    ],
)  # fmt: skip
def test_the_port_speaks_the_versions_and_suites_that_are_asked_for(
    node: Node, least: str, suites: tuple[str, ...], offered: ssl.TLSVersion, spoken: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = node.pki.issue("kubelet")
    context.load_cert_chain(certificate, key)
    partial(tls_settings.limit, version=least, suites=suites)(context)
    client = node.context(node.admin)
    client.maximum_version = offered
    found = handshake(context, client)
    assert (found and found.version()) == (spoken or None)
    if suites and spoken:
        assert found is not None and "AES128-GCM-SHA256" in found.cipher()[0]  # type: ignore[index]


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject | None:
    """Between two memories; None where both have no version or suite in common."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return None
    return ends[1]


def test_what_tls_cannot_be_is_refused_by_name() -> None:
    for version, suites, says in (
        ("VersionTLS11", (), "tlsMinVersion 'VersionTLS11'"),
        ("1.3", (), "VersionTLS12 or VersionTLS13"),
        ("", ("TLS_RSA_WITH_3DES_EDE_CBC_SHA",), "unknown TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
    ):
        with pytest.raises(ConfigError, match=says):
            tls_settings.check(version, suites)
    tls_settings.check("VersionTLS13", ("TLS_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305"))


def test_the_port_stays_closed_where_there_is_to_be_no_server(tmp_path: Path) -> None:
    opened: list[object] = []
    serving = SimpleNamespace(configured=lambda: True, start=opened.append, stop=lambda: None)
    for enabled in (False, True):
        port = Port(
            config=replace(Config(), enable_server=enabled),
            paths=NodePaths(tmp_path),
            node_name="n1",
            node_ip="127.0.0.1",
            client=None,
            serving=serving,  # type: ignore[arg-type]
            backend=lambda more: pytest.fail("nobody asked for it"),
            checks=HealthChecks(),
        )
        port.start(lambda: True)
        port.stop()
        assert len(opened) == int(enabled)
