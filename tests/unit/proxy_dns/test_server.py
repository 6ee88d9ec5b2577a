"""The server on real sockets of loopback: UDP, TCP, another server behind it, and who is answered."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest
from dns_cluster import entry, slice_of, small

from proxy.config import ProxyConfig
from proxy.dns.forward import Forwarder
from proxy.dns.records import Names
from proxy.dns.running import DnsThread
from proxy.dns.server import CONNECTIONS, DnsConfig, DnsServer
from proxy.errors import ProxyError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


async def upstream(query: dns.message.Message, server: str, timeout: float) -> dns.message.Message:
    """A server that knows example.org, and is silent about everything else."""
    name = query.question[0].name
    if name.to_text().lower() != "example.org.":
        raise dns.exception.Timeout
    answer = dns.message.make_response(query)
    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
    return answer


@pytest.fixture
def served() -> Iterator[tuple[Names, int]]:
    names, port = small(), free_port()
    server = DnsServer(DnsConfig((LOOPBACK,), port), names, Forwarder(["198.51.100.53"], upstream))
    server.start()
    yield names, port
    server.stop()


def question(name: str, kind: str = "A") -> dns.message.Message:
    return dns.message.make_query(name, kind)


def test_both_transports_answer(served: tuple[Names, int]) -> None:
    names, port = served
    names.slice_event("MODIFIED", slice_of("db", [entry(f"10.244.1.{i}") for i in range(1, 201)]))
    query = question("db.default.svc.cluster.local")
    cut = dns.query.udp(query, LOOPBACK, 10, port)
    assert cut.flags & dns.flags.TC
    whole, by_tcp = dns.query.udp_with_fallback(query, LOOPBACK, 10, port)
    assert by_tcp and len(whole.answer[0]) == 200


@pytest.mark.parametrize("ask", [dns.query.udp, dns.query.tcp])
def test_other_names_are_asked_elsewhere(served: tuple[Names, int], ask: object) -> None:
    _, port = served
    assert callable(ask)
    found = ask(question("Example.org"), LOOPBACK, 10, port)
    assert found.answer[0][0].address == "192.0.2.1" and not found.flags & dns.flags.AA
    alias = ask(question("far.default.svc.cluster.local"), LOOPBACK, 10, port)
    assert [rrset.rdtype.name for rrset in alias.answer] == ["CNAME", "A"]
    assert ask(question("silent.example"), LOOPBACK, 10, port).rcode() == dns.rcode.SERVFAIL


def test_several_queries_on_one_connection(served: tuple[Names, int]) -> None:
    _, port = served
    with socket.create_connection((LOOPBACK, port), 10) as connection:
        for name in ("web.default.svc.cluster.local", "example.org", "none.cluster.local"):
            query = question(name)
            dns.query.send_tcp(connection, query)
            answer, _ = dns.query.receive_tcp(connection)
            assert query.is_response(answer)


def test_rubbish_does_not_disturb(served: tuple[Names, int]) -> None:
    _, port = served
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for size in range(100):
            sender.sendto(b"\xff" * size, (LOOPBACK, port))
    with socket.create_connection((LOOPBACK, port), 10) as connection:
        connection.sendall(b"\x00\x00\x00\x05hello")
        assert connection.recv(100) == b"", "closed: an empty query has no id to answer"
    found = dns.query.udp(question("web.default.svc.cluster.local"), LOOPBACK, 10, port)
    assert found.rcode() == dns.rcode.NOERROR


def test_one_sender_takes_no_more_connections_than_are_left(served: tuple[Names, int]) -> None:
    _, port = served
    query = question("web.default.svc.cluster.local").to_wire()
    sent = len(query).to_bytes(2, "big") + query
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS // 2):
            one = stack.enter_context(socket.create_connection((LOOPBACK, port), 10))
            one.sendall(sent)
            assert one.recv(2), "each of these is served"
        more = stack.enter_context(socket.create_connection((LOOPBACK, port), 10))
        assert more.recv(2) == b"", "one too many"
        other = stack.enter_context(socket.socket())
        other.settimeout(10)
        other.bind(("127.0.0.2", 0))
        other.connect((LOOPBACK, port))
        other.sendall(sent)
        assert other.recv(2), "another sender's turn"


def test_only_the_cluster_is_answered() -> None:
    config = DnsConfig(("192.0.2.10",), 53, networks=(ipaddress.ip_network("10.244.0.0/16"),))
    server = DnsServer(config, Names(), Forwarder([]))
    assert server.answers("10.244.3.4") and server.answers("192.0.2.10") and server.answers("127.0.0.1")
    assert not server.answers("192.0.2.11") and not server.answers("203.0.113.1")
    server.stop()


def test_a_taken_port_is_an_error_that_says_so() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        server = DnsServer(DnsConfig((LOOPBACK,), taken.getsockname()[1]), Names(), Forwarder([]))
        with pytest.raises(ProxyError, match=r"Could not serve DNS: .*in use"):
            server.start()


def test_the_thread_serves_until_it_is_told_to_stop() -> None:
    port, stop = free_port(), threading.Event()
    thread = DnsThread(ProxyConfig(dns_addresses=(LOOPBACK,), dns_port=port), small(), stop)
    thread.start()
    query = question("web.default.svc.cluster.local")
    for _ in range(50):  # the socket is not there at once
        try:
            assert dns.query.tcp(query, LOOPBACK, 1, port).rcode() == dns.rcode.NOERROR
            break
        except (OSError, dns.exception.Timeout):
            stop.wait(0.1)
    else:
        pytest.fail("nothing listened within 5 s")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(OSError):
        dns.query.tcp(query, LOOPBACK, 1, port)
