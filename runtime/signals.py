"""Signals by number and name, without the standard `signal` module.

`signal` turns its numbers into enums, whose import costs 3 ms and a few hundred kB; the C module beneath it
has the same functions over plain numbers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SIGHUP: int = _signal.SIGHUP
SIGINT: int = _signal.SIGINT
SIGQUIT: int = _signal.SIGQUIT
SIGKILL: int = _signal.SIGKILL
SIGPIPE: int = _signal.SIGPIPE
SIGTERM: int = _signal.SIGTERM
SIGCHLD: int = _signal.SIGCHLD
SIGWINCH: int = _signal.SIGWINCH

_ALL = tuple(_signal.valid_signals())


def number(name: str) -> int:
    """`9`, `KILL`, `SIGKILL`, `SIGRTMIN+3`, `SIGRTMAX-3` → the number. Raises ValueError."""
    text = name.strip().upper()
    if text.isascii() and text.isdigit():
        found = int(text)
    else:
        plain = text.removeprefix("SIG")
        sign = "-" if plain.startswith("RTMAX") else "+"
        base, _, offset = plain.partition(sign)
        known = None if base[:1] == "_" else getattr(_signal, f"SIG{base}", None)
        if not isinstance(known, int) or (offset and not (offset.isascii() and offset.isdigit())):
            raise ValueError(f"no such signal: {name}")
        found = known + int(sign + (offset or "0"))
    if not 1 <= found <= _signal.SIGRTMAX:
        raise ValueError(f"no such signal: {name}")
    return found


def handle(signal: int, handler: Callable[[int, object], None]) -> None:
    """Has `handler` called, with the number first, when the signal comes. Main thread only."""
    _signal.signal(signal, handler)


def ignored() -> tuple[int, ...]:
    """Signals that this process ignores; the programs it executes would, too."""
    return tuple(number for number in _ALL if _signal.getsignal(number) == _signal.SIG_IGN)


def block_all() -> None:
    """Blocks every signal that can be blocked, in the calling thread."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL)
