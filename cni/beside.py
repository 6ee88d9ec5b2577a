"""Doing something on a thread of its own while the caller goes on.

`threading` is left out on purpose: its Thread needs a second hand-over between the threads to say that it has
started (90 µs), and importing it costs a plugin program 7 ms.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def beside(function: Callable[[], T]) -> Callable[[], T]:
    """Start `function`; what is returned waits for it and gives its value or raises its exception."""
    values: list[T] = []
    errors: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            values.append(function())
        except BaseException as error:  # raised to the one who waits
            errors.append(error)
        finally:
            done.release()

    def wait() -> T:
        with done:
            if errors:
                raise errors[0]
            return values[0]

    _thread.start_new_thread(work, ())
    return wait
