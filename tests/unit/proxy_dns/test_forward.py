"""Asking other servers: order, silence, lifetimes, equal questions; the network is a table."""

from __future__ import annotations

import asyncio
from pathlib import Path

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from proxy.dns.forward import Forwarder, lifetime, servers_of

NAME = dns.name.from_text("example.org")
A = dns.rdatatype.A


class Network:
    """Answers per server: a code, or None for silence. Counts what is asked."""

    def __init__(self, **servers: int | None) -> None:
        self.servers = servers
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask(self, query: dns.message.Message, server: str, timeout: float) -> dns.message.Message:
        self.asked.append(server)
        await self.gate.wait()
        code = self.servers[server]
        if code is None:
            raise dns.exception.Timeout
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.Rcode(code))
        if code == 0:
            answer.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", "192.0.2.1"))
        return answer


def run(network: Network, times: int = 1, clock: list[float] | None = None) -> list[int | None]:
    now = clock or [0.0]

    async def main() -> list[int | None]:
        forwarder = Forwarder(list(network.servers), network.ask, lambda: now[0])
        found = []
        for _ in range(times):
            answer = await forwarder.resolve(NAME, A)
            found.append(None if answer is None else int(answer.rcode()))
            now[0] += 20
        return found

    return asyncio.run(main())


def test_a_silent_server_is_asked_last_from_then_on() -> None:
    network = Network(dead=None, good=0)
    assert run(network, 4) == [0, 0, 0, 0]
    assert network.asked == ["dead", "good", "good"], "the second and fourth come from what is kept (30 s)"


def test_nobody_answers() -> None:
    network = Network(dead=None, gone=None)
    assert run(network) == [None] and network.asked == ["dead", "gone"]


def test_a_failure_of_one_server_is_no_answer_while_there_is_another() -> None:
    assert run(Network(ill=dns.rcode.SERVFAIL, good=0)) == [0]
    assert run(Network(ill=dns.rcode.SERVFAIL, closed=dns.rcode.REFUSED)) == [dns.rcode.REFUSED]
    assert run(Network(sure=dns.rcode.NXDOMAIN, other=0)) == [dns.rcode.NXDOMAIN]


def test_equal_questions_wait_for_one_answer() -> None:
    async def main() -> tuple[int, int]:
        network = Network(good=0)
        network.gate.clear()
        forwarder = Forwarder(["good"], network.ask)
        tasks = [asyncio.create_task(forwarder.resolve(NAME, A)) for _ in range(50)]
        await asyncio.sleep(0)
        network.gate.set()
        found = await asyncio.gather(*tasks)
        return len(network.asked), sum(answer is not None for answer in found)

    assert asyncio.run(main()) == (1, 50)


@pytest.mark.parametrize(
    ("answer", "authority", "code", "seconds"),
    [
        ([60], None, 0, 30),
        ([60, 7], None, 0, 7),
        ([], (60, 10), 3, 10),
        ([], (3600, 3600), 3, 30),
        ([], None, 0, 5),
        ([60], None, 2, 5),
    ],
)
def test_lifetimes(answer: list[int], authority: tuple[int, int] | None, code: int, seconds: float) -> None:
    message = dns.message.make_response(dns.message.make_query("example.org", "A"))
    message.set_rcode(dns.rcode.Rcode(code))
    for number, ttl in enumerate(answer):
        message.answer.append(dns.rrset.from_text(f"a{number}.example.org.", ttl, "IN", "A", "192.0.2.1"))
    if authority is not None:
        ttl, minimum = authority
        text = f"ns.example.org. a.example.org. 1 2 3 4 {minimum}"
        message.authority.append(dns.rrset.from_text("example.org.", ttl, "IN", "SOA", text))
    assert lifetime(message) == seconds
    assert lifetime(None) == 5


def test_what_is_kept_says_how_long_it_is_still_good_for() -> None:
    async def main() -> list[int]:
        now = [100.0]
        network = Network(good=0)
        forwarder = Forwarder(["good"], network.ask, lambda: now[0])
        found = []
        for _ in range(4):
            answer = await forwarder.resolve(NAME, A)
            assert answer is not None
            found.append(answer.answer[0].ttl)
            now[0] += 12.5
        assert network.asked == ["good", "good"]
        return found

    assert asyncio.run(main()) == [60, 48, 35, 60]


def test_our_own_address_is_not_asked(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("# made\nsearch a b\nnameserver 10.96.0.10\nnameserver 192.0.2.53\nnameserver\n")
    assert servers_of(file, ["10.96.0.10"]) == ["192.0.2.53"]
    assert servers_of(tmp_path / "none", []) == []
