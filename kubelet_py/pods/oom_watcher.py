"""The OOM kill of a child process, made visible: an Event on the pod, while its container goes on.

Upstream shows only the kill of a container's first process (reason OOMKilled); where a worker of many is
killed the pod looks well, and limps (kubernetes#50632, #100483). The reason is the one that
node-problem-detector gives such a kill in the kernel's log, OOMKilling; there it is an Event of the node and
names no pod.

The runtime's thread that tells of a kill must not wait, and it may tell before the pods of an agent that has
just started are known; so kills are collected, and the agent's loop looks at them once a second.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from kubelet_py.pods.containers import Event as Tell
from kubelet_py.pods.model import LABEL_POD_UID, Object
from runtime.errors import NotFoundError
from runtime.service import Event, RuntimeService

log = logging.getLogger(__name__)

REASON = "OOMKilling"
KEPT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Kill:
    container_id: str
    at: float


class OomWatcher:
    """`heard` is the runtime's subscriber; `look` tells of what was heard. `pod(uid)` knows this node's
    pods."""

    def __init__(self, runtime: RuntimeService, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._runtime = runtime
        self._clock = clock
        self._heard: queue.SimpleQueue[_Kill] = queue.SimpleQueue()

    def heard(self, event: Event) -> None:
        """A kill that has ended its container comes with an exit code, and is told as the container's end."""
        if event.type == "oom" and event.exit_code is None and event.container_id is not None:
            self._heard.put(_Kill(event.container_id, self._clock()))

    def look(self, pod: Callable[[str], Object | None], tell: Tell) -> None:
        """Tell of all kills whose pod is known; the others wait a minute for it."""
        for _ in range(self._heard.qsize()):
            kill = self._heard.get()
            try:
                config = self._runtime.container(kill.container_id).config
            except NotFoundError:
                continue  # removed meanwhile, and its pod with it
            found = pod(config.labels.get(LABEL_POD_UID, ""))
            if found is not None:
                tell(found, config.name, "Warning", REASON, text(config.name))
            elif self._clock() - kill.at < KEPT_SECONDS:
                self._heard.put(kill)
            else:
                log.warning("Dropped OOM kill of unknown pod container=%s", kill.container_id[:12])


def text(container: str) -> str:
    """Always the same for a container, so that further kills count up one Event."""
    return f"Out of memory: a process of container {container} was killed, the container goes on without it"
