"""A command on a terminal, as a person would have it: for kubectl's -it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import time


class OnTerminal:
    """A command on a pseudo-terminal of its own; `until` reads on to a text."""

    def __init__(self, argv: list[str], env: dict[str, str], size: tuple[int, int] = (24, 80)) -> None:
        self._master, slave = pty.openpty()
        self.resize(*size, tell=False)
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=env,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)
        self.output = b""

    def resize(self, rows: int, columns: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, pattern: str, seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while not re.search(pattern.encode(), self.output):
            assert time.monotonic() < deadline, f"{pattern!r} did not come: {self.output!r}"
            try:
                self.output += os.read(self._master, 4096)
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:
                assert re.search(pattern.encode(), self.output), f"ended without {pattern!r}: {self.output!r}"
        return self.output.decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
