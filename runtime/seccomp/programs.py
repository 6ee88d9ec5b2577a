"""Compiled seccomp filters, kept on disk for commands that live for milliseconds.

Compiling takes 2 ms, and so does importing what compiles; callers of the OCI command line pass the same
profile each time. A file is named by a checksum of the profile and holds the profile too, so that only the
program of exactly this one is ever loaded; and by the state of the compiler's sources, so that a mended
compiler is not answered with what a wrong one made. The folder is as private as the containers' state.
"""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

CHECK = 2**61 - 1  # prime; a module with a better checksum would have to be imported
KEPT = 64  # files, then all are dropped: who has more profiles than that does not repeat them
COMPILER = ("filter.py", "syscalls.py", "i386.py", "profile.py")


def compiled(profile: Mapping[str, Any]) -> tuple[bytes, int]:
    """As filter.compiled, imported when it is needed. Raises SeccompError."""
    from runtime.seccomp import filter

    return filter.compiled(profile)


class Programs:
    """Compiled filters in `folder`, which is made when there is one to keep."""

    def __init__(
        self, folder: str, compile: Callable[[Mapping[str, Any]], tuple[bytes, int]] = compiled
    ) -> None:
        self._folder = folder
        self._compile = compile

    def compiled(self, profile: Mapping[str, Any]) -> tuple[bytes, int]:
        """(program, flags for seccomp(2)) for this processor. Raises SeccompError."""
        key = marshal.dumps((_compiler(), os.uname().machine, dict(profile)), 2)
        name = int.from_bytes(key, "little") % CHECK
        path = f"{self._folder}/{name:016x}"
        try:
            with open(path, "rb", buffering=0) as file:
                found = marshal.loads(file.read())
            if found[0] == key:
                return found[1], found[2]
        except (OSError, ValueError, EOFError, TypeError, IndexError):
            pass  # not there, or not whole: it is made anew
        program, flags = self._compile(profile)
        self._keep(path, marshal.dumps((key, program, flags), 2))
        return program, flags

    def _keep(self, path: str, data: bytes) -> None:
        """Whole or not at all. A disk that is full or read-only costs the next start its time, no more."""
        new = f"{path}.{os.getpid()}"
        try:
            os.makedirs(self._folder, 0o700, exist_ok=True)
            names = os.listdir(self._folder)
            for name in names if len(names) >= KEPT else ():
                os.unlink(f"{self._folder}/{name}")
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            os.rename(new, path)
        except OSError:
            return


def _compiler() -> tuple[tuple[int, int], ...]:
    """Times and sizes of the sources that compile."""
    folder = __file__.rpartition("/")[0]
    found = (os.stat(f"{folder}/{name}") for name in COMPILER)
    return tuple((status.st_mtime_ns, status.st_size) for status in found)
