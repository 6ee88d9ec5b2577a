"""The cluster's name server on this node: UDP and TCP sockets around the responder and the forwarder.

It listens on the node's address, never on all of them, and answers only senders of the cluster: an open
resolver is an amplifier. One thread with an event loop; the index is fed by the proxy's informers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import dns.flags

from proxy.dns.answers import Network, Outside, Responder, finish
from proxy.dns.forward import Forwarder, servers_of
from proxy.dns.records import Names
from proxy.errors import ProxyError

log = logging.getLogger(__name__)

IDLE = 10.0  # seconds that a TCP connection may say nothing (RFC 7766 asks for a few)
CONNECTIONS = 200  # of which one sender gets no more than are left for others: alone a half
BACKLOG = 1 << 20  # bytes of queries the kernel keeps while Python is busy elsewhere


@dataclass(frozen=True, slots=True)
class DnsConfig:
    """`addresses` (the node's) are listened on; `service_addresses`, the Service's, are told, never asked."""

    addresses: tuple[str, ...]
    port: int
    domain: str = "cluster.local"
    service_addresses: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()  # ranges of pods and Services
    resolv_conf: Path = Path("/etc/resolv.conf")


class DnsServer:
    """`start` returns once all sockets are bound, or raises ProxyError."""

    def __init__(self, config: DnsConfig, names: Names, forwarder: Forwarder | None = None) -> None:
        ours = (*config.addresses, *config.service_addresses)
        self._config = config
        self._responder = Responder(names, config.domain, config.service_addresses, config.networks)
        self._forwarder = forwarder or Forwarder(servers_of(config.resolv_conf, ours))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dns", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: Counter[str] = Counter()
        self._closers: list[asyncio.BaseTransport | asyncio.Server] = []

    def start(self) -> None:
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:
            self.stop()
            raise ProxyError(f"Could not serve DNS: {error.strerror or error}") from error
        log.info("Serving DNS addresses=%s port=%d", ",".join(self._config.addresses), self._config.port)

    def stop(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
        if not self._loop.is_running():
            self._loop.close()

    async def _listen(self) -> None:
        for address in self._config.addresses:
            transport, _ = await self._loop.create_datagram_endpoint(
                lambda: _Datagrams(self), local_addr=(address, self._config.port)
            )
            _widen(transport)
            self._closers.append(transport)
            server = await asyncio.start_server(self._serve, address, self._config.port)
            self._closers.append(server)

    async def _close(self) -> None:
        for closer in self._closers:
            closer.close()
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close themselves in the loop's next round

    def answers(self, sender: str) -> bool:
        """Whether a sender belongs to the cluster: a pod, or this node itself."""
        address = ipaddress.ip_address(sender.partition("%")[0])
        return (
            address.is_loopback
            or str(address) in self._config.addresses
            or any(address in network for network in self._config.networks)
        )

    def answer_datagram(self, query: bytes, sender: tuple[str, int], transport: _Transport) -> None:
        found = self._responder.respond(query, udp=True)
        if isinstance(found, Outside):
            task = self._loop.create_task(self._forward_datagram(found, sender, transport))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif found is not None:
            transport.sendto(found, sender)

    async def _forward_datagram(
        self, outside: Outside, sender: tuple[str, int], transport: _Transport
    ) -> None:
        answer = await self._forward(outside)
        if not transport.is_closing():
            transport.sendto(answer, sender)

    async def _forward(self, outside: Outside) -> bytes:
        question = outside.response.question[0]
        dnssec = bool(outside.response.ednsflags & dns.flags.DO)
        found = await self._forwarder.resolve(outside.name, question.rdtype, dnssec=dnssec)
        return finish(outside, found)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One TCP connection: queries one after another, each behind its length (RFC 1035, 4.2.2)."""
        peer = writer.get_extra_info("peername")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections[peer[0]] += 1
        try:
            left = CONNECTIONS - self._connections.total()
            if self._connections[peer[0]] > left or not self.answers(peer[0]):
                return
            while True:
                size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), IDLE), "big")
                query = await asyncio.wait_for(reader.readexactly(size), IDLE)
                found = self._responder.respond(query, udp=False)
                if isinstance(found, Outside):
                    found = await self._forward(found)
                if found is None:
                    return
                writer.write(len(found).to_bytes(2, "big") + found)
                await asyncio.wait_for(writer.drain(), IDLE)
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            return  # the client went away, or sleeps
        finally:
            self._connections[peer[0]] -= 1
            if not self._connections[peer[0]]:
                del self._connections[peer[0]]
            self._tasks.discard(task)
            writer.close()
            await asyncio.sleep(0)


_Transport = asyncio.DatagramTransport


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._known: dict[str, bool] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Python 3.11's own transport does not say that it is one of datagrams.
        self._transport = cast(_Transport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        known = self._known.get(addr[0])
        if known is None:
            if len(self._known) > 10_000:
                self._known.clear()
            known = self._known[addr[0]] = self._server.answers(addr[0])
        if known:
            self._server.answer_datagram(data, addr, self._transport)


def _widen(transport: asyncio.BaseTransport) -> None:
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG)
