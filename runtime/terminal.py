"""Sizes of pseudo terminals.

The pair itself is made by `launch` out of the container's own devpts (a tty from elsewhere has no name
inside, which `tty`, `screen` and `sudo` ask for); the shim holds the master side and this is what it does
with it.
"""

from __future__ import annotations

import fcntl
import json
import struct
import termios


def parse_size(payload: bytes) -> tuple[int, int] | None:
    """(columns, rows) of a RESIZE frame, `{"Width": …, "Height": …}`; None when it makes no sense."""
    try:
        size = json.loads(payload)
        width, height = int(size["Width"]), int(size["Height"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # also 1e999, which is JSON, and what is nested a thousand times
    return (width, height) if 0 <= width <= 65535 and 0 <= height <= 65535 else None


def resize(master: int, width: int, height: int) -> None:
    """Tell the terminal its size in characters; its foreground processes get SIGWINCH."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
