"""How long this machine took to become a node, for /metrics: from its boot to the first report of Ready.

CLOCK_BOOTTIME begins at the boot and does not jump when somebody sets the time, so each moment is a number
of seconds since the boot. Only a node that was registered anew has a start-up to tell of: an agent that comes
back to a Node that is there leaves all at 0.
Source: upstream's pkg/kubelet/util/nodestartup_latency_tracker.go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kubelet_py.instruments import Instrument, Number


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class StartupTimes:
    """Told of each step as it happens; the first of each counts. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = since_boot) -> None:
        self._clock, self._started = clock, clock()
        self._lock = threading.Lock()
        self._attempted: float | None = None
        self._registered: float | None = None
        self._ready = False
        self._pre_kubelet = _gauge("pre_kubelet_", "before kubelet starts")
        self._pre_registration = _gauge("pre_registration_", "before registration")
        self._registration = _gauge("registration_", "during registration")
        self._post_registration = _gauge("post_registration_", "after registration")
        self._total = _gauge("", "in total")
        self.instruments: tuple[Instrument, ...] = (
            self._pre_kubelet, self._pre_registration, self._registration, self._post_registration,
            self._total,
        )  # fmt: skip

    def attempted(self) -> None:
        """The node is about to be registered."""
        with self._lock:
            if self._attempted is None:
                self._attempted = self._clock()

    def registered(self) -> None:
        """The Node was made just now, and was not there before."""
        with self._lock:
            if self._attempted is None or self._registered is not None:
                return
            self._registered = self._clock()
            self._pre_kubelet.set(self._started)
            self._pre_registration.set(self._attempted - self._started)
            self._registration.set(self._registered - self._attempted)

    def ready(self) -> None:
        """The API server has taken a report that says Ready."""
        with self._lock:
            if self._registered is None or self._ready:
                return
            self._ready, now = True, self._clock()
            self._post_registration.set(now - self._registered)
            self._total.set(now)


def _gauge(part: str, words: str) -> Number:
    name = f"kubelet_node_startup_{part}duration_seconds"
    found = Number(name, f"Duration in seconds of node startup {words}.", kind="gauge")
    found.set(0)
    return found
