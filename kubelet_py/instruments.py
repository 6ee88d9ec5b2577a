"""What a part of the agent counts about its own work, for /metrics: numbers and durations with labels.

Each part makes its instruments itself, under upstream's names, beside the code that they tell of; the page
reads them all (server/metrics.py). Counting costs a lock that nobody holds for long, a look-up and an
addition, so it may stand where pods are started and probes are run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from kubelet_py.pods.durations import DEFAULT_BOUNDS, Distribution, Durations

Labels = tuple[str, ...]
"""A label's value for each of the instrument's label names, in their order."""


class Number:
    """A count that only grows, or (`kind` gauge) a level that also falls."""

    def __init__(
        self, name: str, help: str, *labels: str, kind: Literal["counter", "gauge"] = "counter"
    ) -> None:
        self.name, self.help, self.labels, self.kind = name, help, labels, kind
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {}

    def add(self, *values: str, by: int = 1) -> None:
        with self._lock:
            self._values[values] = self._values.get(values, 0) + by

    def set(self, value: float, *values: str) -> None:
        with self._lock:
            self._values[values] = value

    def rows(self) -> list[tuple[Mapping[str, str], float]]:
        """By labels; a count without labels is told from the beginning, as 0: a rate needs two samples."""
        with self._lock:
            found = list(self._values.items())
        if not found and not self.labels and self.kind == "counter":
            return [({}, 0)]
        return [(dict(zip(self.labels, values, strict=True)), value) for values, value in found]


class Histogram:
    """How long something took, in buckets."""

    kind = "histogram"

    def __init__(self, name: str, help: str, *labels: str, bounds: Sequence[float] = DEFAULT_BOUNDS) -> None:
        self.name, self.help, self.labels = name, help, labels
        self._bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._values: dict[Labels, Durations] = {}

    def observe(self, seconds: float, *values: str) -> None:
        found = self._values.get(values)
        if found is None:
            with self._lock:
                found = self._values.setdefault(values, Durations(self._bounds))
        found.observe(seconds)

    @contextmanager
    def timed(self, *values: str) -> Iterator[None]:
        """Measure the body, also where it raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.observe(time.monotonic() - began, *values)

    def rows(self) -> list[tuple[Mapping[str, str], Distribution]]:
        """By labels; one without labels is told from the beginning."""
        with self._lock:
            found = list(self._values.items())
        if not found and not self.labels:
            return [({}, Durations(self._bounds).read())]
        return [(dict(zip(self.labels, values, strict=True)), each.read()) for values, each in found]


Instrument = Number | Histogram
