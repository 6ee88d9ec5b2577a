"""What image pulls took: upstream's histogram by size of the image, and the pulls among the runtime's calls.

Only the fetch itself is measured, not the wait for its turn (upstream: imagePullResult.pullDuration). Bounds
and names of sizes are upstream's (pkg/kubelet/metrics).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.pods.durations import OPERATION_BOUNDS, Distribution, Durations

PULL = "pull_image"
PULL_BOUNDS = (1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600)
_MB, _GB = 1 << 20, 1 << 30
_SIZES = (
    (0, "0-10MB"),
    (10 * _MB, "10MB-100MB"),
    (100 * _MB, "100MB-500MB"),
    (500 * _MB, "500MB-1GB"),
    (_GB, "1GB-5GB"),
    (5 * _GB, "5GB-10GB"),
    (10 * _GB, "10GB-20GB"),
    (20 * _GB, "20GB-30GB"),
    (30 * _GB, "30GB-40GB"),
    (40 * _GB, "40GB-60GB"),
    (60 * _GB, "60GB-100GB"),
    (100 * _GB, "GT100GB"),
)
"""Each name is for what is larger than its bound."""


class Sized(Protocol):
    @property
    def size(self) -> int: ...


Pulled = TypeVar("Pulled", bound=Sized)


class PullCounts:
    """Thread-safe. `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._calls = Durations(OPERATION_BOUNDS)
        self._durations = Histogram(
            "kubelet_image_pull_duration_seconds",
            "Duration in seconds to pull an image.",
            "image_size_in_bytes",
            bounds=PULL_BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (self._durations,)

    def operations(self) -> dict[str, Distribution]:
        """How long pulls took, those that failed among them, by CRI's name of the call."""
        return {PULL: self._calls.read()}

    def pulled(self, pull: Callable[[], Pulled]) -> Pulled:
        """Pull, and count it."""
        began, failed = self._clock(), True
        try:
            image = pull()
            failed = False
        finally:
            self._calls.observe(self._clock() - began, failed=failed)
        self._durations.observe(self._clock() - began, size_name(image.size))
        return image


def size_name(size: int) -> str:
    """An image's bytes in upstream's words."""
    return next((name for bound, name in reversed(_SIZES) if size > bound), "N/A")
