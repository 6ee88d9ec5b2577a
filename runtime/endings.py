"""The end of sandboxes and containers that no shim ends for the agent: because it was lost, or never began.

recovery.py does it to what is on disk; here the agent learns of it, too, and tells.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from runtime import recovery
from runtime.cgroups import CgroupDriver
from runtime.cleaner import Cleaner
from runtime.errors import CgroupError
from runtime.known import Known
from runtime.values import Event

log = logging.getLogger(__name__)

TURNS = 16  # pods that can be ended at the same time, about


class Endings:
    """`sandboxes` and `containers` hold one folder for each."""

    def __init__(
        self, cgroups: CgroupDriver, cleaner: Cleaner, known: Known, *, sandboxes: Path, containers: Path
    ) -> None:
        self._cgroups = cgroups
        self._cleaner = cleaner
        self._known = known
        self._sandboxes = sandboxes
        self._containers = containers
        self._turns = tuple(threading.Lock() for _ in range(TURNS))

    def end_lost(self, sandbox_id: str) -> None:
        """Kill a pod whose shim is gone, and tell what that ended."""
        mine = [each.id for each in self._known.containers() if each.sandbox_id == sandbox_id]
        if not self._known.has_sandbox(sandbox_id):
            return
        try:
            with self._turn(sandbox_id):
                ended = recovery.end_sandbox(self._cgroups, self._sandboxes / sandbox_id)
        except (OSError, CgroupError, ValueError) as error:
            log.error("Could not end pod without shim sandbox=%s error=%s", sandbox_id[:12], error)
            return
        for container_id in mine:
            self.end_container(sandbox_id, container_id)
        self._known.sandbox_changed(sandbox_id, ended)
        self._known.tell(Event(sandbox_id, None, "sandbox-exited", ended.exit_code, time.time()))

    def end_container(self, sandbox_id: str, container_id: str) -> None:
        """Kill a container that its shim does not know or cannot end, and tell."""
        try:
            with self._turn(sandbox_id):
                found = recovery.end_container(self._cgroups, self._containers / container_id)
                if found is not None:
                    self._known.container_changed(container_id, found)
        except (OSError, CgroupError, ValueError) as error:
            # It may be removed this moment; the others, and the pod, end all the same.
            log.warning("Could not end container id=%s error=%s", container_id[:12], error)
            return
        if found is not None:
            self._known.tell(Event(sandbox_id, container_id, "exited", recovery.LOST_CODE, time.time()))

    def _turn(self, sandbox_id: str) -> threading.Lock:
        """Held while a part of the pod is ended and that is written down: who watches a shim and who asks it
        for something may both find that it has gone."""
        return self._turns[hash(sandbox_id) % TURNS]

    def abandon_sandbox(self, sandbox_id: str) -> None:
        """One that nobody knows yet: nothing is left of it. Raises OSError, CgroupError."""
        folder = self._sandboxes / sandbox_id
        recovery.end_sandbox(self._cgroups, folder)
        self._cleaner.add(recovery.give_up(folder))

    def abandon_container(self, container_id: str) -> None:
        """As `abandon_sandbox`."""
        folder = self._containers / container_id
        recovery.end_container(self._cgroups, folder)
        self._cleaner.add(recovery.give_up(folder))
