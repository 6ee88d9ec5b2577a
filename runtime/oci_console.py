"""The terminal of a container in the foreground: our own standard streams connected to its master side."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import tty

from runtime import signals

CHUNK = 65536


def relay(console: int) -> None:
    """Copies both ways until the container's side is closed, which closes ours; passes the window's size
    on."""
    saved = None
    if os.isatty(0):
        saved = termios.tcgetattr(0)
        tty.setraw(0)
        _copy_size(console)
        signals.handle(signals.SIGWINCH, lambda _got, _frame: _copy_size(console))
    try:
        _copy(console)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        os.close(console)


def _copy_size(console: int) -> None:
    size = fcntl.ioctl(0, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    fcntl.ioctl(console, termios.TIOCSWINSZ, size)


def _copy(console: int) -> None:
    sources = [0, console]
    while True:
        ready = select.select(sources, [], [])[0]
        if console in ready:
            try:
                data = os.read(console, CHUNK)
            except OSError as error:
                # EIO: the last process has closed its side.
                if error.errno != errno.EIO:
                    raise
                return
            if not data:
                return
            _write_all(1, data)
        if 0 in ready:
            data = os.read(0, CHUNK)
            if data:
                _write_all(console, data)
            else:
                sources.remove(0)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
