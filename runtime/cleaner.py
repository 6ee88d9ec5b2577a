"""Slow undoing, behind everybody's back: cgroups wait for RCU grace periods and folders can be large.

Folders arrive here already renamed, so nobody sees them any more, and they still say what they owe: an
agent that dies loses nothing, the next one finds them (`recovery.owed`).
"""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path

from runtime import recovery
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError

log = logging.getLogger(__name__)

CLOSE_SECONDS = 0.5


class Cleaner:
    """One thread that clears given-up folders, in order."""

    def __init__(self, cgroups: CgroupDriver) -> None:
        self._cgroups = cgroups
        self._folders: queue.SimpleQueue[Path | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="runtime-cleaner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, folder: Path) -> None:
        self._folders.put(folder)

    def wait(self, seconds: float) -> bool:
        """Until all that was added before is cleared away, or for so long; whether it is."""
        done = threading.Event()
        self._folders.put(done)
        return done.wait(seconds)

    def close(self) -> None:
        """End after what is queued, or soon: what is left is on disk."""
        if self._thread.is_alive():
            self._folders.put(None)
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (folder := self._folders.get()) is not None:
            if isinstance(folder, threading.Event):
                folder.set()
                continue
            try:
                recovery.clear(self._cgroups, folder)
            except (OSError, CgroupError, ValueError) as error:
                log.warning("Could not clear away, left for the next start folder=%s error=%s", folder, error)
