"""How many pods are worked on at the same time: a few, and more for those that only wait.

Threads of one interpreter take turns. A hundred that want a turn spend much of the process's time on waking
up in vain and handing over, and each opens a connection of its own to the API server; a few keep the
machine as busy. But nobody may wait behind pods that wait for something themselves (a plugin, a hook, a
server that does not answer): a thread that has used next to no CPU time for a moment makes room for two, so
that a queue of any length has begun after a few moments. One that is merely slow, because the machine is
busy, does not, unless it takes LONG: a million files that change their group on a slow disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

WIDTH = 4
FOR_EACH_WAITING = 2
PATIENCE = 0.5  # seconds
NEXT_TO_NOTHING = 0.002  # seconds of CPU time
LONG = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class _Look:
    """What the clocks said at `at`; `entered` when the work began."""

    at: float
    clock: int
    spent: float
    entered: float


class Crowd:
    """Who is at work. Times are monotonic seconds that never go back; `spent` reads a thread's CPU clock.
    Not thread-safe."""

    def __init__(
        self,
        *,
        width: int = WIDTH,
        patience: float = PATIENCE,
        spent: Callable[[int], float] = time.clock_gettime,
    ) -> None:
        self._width, self._patience, self._spent = width, patience, spent
        self._working: dict[str, _Look] = {}  # whoever was looked at longest ago first
        self._waiting: set[str] = set()

    def __contains__(self, who: str) -> bool:
        return who in self._working or who in self._waiting

    def enter(self, who: str, now: float, clock: int) -> None:
        """`clock` is the CPU clock of the thread that works."""
        self._working[who] = _Look(now, clock, self._spent(clock), now)

    def leave(self, who: str) -> None:
        self._working.pop(who, None)
        self._waiting.discard(who)

    def room(self, now: float) -> int:
        """For how many there is room; 0 or less for none."""
        while self._working:
            who, look = next(iter(self._working.items()))
            if now - look.at < self._patience:
                break
            del self._working[who]
            spent = self._spent(look.clock)
            if spent - look.spent < NEXT_TO_NOTHING or now - look.entered >= LONG:
                self._waiting.add(who)
            else:
                self._working[who] = _Look(now, look.clock, spent, look.entered)
        at_work = len(self._working) + len(self._waiting)
        return self._width + FOR_EACH_WAITING * len(self._waiting) - at_work

    def more_room_at(self) -> float | None:
        """The first moment at which there may be more even if nobody leaves."""
        oldest = next(iter(self._working.values()), None)
        return None if oldest is None else oldest.at + self._patience
