"""What the agent knows of its sandboxes and containers, and who wants to hear when that changes.

It is only what was read last from the disk or a shim, so that listing asks nobody. An end is final: news that
come late do not make a container run again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from runtime.errors import NotFoundError
from runtime.state import EXITED, ContainerState, SandboxState
from runtime.values import Container, Event, Sandbox
from runtime.views import sandbox_from, with_state

log = logging.getLogger(__name__)


class Known:
    """Sandboxes and containers by id. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sandboxes: dict[str, Sandbox] = {}
        self._containers: dict[str, Container] = {}
        self._subscribers: list[Callable[[Event], None]] = []

    def subscribe(self, callback: Callable[[Event], None]) -> None:
        self._subscribers.append(callback)

    def tell(self, event: Event) -> None:
        for callback in self._subscribers:
            try:
                callback(event)
            except Exception:
                log.exception("Subscriber failed event=%s sandbox=%s", event.type, event.sandbox_id[:12])

    # sandboxes

    def sandboxes(self) -> list[Sandbox]:
        with self._lock:
            return list(self._sandboxes.values())

    def has_sandbox(self, sandbox_id: str) -> bool:
        return sandbox_id in self._sandboxes

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Raises NotFoundError."""
        found = self._sandboxes.get(sandbox_id)
        if found is None:
            raise NotFoundError(f"Could not find sandbox {sandbox_id}: no such sandbox")
        return found

    def add_sandbox(self, sandbox: Sandbox) -> None:
        with self._lock:
            self._sandboxes[sandbox.id] = sandbox

    def forget_sandbox(self, sandbox_id: str) -> bool:
        """Whether it was known."""
        with self._lock:
            return self._sandboxes.pop(sandbox_id, None) is not None

    def sandbox_changed(self, sandbox_id: str, found: SandboxState) -> None:
        with self._lock:
            known = self._sandboxes.get(sandbox_id)
            if known is not None:
                self._sandboxes[sandbox_id] = sandbox_from(known.id, known.created_at, known.config, found)

    # containers

    def containers(self) -> list[Container]:
        with self._lock:
            return list(self._containers.values())

    def find_container(self, container_id: str) -> Container | None:
        return self._containers.get(container_id)

    def container(self, container_id: str) -> Container:
        """Raises NotFoundError."""
        found = self._containers.get(container_id)
        if found is None:
            raise NotFoundError(f"Could not find container {container_id}: no such container")
        return found

    def add_container(self, container: Container) -> None:
        with self._lock:
            self._containers[container.id] = container

    def forget_container(self, container_id: str) -> bool:
        """Whether it was known."""
        with self._lock:
            return self._containers.pop(container_id, None) is not None

    def container_changed(self, container_id: str, found: ContainerState) -> None:
        with self._lock:
            known = self._containers.get(container_id)
            if known is not None and known.state != EXITED:
                self._containers[container_id] = with_state(known, found)
