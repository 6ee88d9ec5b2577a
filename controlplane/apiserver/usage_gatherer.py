"""Asks the kubelets what is used, while somebody wants to know.

metrics-server scrapes every node all the time. Here the first question wakes the gathering: every node is
asked twice, a second apart, so that the first `kubectl top` is answered at once; then every 15 seconds, until
nobody has asked for five minutes. A node that does not answer is dropped, as metrics-server does: old numbers
would look like new ones. Only /metrics/resource is read, with the API server's certificate for kubelets.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable

import aiohttp

from controlplane.apiserver.usage_samples import Samples, parse

log = logging.getLogger(__name__)

RESOLUTION = 15.0
FIRST_PAIR = 1.0
IDLE_SECONDS = 300.0
PATIENCE = 10.0  # of one request to a node
AT_ONCE = 16
_PATH = "/metrics/resource"

Target = tuple[str, str, int]
"""A node's name, its kubelet's address and port."""


class Gatherer:
    """`samples` is fresh after `awake`. Used on the loop's thread only."""

    def __init__(
        self, targets: Callable[[], Iterable[Target]], context: Callable[[], ssl.SSLContext]
    ) -> None:
        self.samples = Samples()
        self._targets, self._make_context = targets, context
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._asked_at = 0.0
        self._failed: set[str] = set()

    async def awake(self) -> None:
        """Start to gather unless that goes on; returns when every node that answers has told twice."""
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time()
        if self._task is None or self._task.done():
            self._ready.clear()
            self._task = loop.create_task(self._gather())
        waiting = loop.create_task(self._ready.wait())
        await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.result()  # what kept it from starting

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        context = self._make_context()
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        limit = asyncio.Semaphore(AT_ONCE)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(ssl=context), cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            while loop.time() - self._asked_at < IDLE_SECONDS:
                targets = list(self._targets())
                for gone in set(self.samples.nodes()) - {name for name, _, _ in targets}:
                    self.samples.drop(gone)
                await asyncio.gather(*(self._ask(session, limit, target) for target in targets))
                if any(not self.samples.complete(node) for node in self.samples.nodes()):
                    await asyncio.sleep(FIRST_PAIR)  # a node that is new to us
                    continue
                self._ready.set()
                await asyncio.sleep(RESOLUTION)
        for node in list(self.samples.nodes()):
            self.samples.drop(node)

    async def _ask(self, session: aiohttp.ClientSession, limit: asyncio.Semaphore, target: Target) -> None:
        name, host, port = target
        address = f"[{host}]" if ":" in host else host
        try:
            async with limit, session.get(f"https://{address}:{port}{_PATH}") as answer:
                answer.raise_for_status()
                scrape = parse(await answer.text())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self.samples.drop(name)
            if name not in self._failed:
                log.warning("Failed to read usage node=%s error=%s", name, error)
                self._failed.add(name)
            return
        self._failed.discard(name)
        self.samples.add(name, scrape)
