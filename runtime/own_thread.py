"""Work that moves its thread into other namespaces, in a thread of its own: unshare(2) is per thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


def in_thread_of_its_own(work: Callable[[], None]) -> None:
    """Do `work` in a thread that ends with it; what it raises is raised here."""
    failed: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # carried to the caller's thread, raised there
            failed.append(error)

    thread = threading.Thread(target=attempt, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
