"""How long things took, counted in buckets, so that Prometheus can say what the slow ones cost.

Bounds are upstream's (pkg/kubelet/metrics): runtime operations 5 ms × 2.5ⁿ, pod starts from half a second to
an hour, and for most else those that every Prometheus client has by default.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from dataclasses import dataclass

DEFAULT_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
OPERATION_BOUNDS = tuple(round(0.005 * 2.5**power, 9) for power in range(14))
START_BOUNDS = (
    0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45,
    60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Distribution:
    """A copy of what was counted: `counts` has one more than `bounds`, for what is above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    failures: int

    @property
    def count(self) -> int:
        return sum(self.counts)


class Durations:
    """Counts; a bound is inclusive, as in Prometheus. Thread-safe."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds) + 1)
        self._total, self._failures = 0.0, 0

    def observe(self, seconds: float, *, failed: bool = False) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, seconds)] += 1
            self._total += seconds
            self._failures += failed

    def read(self) -> Distribution:
        with self._lock:
            return Distribution(self._bounds, tuple(self._counts), self._total, self._failures)
