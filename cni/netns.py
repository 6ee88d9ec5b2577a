"""Network namespaces as descriptors: opening one, telling whose it is, doing something inside it.

setns(2) moves one thread. So whatever takes its time in another namespace happens on a throwaway thread, and
the caller's namespace never changes. Making a socket is a moment: for that the caller goes there and back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

from cni.beside import beside
from cni.errors import NetlinkError, UnknownContainer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    T = TypeVar("T")

CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the namespace at `path`, for a `with`. Raises UnknownContainer if none is there."""
    try:
        # Without waiting: at a FIFO's path nobody may ever come to write.
        netns = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise UnknownContainer(f"Could not open network namespace {path}: {name}") from error
    try:
        yield netns
    finally:
        os.close(netns)


@contextlib.contextmanager
def left_behind(path: str) -> Iterator[int | None]:
    """The namespace that a DEL may still clear: None when it is gone, or is the caller's own.

    /proc/<pid>/ns/net of a container that is dead may by now name another process's namespace, the host's
    among them.
    """
    with contextlib.ExitStack() as stack:
        try:
            netns = stack.enter_context(opened(path))
        except UnknownContainer:
            yield None
            return
        yield None if is_own(netns) else netns


def in_namespace(netns: int, function: Callable[[], T]) -> T:
    """Run `function` in a thread of its own that has entered the namespace of the descriptor `netns`."""

    def work() -> T:
        _setns(netns)
        return function()

    return beside(work)()


@contextlib.contextmanager
def visited(netns: int) -> Iterator[None]:
    """The calling thread is inside for a moment: two system calls, where a thread made for it would have to
    be started and waited for (60 µs, on a busy machine milliseconds).

    Coming back takes no more than going (CAP_SYS_ADMIN), so it does not fail. If it did, everything the
    thread did later would happen to the container's network instead of the host's: the process ends then.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _setns(netns)
            yield
        finally:
            if _LIBC.setns(own, CLONE_NEWNET):
                os.abort()
    finally:
        os.close(own)


def is_own(netns: int) -> bool:
    """Whether the descriptor names the namespace of the calling thread."""
    other, mine = os.fstat(netns), os.stat("/proc/thread-self/ns/net")
    return (other.st_ino, other.st_dev) == (mine.st_ino, mine.st_dev)


def _setns(netns: int) -> None:
    if _LIBC.setns(netns, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise NetlinkError("enter the network namespace", number)
