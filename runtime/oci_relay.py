"""The terminal of a container in the foreground: our own standard streams connected to its master side."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import termios
import tty

from runtime.launch import Process

CHUNK = 65536


def relay(process: Process, *, own_console: bool) -> None:
    """Copies both ways until the container's side is closed; passes the window's size on. Without a terminal
    of its own there is nothing to copy: signals that ask us to end go to the process instead."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda got, _frame: _pass(process.pid, got))
    if not own_console:
        return
    console, saved = process.console, None
    if os.isatty(0):
        saved = termios.tcgetattr(0)
        tty.setraw(0)
        _copy_size(console)
        signal.signal(signal.SIGWINCH, lambda _got, _frame: _copy_size(console))
    try:
        _copy(console)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
        os.close(console)


def _pass(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


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
