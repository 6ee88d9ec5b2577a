"""Questions about other names: asked of the node's own name servers, and remembered for a while.

Each question leaves from a port and with an id of its own, and only an answer from the server asked that
repeats the question counts (dnspython checks it; RFC 5452). A server that is silent for `TIMEOUT` costs the
next question nothing: the one that answered last is asked first. Equal questions wait for one answer. The
lifetimes follow CoreDNS's `cache 30`: as said by the records, 30 s at most, failures 5 s. What is repeated
says how long it is still good for (RFC 1035, 3.2.1).
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

log = logging.getLogger(__name__)

TIMEOUT = 2.0  # seconds for one server
LONGEST = 30
FAILURE = 5
KEPT = 10_000
AT_ONCE = 1000

Ask = Callable[[dns.message.Message, str, float], Awaitable[dns.message.Message]]
Key = tuple[dns.name.Name, int, bool]


@dataclass(frozen=True, slots=True)
class _Kept:
    since: float
    until: float
    message: dns.message.Message | None  # None: nobody answered


async def ask_over_network(query: dns.message.Message, server: str, timeout: float) -> dns.message.Message:
    """One question to one server, by UDP, and by TCP where the answer was cut short."""
    answer, _ = await dns.asyncquery.udp_with_fallback(
        query, server, timeout=timeout, ignore_unexpected=True, ignore_errors=True
    )
    return answer


class Forwarder:
    """`resolve` never raises; None means that no server gave an answer."""

    def __init__(
        self, servers: Sequence[str], ask: Ask = ask_over_network, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._servers = list(servers)
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._asked: dict[Key, asyncio.Future[dns.message.Message | None]] = {}

    async def resolve(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, *, dnssec: bool = False
    ) -> dns.message.Message | None:
        key = (name, int(kind), dnssec)
        kept = self._kept.get(key)
        now = self._clock()
        if kept is not None and kept.until > now:
            self._kept.move_to_end(key)
            return aged(kept.message, int(now - kept.since))
        running = self._asked.get(key)
        if running is not None:
            return await asyncio.shield(running)
        if len(self._asked) >= AT_ONCE:
            return None
        running = asyncio.get_running_loop().create_future()
        self._asked[key] = running
        try:
            found = await self._from_servers(name, kind, dnssec)
            self._keep(key, found)
            running.set_result(found)
            return found
        finally:
            del self._asked[key]
            if not running.done():
                running.set_result(None)

    async def _from_servers(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, dnssec: bool
    ) -> dns.message.Message | None:
        failed: dns.message.Message | None = None
        for server in list(self._servers):
            query = dns.message.make_query(name, kind, use_edns=0, payload=1232, want_dnssec=dnssec)
            try:
                answer = await self._ask(query, server, TIMEOUT)
            except (dns.exception.DNSException, OSError, EOFError) as error:
                log.debug("Failed to ask server=%s name=%s err=%s", server, name, error)
                self._servers.remove(server)
                self._servers.append(server)
                continue
            if answer.rcode() not in (dns.rcode.SERVFAIL, dns.rcode.REFUSED):
                return answer
            failed = answer
        return failed

    def _keep(self, key: Key, message: dns.message.Message | None) -> None:
        now = self._clock()
        self._kept[key] = _Kept(now, now + lifetime(message), message)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def lifetime(message: dns.message.Message | None) -> float:
    """PURE: seconds that an answer may be repeated: its shortest record, or its SOA's minimum (RFC 2308)."""
    if message is None or message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return FAILURE
    ttls = [rrset.ttl for rrset in message.answer]
    if not ttls:
        soas = [rrset for rrset in message.authority if rrset.rdtype == dns.rdatatype.SOA]
        ttls = [min(rrset.ttl, rrset[0].minimum) for rrset in soas] or [FAILURE]
    return min(LONGEST, *ttls)


def aged(message: dns.message.Message | None, seconds: int) -> dns.message.Message | None:
    """PURE: the answer as it is after a while: each record good for that much less."""
    if message is None or seconds <= 0:
        return message
    older = copy.copy(message)
    older.sections = [[_older(rrset, seconds) for rrset in section] for section in message.sections]
    return older


def _older(rrset: dns.rrset.RRset, seconds: int) -> dns.rrset.RRset:
    made: dns.rrset.RRset = copy.copy(rrset)
    made.ttl = max(0, rrset.ttl - seconds)
    return made


def servers_of(resolv_conf: Path, ours: Sequence[str]) -> list[str]:
    """The name servers of a resolv.conf, without ourselves: a question must not go round."""
    try:
        lines = resolv_conf.read_text(errors="replace").splitlines()
    except OSError as error:
        log.warning("Could not read %s: %s (names outside of the cluster fail)", resolv_conf, error.strerror)
        return []
    words = [line.split() for line in lines]
    found = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
    return [server for server in found if server not in ours]
