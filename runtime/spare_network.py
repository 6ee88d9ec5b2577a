"""A network namespace made ahead, for the next pod.

Making one takes 0.3 to 1.2 ms in the kernel, which is a tenth of a pod's start. So while pods come, one is
kept ready, made when nobody waits for it. Nobody has been in it: it is for one pod, as one made for it.

A new namespace begins with copies of some of the host's sysctls (net.ipv4.conf.default, tcp_rmem). Therefore
a spare is made anew every few seconds: what is changed on the host holds for pods that begin a little later.
It is held by a descriptor only, so it goes with this process, however that ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

CALM_SECONDS = 0.03  # the rest of the pod that took the last one, and others beside it, come first
FRESH_SECONDS = 10.0
KEPT_SECONDS = 300.0  # a node where no pods come shall not wake up for them


class SpareNetwork:
    """`make` returns a descriptor of a new namespace, or raises OSError. For any thread."""

    def __init__(self, make: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._clock = clock
        self._changed = threading.Condition()
        self._spare = -1
        self._made = 0.0
        self._taken: float | None = None  # None: none is wanted
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="runtime-spares", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self) -> int:
        """One for the caller, who closes it, and says so when its pod has got as far (`refill`). Raises
        OSError."""
        with self._changed:
            found, self._spare = self._spare, -1
            self._taken = self._clock()
            fresh = self._taken - self._made < FRESH_SECONDS
        if found >= 0 and fresh:
            return found
        if found >= 0:
            os.close(found)
        return self._make()

    def refill(self) -> None:
        """Have the next one made soon. Not by `take`: the thread that is woken would have the interpreter's
        lock in the middle of a pod's start."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._drop()

    def next_step(self) -> float | None:
        """Make, renew or drop the spare if it is time for that; seconds until the next time, None if that is
        for `take` to say."""
        with self._changed:
            if self._taken is None or self._closed:
                return None
            now = self._clock()
            due = self._taken + CALM_SECONDS if self._spare < 0 else self._made + FRESH_SECONDS
            if now < due:
                return due - now
            wanted = now - self._taken < KEPT_SECONDS
        self._drop()
        if not wanted or not self._refill():
            with self._changed:
                self._taken = None
            return None
        return FRESH_SECONDS

    def _refill(self) -> bool:
        try:
            made = self._make()
        except OSError as error:
            # The next pod comes upon the same, and tells.
            log.debug("Could not make a spare network namespace error=%s", error)
            return False
        with self._changed:
            self._spare, self._made = made, self._clock()
        return True

    def _drop(self) -> None:
        with self._changed:
            dropped, self._spare = self._spare, -1
        if dropped >= 0:
            os.close(dropped)

    def _work(self) -> None:
        while True:
            wait = self.next_step()
            with self._changed:
                if self._closed:
                    return
                self._changed.wait(wait)
