"""Execs by programs: what comes again in a container, as a probe does, is compiled and run as starts are.

The first exec of a name is executed by a worker; when the name comes again, the worker compiles the plan, too
(exec_ahead.py), and from then on the shim runs the program itself: one call, neither a fork nor Python
between its system calls. A program is for one container and one name (argv[0]), whatever arguments follow:
they are given to it, like the three streams, the pidfd of the container's first process, which nobody else's
can be mistaken for, and the cgroup. It looks for the executable each time it runs, and for all else that it
has foreseen; when that is not as it was it stops, a worker executes the plan and finds the words for what is
wrong, and the name is compiled anew, a few times.
"""

from __future__ import annotations

import os
import struct

from runtime import clibrary, prepared
from runtime.launch import Process
from runtime.program import Given, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from runtime.linux import LinuxKernel
    from runtime.prepared import Give

# Beside the three streams.
INIT, CGROUP, ARGUMENTS = (Given(Given.FIRST + number) for number in (3, 4, 5))
MOST_NAMES = 16
MOST_TRIES = 3
SMALLEST_BLOCK = 1024


class _Known:
    """A name that was executed before. `tries`: how often it was compiled since it last worked."""

    __slots__ = ("path", "tries")

    def __init__(self, path: str) -> None:
        self.path = path
        self.tries = 0


class ExecPrograms:
    """Those of one container, in files of its folder."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._known: dict[str, _Known] = {}
        self._made = 0

    def has(self, argv: Sequence[str]) -> bool:
        """Whether there may be a program for it."""
        known = self._known.get(argv[0]) if argv else None
        return known is not None and known.tries > 0

    def place_for(self, argv: Sequence[str]) -> str:
        """For an exec that is about to be executed: the path that its program shall be written to, "" if it
        shall not be compiled."""
        if not argv:
            return ""
        known = self._known.get(argv[0])
        if known is None:
            self._remember(argv[0])
            return ""
        if known.tries >= MOST_TRIES:
            return ""
        known.tries += 1
        return known.path

    def start(
        self,
        kernel: LinuxKernel,
        argv: Sequence[str],
        stdio: tuple[int, int, int],
        *,
        init: int,
        cgroup: str,
        give: Give,
    ) -> Process | None:
        """Runs the program for it, whose process becomes our child, in the folder `cgroup`; None if there is
        none, or it has stopped. `init`: pidfd of the container's first process."""
        known = self._known[argv[0]]
        try:
            file = os.open(known.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None  # it could not be compiled
        try:
            pid = _run(kernel, file, argv, stdio, init, cgroup, give)
        except OSError:
            pid = 0  # no memory, or none at its place, no cgroup: executing the plan says so
        finally:
            os.close(file)
        if pid <= 0:
            _remove(known.path)
            return None
        known.tries = 1
        return Process(pid, 0, os.pidfd_open(pid))

    def _remember(self, name: str) -> None:
        if len(self._known) >= MOST_NAMES:
            _remove(self._known.pop(next(iter(self._known))).path)
        self._made += 1
        self._known[name] = _Known(f"{self._directory}/exec-{self._made}.program")


def _run(
    kernel: LinuxKernel,
    file: int,
    argv: Sequence[str],
    stdio: tuple[int, int, int],
    init: int,
    cgroup: str,
    give: Give,
) -> int:
    program = load(file)
    if program is None or min(stdio) <= 2 or any("\0" in text for text in argv):
        return 0  # a text with a NUL, which would end there, is refused by who reads the specification
    arguments = _block(argv)  # held until the program has run
    folder = os.open(cgroup, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        values = (*stdio, init, folder, clibrary.address(arguments))
        return prepared.perform(kernel, file, program, values, give)[0]
    finally:
        os.close(folder)


def _block(argv: Sequence[str]) -> Any:
    """Memory that begins with the list of pointers that execve takes, followed by the texts."""
    texts = [os.fsencode(text) + b"\0" for text in argv]
    places = [8 * (len(texts) + 1)]
    for text in texts:
        places.append(places[-1] + len(text))
    size = SMALLEST_BLOCK  # few sizes: for each one a type is kept
    while size < places[-1]:
        size *= 2
    memory = clibrary.buffer(size)
    base = clibrary.address(memory)
    pointers = struct.pack(f"={len(places)}Q", *(base + place for place in places[:-1]), 0)
    clibrary.write(base, pointers + b"".join(texts))
    return memory


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
