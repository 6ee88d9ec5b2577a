"""Threads for what may hang: every call has one at once, so that no probe waits for another's timeout.

Not a ThreadPoolExecutor: that makes calls wait when all its threads hang, and its futures, locks and
semaphores cost as much as a TCP probe. A few threads stay for the next call; the others end with theirs.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

KEPT = 16
IDLE_SECONDS = 10.0

Call = Callable[[], None]


class ProbeThreads:
    """`run` never waits. Thread-safe; calls must not raise."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait and for which no call is on its way

    def run(self, call: Call) -> None:
        """Have `call` called at once, on another thread."""
        with self._lock:
            found = self._idle > 0
            self._idle -= found
        if found:
            self._calls.put(call)
        else:
            threading.Thread(target=self._work, args=(call,), name="probe", daemon=True).start()

    def stop(self) -> None:
        """Let the waiting threads end; the others end with their calls."""
        with self._lock:
            idle, self._idle = self._idle, 0
        for _ in range(idle):
            self._calls.put(None)

    def _work(self, call: Call | None) -> None:
        while call is not None:
            call()
            call = self._next()

    def _next(self) -> Call | None:
        """The next call; None when the thread is not needed any more."""
        with self._lock:
            if self._idle >= KEPT:
                return None
            self._idle += 1
        while True:
            try:
                return self._calls.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                with self._lock:
                    if self._idle:
                        self._idle -= 1
                        return None
                # Nobody waits in vain: whoever took us off the count has a call for us.
