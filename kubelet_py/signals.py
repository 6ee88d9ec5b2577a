"""Signals that are obeyed on a thread of their own.

Python runs a handler on the main thread, between any two of its steps: also while that thread holds the lock
inside an Event it waits for. A handler that set this Event would wait for its own thread, for ever. So the
handler only writes down that it was called; one may call SimpleQueue.put (see its documentation).
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


def obey(actions: Mapping[int, Callable[[], object]]) -> None:
    """From now on do what `actions` says for each signal number; to be called by the main thread."""
    told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run() -> None:
        while True:
            number = told.get()
            try:
                actions[number]()
            except Exception:
                # The next signal, perhaps the one that ends the process, must still be obeyed.
                log.exception("Failed to obey signal %d", number)

    threading.Thread(target=run, name="signals", daemon=True).start()
    for number in actions:
        signal.signal(number, lambda number, _frame: told.put(number))
