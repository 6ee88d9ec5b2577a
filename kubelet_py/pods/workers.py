"""One worker per pod at a time, newest state wins.

`wake(uid)` means: look at this pod again. A pod that is being worked on is looked at once more afterwards, no
matter how often it was woken meanwhile, so a worker always ends with the newest state. Threads are made when
all others are busy and end after idling; a pod that takes long never holds up another's.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from kubelet_py.instruments import Histogram, Instrument, Number

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
RETRY_SECONDS = 2.0
QUEUE = "pods"  # the name that /metrics has for it
QUEUE_BOUNDS = tuple(float(f"1e{power}") for power in range(-8, 2))

Sync = Callable[[str], float | None]
"""Work on one pod; answers the seconds after which to look again, or None to wait for news."""


class PodWorkers:
    def __init__(self, sync: Sync, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._sync = sync
        self._clock = clock
        lock = threading.RLock()
        self._condition = threading.Condition(lock)
        self._timer_wake = threading.Condition(lock)
        self._queue: deque[str] = deque()
        self._queued: dict[str, float] = {}  # uid → when it was put there
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._timers: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._idle = 0
        self._count = 0
        self._stopping = False
        self._timer = threading.Thread(target=self._run_timers, name="pod-timers", daemon=True)
        self._adds = Number("workqueue_adds_total", "Total number of adds handled by workqueue", "name")
        self._depth = Number("workqueue_depth", "Current depth of workqueue", "name", kind="gauge")
        self._retries = Number(
            "workqueue_retries_total", "Total number of retries handled by workqueue", "name"
        )
        self._waits = Histogram(
            "workqueue_queue_duration_seconds",
            "How long in seconds an item stays in workqueue before being requested.",
            "name",
            bounds=QUEUE_BOUNDS,
        )
        self._works = Histogram(
            "workqueue_work_duration_seconds",
            "How long in seconds processing an item from workqueue takes.",
            "name",
            bounds=QUEUE_BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (
            self._adds, self._depth, self._retries, self._waits, self._works
        )  # fmt: skip

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        """No new work; threads that are in the middle of some end with the process."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
            self._timer_wake.notify_all()

    def wake(self, uid: str) -> None:
        """Have the pod looked at as soon as possible."""
        with self._condition:
            if self._stopping:
                return
            if uid in self._running:
                self._again.add(uid)
                return
            if uid in self._queued:
                return
            self._adds.add(QUEUE)
            self._queued[uid] = self._clock()
            self._queue.append(uid)
            self._depth.set(len(self._queue), QUEUE)
            if self._idle >= len(self._queue):
                self._condition.notify()
                return
            self._count += 1
            number = self._count
        threading.Thread(target=self._run, name=f"pod-worker-{number}", daemon=True).start()

    def wake_after(self, uid: str, seconds: float) -> None:
        """Have it looked at after `seconds`; of several such wishes the earliest counts."""
        when = self._clock() + max(0.0, seconds)
        with self._condition:
            if self._due.get(uid, when + 1) <= when:
                return
            self._due[uid] = when
            heapq.heappush(self._timers, (when, uid))
            self._timer_wake.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                found = self._condition.wait_for(lambda: self._queue or self._stopping, IDLE_SECONDS)
                self._idle -= 1
                if not found or self._stopping:
                    return
                uid = self._queue.popleft()
                self._depth.set(len(self._queue), QUEUE)
                self._waits.observe(self._clock() - self._queued.pop(uid), QUEUE)
                self._running.add(uid)
                self._again.discard(uid)
                self._due.pop(uid, None)
            after = self._work(uid)
            with self._condition:
                self._running.discard(uid)
                again = uid in self._again
                self._again.discard(uid)
            if again or after == 0:
                self.wake(uid)
            elif after is not None:
                self.wake_after(uid, after)

    def _work(self, uid: str) -> float | None:
        try:
            with self._works.timed(QUEUE):
                return self._sync(uid)
        except Exception:
            # The worker is the last one who can: a mistake in one pod must not end the others' node.
            log.exception("Failed to sync pod uid=%s", uid)
            self._retries.add(QUEUE)
            return RETRY_SECONDS

    def _run_timers(self) -> None:
        while True:
            with self._condition:
                if self._stopping:
                    return
                now = self._clock()
                due = []
                while self._timers and self._timers[0][0] <= now:
                    when, uid = heapq.heappop(self._timers)
                    if self._due.get(uid) == when:
                        del self._due[uid]
                        due.append(uid)
                if not due:
                    self._timer_wake.wait(self._timers[0][0] - now if self._timers else None)
            for uid in due:
                self.wake(uid)
