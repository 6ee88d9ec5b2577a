"""A container that is set up while its pod is being wired, and only waits to be let go.

Setting a container up takes longer than anything else in a pod's start, and needs neither the pod's addresses
nor its routes; only its program does. So the agent has the shim start the container as soon as pause is
there, but `held`: its process, otherwise ready, waits at a gate before its execve. The gate is a pipe of the
agent's: a byte opens it, its end does not, so a process that nobody wants any more, because the wiring has
failed or the agent was killed, has never been a container. One at a time, because the shim waits with it.
"""

from __future__ import annotations

import logging
import os
from queue import SimpleQueue
from typing import Any

from runtime.errors import ShimError
from runtime.gate import Gate
from runtime.shim_link import ShimLink
from runtime.values import Container

log = logging.getLogger(__name__)

GATE_SECONDS = 60.0


class HeldContainer:
    """What `RuntimeService.hold_container` has begun; `release_container` or `drop_container` ends it."""

    def __init__(
        self, container: Container, link: ShimLink, gate: Gate, answer: SimpleQueue[dict[str, Any]]
    ) -> None:
        self.container = container
        self._link = link
        self._gate = gate
        self._answer = answer

    @property
    def id(self) -> str:
        return self.container.id

    def go(self) -> bool:
        """Opens the gate, unless the shim has answered already: it has given up, or its process was killed.
        Whether it was opened. To be followed by `wait`."""
        waits = self._answer.empty()
        if waits:
            self._gate.open()
        else:
            self._gate.close()
        return waits

    def wait(self) -> dict[str, Any]:
        """The shim's answer. `started` is False in it if it has to be started as any other. Raises
        ShimError."""
        try:
            return self._link.wait("start container", self._answer, GATE_SECONDS)
        finally:
            self._gate.close()

    def stop(self) -> None:
        """Closes the gate, and waits until nobody is behind it."""
        self._gate.close()
        try:
            self._link.wait("let go of container", self._answer, GATE_SECONDS)
        except ShimError as error:
            log.warning("Failed to hear of held container=%s error=%s", self.id[:12], error)


def remove_log(path: str) -> None:
    """The log of one that has never been a container: its shim has opened it. What is in a log that is not
    empty is another's."""
    try:
        if path and os.lstat(path).st_size == 0:
            os.unlink(path)
    except FileNotFoundError:
        return  # the shim had not got as far
    except OSError as error:
        log.warning("Failed to remove the log of a held container path=%s error=%s", path, error)
