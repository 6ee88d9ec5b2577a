"""One epoll loop with timers: the whole concurrency of a shim, and of the agent's side of all shims.

A shim may not have threads besides the throwaway one that starts a container, so everything it waits for
(pipes, terminals, pidfds, clients, deadlines) is a file descriptor or a timer here.
"""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Rest = Callable[[int, Callable[[], int]], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
IDLE_SECONDS = 0.3
OFTEN_SECONDS = 2.5


class Timer:
    """A call that is due once; `cancel` makes it do nothing."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Rhythm:
    """Of what happens again and again, as probes do. Between those that come more often than every
    OFTEN_SECONDS a rest would not come to its second part (see pages.py), which is the one that gives most
    back, and would cost more than the probe."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def beat(self, now: float) -> float:
        """It happens: for how many seconds the next one is to be waited for."""
        since, self._last = now - self._last, now
        return 2 * since if since < OFTEN_SECONDS else 0.0


class Loop:
    """Calls back on readiness and at deadlines, one event at a time.

    epoll is asked for one event per call: a callback may close a descriptor whose number the kernel hands
    out again at once, and a second event fetched earlier would then reach the wrong owner. The ready list
    is rotated by the kernel, so nobody starves.

    `rest(descriptor, timeout)` is called when nothing has happened for IDLE_SECONDS, but not in the loop's
    first `no_rest` seconds: it may do what is better done then, cancel timers, and wait until the descriptor
    can be read, but for at most `timeout()` milliseconds (-1: for ever).
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        rest: Rest | None = None,
        no_rest: float = 0.0,
    ) -> None:
        self._rest = rest
        self._rests_from = clock() + no_rest
        self.tired = False
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._clock = clock
        self.stopped = False

    def watch(self, descriptor: int, callback: Callable[[int], None], events: int = READ) -> None:
        """Call `callback(mask)` whenever `descriptor` is ready for `events`, is hung up or has failed."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def change(self, descriptor: int, events: int) -> None:
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Stop watching; must come before the descriptor is closed."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(self._clock() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def stay_awake(self, seconds: float) -> None:
        """Something is expected to happen by then: no rest before."""
        self._rests_from = max(self._rests_from, self._clock() + seconds)

    def run(self) -> None:
        """Go on until `stop` is called; may be called again after an exception out of a callback."""
        while not self.stopped:
            self.step()

    def step(self) -> None:
        """Wait for one event or deadline and handle it."""
        wait = self._until_next()
        idle = IDLE_SECONDS if self.tired else max(IDLE_SECONDS, self._rests_from - self._clock())
        if self._rest is not None and not 0 <= wait <= idle:
            ready = self._epoll.poll(0 if self.tired else idle, 1)
            if not ready:
                self.tired = False
                self._rest(self._epoll.fileno(), self._timeout)
                ready = self._epoll.poll(self._until_next(), 1)
        else:
            ready = self._epoll.poll(wait, 1)
        for descriptor, mask in ready:
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback(mask)
        self._fire()

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self._epoll.close()

    def _until_next(self) -> float:
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        return max(0.0, self._timers[0].when - self._clock())

    def _timeout(self) -> int:
        wait = self._until_next()
        return -1 if wait < 0 else int(wait * 1000)

    def _fire(self) -> None:
        while self._timers and self._timers[0].when <= self._clock():
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()
