"""The agent's links to all shims, and the thread that hears from them."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from runtime import state
from runtime.endings import Endings
from runtime.errors import ShimError
from runtime.known import Known
from runtime.loop import Loop
from runtime.shim_link import ShimLink
from runtime.state import READY
from runtime.values import Container, Event

log = logging.getLogger(__name__)

MISTAKE_PAUSE_SECONDS = 0.1


class Shims:
    """`links`: a sandbox's id → its shim's, as long as that lives. For any thread."""

    def __init__(self, known: Known, endings: Endings) -> None:
        self._known = known
        self._endings = endings
        self._loop = Loop()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._loop.watch(self._wake, lambda mask: self._loop.stop())
        self._thread = threading.Thread(target=self._run_events, name="runtime-events", daemon=True)
        self._lock = threading.Lock()
        self.links: dict[str, ShimLink] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Hear no more."""
        os.eventfd_write(self._wake, 1)
        if self._thread.is_alive():
            self._thread.join()

    def close(self) -> None:
        """Let go of them, after `stop`: they go on."""
        for link in self.links.values():
            link.close()
        self._loop.close()
        os.close(self._wake)

    def add(self, sandbox_id: str, connection: socket.socket) -> ShimLink:
        """The link of a new shim. It is not read from before `listen`."""
        link = ShimLink(connection, lambda message: self._handle(sandbox_id, message))
        with self._lock:
            self.links[sandbox_id] = link
        return link

    def listen(self, sandbox_id: str, link: ShimLink) -> None:
        """Have the event thread read from now on. Not before pause has started: it would have the
        interpreter's lock in the middle of that."""
        self._loop.watch(link.fileno(), lambda mask: self._read(sandbox_id, link))

    def request(self, container: Container, op: str, timeout: float, **values: Any) -> dict[str, Any]:
        """What its shim answers, which may hold "error". Raises ShimError."""
        link, answer = self.ask(container, op, **values)
        return link.wait(op, answer, timeout)

    def ask(
        self, container: Container, op: str, **values: Any
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]]]:
        """Where the answer comes. Raises ShimError."""
        link = self.links.get(container.sandbox_id)
        if link is None:
            if self._known.sandbox(container.sandbox_id).state == READY:
                self._endings.end_lost(container.sandbox_id)  # that failed when the shim went
            raise ShimError(f"Could not {op} container {container.id}: the pod's shim has gone")
        return link, link.send(op, {"container": container.id, **values})

    def _run_events(self) -> None:
        while not self._loop.stopped:
            try:
                self._loop.run()
            except Exception:
                # Without this thread the agent would be deaf for good; the next relist finds what was missed.
                log.exception("Event handling failed")
                time.sleep(MISTAKE_PAUSE_SECONDS)

    def _read(self, sandbox_id: str, link: ShimLink) -> None:
        if link.read():
            return
        self._loop.forget(link.fileno())
        with self._lock:
            if self.links.get(sandbox_id) is link:
                del self.links[sandbox_id]
        link.close()
        if not link.expected_to_end:
            log.error("Lost shim sandbox=%s (its containers are killed)", sandbox_id[:12])
            lost = threading.Thread(target=self._endings.end_lost, args=(sandbox_id,), name="runtime-lost")
            lost.start()

    def _handle(self, sandbox_id: str, message: Mapping[str, Any]) -> None:
        kind, at = message["type"], message["at"]
        if kind == "sandbox-exited":
            found = state.sandbox_state_from(message["sandbox"])
            self._known.sandbox_changed(sandbox_id, found)
            link = self.links.get(sandbox_id)
            if link is not None and link.expected_to_end:
                return  # who ends it knows, and is not to be waked by that to try the pod's start again
            self._known.tell(Event(sandbox_id, None, kind, found.exit_code, at))
            return
        container_id = message["container"]
        changed = state.container_state_from(message["state"])
        self._known.container_changed(container_id, changed)
        self._known.tell(Event(sandbox_id, container_id, kind, changed.exit_code, at))
