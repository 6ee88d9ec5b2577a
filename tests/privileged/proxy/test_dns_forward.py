"""Asking a real server on port 53 of a loopback address, by UDP, and by TCP where the answer was cut."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import dns.name
import dns.rdatatype
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "unit/proxy_dns"))

from dns_cluster import entry, slice_of, small

from proxy.dns.forward import Forwarder
from proxy.dns.server import DnsConfig, DnsServer

pytestmark = pytest.mark.privileged

SERVER = "127.53.0.53"


def test_a_real_server_is_asked() -> None:
    names = small()
    names.slice_event("MODIFIED", slice_of("db", [entry(f"10.244.1.{i}") for i in range(1, 201)]))
    server = DnsServer(DnsConfig((SERVER,), 53), names, Forwarder([]))
    server.start()

    async def ask(name: str) -> int:
        # Nothing listens on the first one: its refusal must lead to the second.
        found = await Forwarder(["127.53.0.54", SERVER]).resolve(dns.name.from_text(name), dns.rdatatype.A)
        assert found is not None
        return len(found.answer[0])

    try:
        assert asyncio.run(ask("web.default.svc.cluster.local")) == 1
        assert asyncio.run(ask("db.default.svc.cluster.local")) == 200
    finally:
        server.stop()
