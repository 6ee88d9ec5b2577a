"""One worker per pod at a time, newest state wins.

`wake(uid)` means: look at this pod again. A pod that is being worked on is looked at once more afterwards, no
matter how often it was woken meanwhile, so a worker always ends with the newest state. Threads are made when
all others are busy and end after idling. Only so many pods are worked on at the same time as there is room
for (crowd.py); one that waits for something never holds up another for more than a moment. Pods that were
looked at before take turns with new ones: a deletion, an exit or a probe's answer does not wait until a
hundred pods have been started, nor these for those.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from kubelet_py.instruments import Histogram, Instrument, Number
from kubelet_py.pods.crowd import Crowd

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0
RETRY_SECONDS = 2.0
REMEMBERED = 4096
QUEUE = "pods"  # the name that /metrics has for it
QUEUE_BOUNDS = tuple(float(f"1e{power}") for power in range(-8, 2))

Sync = Callable[[str], float | None]
"""Work on one pod; answers the seconds after which to look again, or None to wait for news."""


def spawn(work: Callable[[], None], name: str) -> None:
    """Run it on a thread of its own. Raises RuntimeError where the machine has no room for another."""
    threading.Thread(target=work, name=name, daemon=True).start()


class PodWorkers:
    def __init__(
        self,
        sync: Sync,
        *,
        crowd: Crowd | None = None,
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None], str], None] = spawn,
    ) -> None:
        self._sync = sync
        self._spawn = spawn
        self._clock = clock
        self._running = crowd or Crowd()
        lock = threading.RLock()
        self._condition = threading.Condition(lock)
        self._timer_wake = threading.Condition(lock)
        self._new: deque[str] = deque()
        self._known: deque[str] = deque()  # those that were looked at before
        self._turn_of_known = False
        self._looked_at: dict[str, None] = {}
        self._queued: dict[str, float] = {}  # uid → when it was put there
        self._again: set[str] = set()
        self._timers: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._idle = 0
        self._no_more_until = 0.0  # when the machine had no room for another thread
        self._numbers = itertools.count(1)
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
            missing = self._put(uid)
        self._make_threads(missing)

    def _put(self, uid: str, *, here: bool = False) -> int:
        """Under the lock: queue the pod; answers how many threads are missing. `here`: the caller is one, and
        about to look at the queue."""
        if uid in self._running:
            self._again.add(uid)
            return 0
        if uid in self._queued:
            return 0
        self._adds.add(QUEUE)
        self._queued[uid] = self._clock()
        (self._known if uid in self._looked_at else self._new).append(uid)
        self._depth.set(self._length(), QUEUE)
        return 0 if here else self._admit()

    def _length(self) -> int:
        return len(self._new) + len(self._known)

    def _take(self) -> str:
        self._turn_of_known = not self._turn_of_known
        first, second = (self._known, self._new) if self._turn_of_known else (self._new, self._known)
        uid = (first or second).popleft()
        self._looked_at.pop(uid, None)
        self._looked_at[uid] = None
        if len(self._looked_at) > REMEMBERED:
            del self._looked_at[next(iter(self._looked_at))]
        return uid

    def _admit(self) -> int:
        """Under the lock: have as many threads look at the queue as there is room for; answers how many of
        them have to be made."""
        wanted = min(self._length(), max(0, self._running.room(self._clock())))
        if wanted < self._length():
            self._timer_wake.notify()  # who only waits makes room for others
        self._condition.notify(min(wanted, self._idle))
        missing = max(0, wanted - self._idle) if self._clock() >= self._no_more_until else 0
        self._idle += missing
        return missing

    def _make_threads(self, count: int) -> None:
        """They are counted as idle already. Where the machine has no room for another thread, the pods wait
        for those that there are; the timer tries again."""
        for made in range(count):
            number = next(self._numbers)
            try:
                self._spawn(self._run, f"pod-worker-{number}")
            except RuntimeError as error:
                log.warning("Could not start a thread for pods: %s", error)
                with self._condition:
                    self._idle -= count - made
                    self._no_more_until = self._clock() + RETRY_SECONDS
                    self._timer_wake.notify()
                return

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
        cpu = time.pthread_getcpuclockid(threading.get_ident())
        while (uid := self._next(cpu)) is not None:
            after = self._work(uid)
            with self._condition:
                self._running.leave(uid)
                self._idle += 1
                again = uid in self._again
                self._again.discard(uid)
                if (again or after == 0) and not self._stopping:
                    self._put(uid, here=True)
            if not again and after:
                self.wake_after(uid, after)

    def _next(self, cpu: int) -> str | None:
        """The pod to work on; None when the thread, whose CPU clock is `cpu`, is to end."""
        with self._condition:
            self._condition.wait_for(self._may_go_on, IDLE_SECONDS)
            self._idle -= 1
            if self._stopping or not self._may_go_on():
                return None
            uid = self._take()
            now = self._clock()
            self._depth.set(self._length(), QUEUE)
            self._waits.observe(now - self._queued.pop(uid), QUEUE)
            self._running.enter(uid, now, cpu)
            self._again.discard(uid)
            self._due.pop(uid, None)
            return uid

    def _may_go_on(self) -> bool:
        return self._stopping or (self._length() > 0 and self._running.room(self._clock()) > 0)

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
                missing = self._admit() if self._length() else 0
                if not due and not missing:
                    moments = [when for when, _ in self._timers[:1]]
                    more = self._running.more_room_at() if self._length() else None
                    moments += [] if more is None else [more]
                    if self._length() and now < self._no_more_until:
                        moments.append(self._no_more_until)
                    self._timer_wake.wait(max(0.0, min(moments) - now) if moments else None)
            self._make_threads(missing)
            for uid in due:
                self.wake(uid)
