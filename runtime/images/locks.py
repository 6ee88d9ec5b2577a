"""Locks between all processes that use one store, which die with their holder.

A lock is flock(2) on a file that is made for it and removed with it, or that is what is locked. As the file
may be removed while others wait for it, who has got the lock looks whether the name still means that file.

These locks spare work; nothing becomes wrong without. A process that was stopped (Ctrl-Z) keeps its locks, so
nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1


@contextlib.contextmanager
def held(path: Path, patience: float) -> Iterator[None]:
    """Wait for the lock `path`, whose folder is there, and have it while the block runs.

    After `patience` seconds the block runs without.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if taken(descriptor) and names(path, descriptor):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
        time.sleep(_LOOK_SECONDS)
    log.warning("Went on without a lock that is kept lock=%s seconds=%g", path, patience)
    yield


def taken(descriptor: int) -> bool:
    """Whether this open file could be locked at once."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def names(path: Path, descriptor: int) -> bool:
    """Whether `path` is the file that is open here."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def drop_if_free(path: Path) -> os.stat_result | None:
    """Remove the file unless somebody has it locked; what it was, where it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if not taken(descriptor) or not names(path, descriptor):
            return None
        path.unlink()
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
