"""What a controller has just asked for, remembered until its informer shows it.

Acting on a copy that lags behind would make a pod twice. Source: upstream's controller_utils.go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

EXPECTATION_SECONDS = 300.0


class Expectations:
    """Creations and deletions on their way, by key; forgotten after five minutes at the latest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._creating: dict[str, int] = {}
        self._deleting: dict[str, set[str]] = {}
        self._since: dict[str, float] = {}

    def expect(self, key: str, *, creations: int = 0, deletions: Sequence[str] = ()) -> None:
        with self._lock:
            self._creating[key] = creations
            self._deleting[key] = set(deletions)
            self._since[key] = self._clock()

    def created(self, key: str, count: int = 1) -> None:
        with self._lock:
            self._creating[key] = max(0, self._creating.get(key, 0) - count)

    def deleted(self, key: str, uid: str) -> None:
        with self._lock:
            self._deleting.get(key, set()).discard(uid)

    def fulfilled(self, key: str) -> bool:
        with self._lock:
            if not self._creating.get(key) and not self._deleting.get(key):
                return True
            return self._clock() - self._since.get(key, 0.0) > EXPECTATION_SECONDS

    def forget(self, key: str) -> None:
        with self._lock:
            for table in (self._creating, self._deleting, self._since):
                table.pop(key, None)
