"""The door between container start-up and the kernel: about forty system calls, as a Protocol.

Set-up operations speak only to this. `linux.LinuxKernel` is the real one, `fake.FakeKernel` records what it
is asked and fails on request, so that the order of a container's set-up, and what is left after a failure at
step N, are tested without root.

Methods raise OSError as the kernel's answer; file descriptors are plain ints and close-on-exec. Methods that
work on paths take an optional directory descriptor as the *at* calls do.
"""

from __future__ import annotations

from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol
else:

    class Protocol:
        """typing.Protocol costs 1.5 MB per forkserver; only type checkers need it."""


AT_FDCWD = -100


class Filter(bytes):
    """A classic BPF program: 8 bytes an instruction. Its own type, so that it is handed over as a
    sock_fprog."""


Argument = int | bytes | str | tuple[str, ...] | Filter


class Step(Record):
    """One system call of the child, between clone and execve.

    `arguments`: ints; bytes and str (as pointer; str gets its final NUL); tuples of str (argv, envp); Filter.
    `tolerate`: an error is reported in `Spawned.results`, not fatal. `pass_result`: the result becomes the
    first argument of the step after it.
    """

    call: str
    arguments: tuple[Argument, ...] = ()
    tolerate: bool = False
    pass_result: bool = False


class Meeting(Record):
    """How we and a child with a copy of our memory wait for each other before `spawn` returns.

    The child writes to the pipe `ready`. READY, or its end: nothing more. LISTENING: its next step results
    in a seccomp listener, and `listen(pid, result_of)` is called, where result_of(index) waits for a step;
    that is all, too. PAUSE: it has done its steps; `more(pid)` says which come next, and the
    child, which reads from `go`, is told. With `more` it also shares our descriptors, until it separates
    them. What these functions raise ends the child.
    """

    ready: tuple[int, int]
    listen: Callable[[int, Callable[[int], int]], None] | None = None
    go: int = -1
    more: Callable[[int], Sequence[Step]] | None = None


READY, PAUSE, LISTENING = b"1", b"p", b"n"


class Spawned(Record):
    """A started child. `results` holds, by step, what each system call returned (negative errno on error)."""

    pid: int
    pidfd: int
    results: tuple[int, ...]


class SpawnError(OSError):
    """The child's step number `index` failed with `errno`; the child is gone and reaped."""

    def __init__(self, index: int, errno: int, text: str) -> None:
        super().__init__(errno, text)
        self.index = index


class Region(Record):
    """Where in memory something goes, and where in a file it is; a file's `offset` is whole pages."""

    address: int
    size: int
    offset: int


class Status(Record):
    """The parts of stat that set-up needs."""

    mode: int
    rdev: int
    uid: int
    inode: int


class Kernel(Protocol):
    """See the module. Real: linux.LinuxKernel. Recording: fake.FakeKernel."""

    # namespaces
    def unshare(self, flags: int) -> None: ...
    def setns(self, fd: int, flags: int) -> None: ...
    def pidfd_open(self, pid: int) -> int: ...
    def sethostname(self, name: str) -> None: ...
    def setdomainname(self, name: str) -> None: ...

    # mounts
    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None: ...
    def umount(self, target: str, flags: int) -> None: ...
    def pivot_root(self, new: str, old: str) -> None: ...
    def chroot(self, path: str) -> None: ...
    def open_tree(self, dir_fd: int, path: str, flags: int) -> int: ...
    def move_mount(self, from_fd: int, to_fd: int) -> None: ...
    def mount_setattr(
        self, fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
    ) -> None: ...
    def user_namespace(self, uids: str, gids: str) -> int: ...
    def map_mount(self, fd: int, namespace: int, *, recursive: bool) -> None: ...
    def fsopen(self, fstype: str) -> int: ...
    def fsconfig(self, fd: int, key: str, value: str | None) -> None: ...
    def fspick(self, fd: int) -> int: ...
    def reconfigure(self, fd: int) -> None: ...
    def fsmount(self, fd: int, attributes: int) -> int: ...

    # files
    def openat2(self, dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int: ...
    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int: ...
    def close(self, fd: int) -> None: ...
    def fstat(self, fd: int) -> Status: ...
    def filesystem(self, fd: int) -> int: ...
    def mkdir(self, path: str, mode: int, *, dir_fd: int | None = None) -> None: ...
    def mknod(self, path: str, mode: int, device: int, *, dir_fd: int) -> None: ...
    def chown(self, path: str, uid: int, gid: int, *, dir_fd: int) -> None: ...
    def symlink(self, target: str, path: str, *, dir_fd: int) -> None: ...
    def write(self, fd: int, data: bytes) -> None: ...
    def is_executable(self, path: str) -> bool: ...
    def fchdir(self, fd: int) -> None: ...
    def chdir(self, path: str) -> None: ...
    def getcwd(self) -> str: ...
    def copy_tree(self, source: int, target: int) -> None: ...
    def set_label(self, folder: int, label: str) -> None: ...
    def umask(self, mask: int) -> int: ...
    def fchown(self, fd: int, uid: int, gid: int) -> None: ...
    def duplicate(self, fd: int) -> int: ...

    # terminals
    def open_terminal_peer(self, master: int) -> int: ...
    def set_window_size(self, fd: int, rows: int, columns: int) -> None: ...

    # processes
    def dumpable(self, on: bool) -> None: ...
    def capabilities(self, *, proc: int = -1) -> tuple[int, int]: ...
    def become_root(self) -> None: ...
    def raise_limit(self, resource: int, hard: int) -> None: ...
    def thread(self) -> int: ...
    def choose_cpus(self, cpus: Sequence[int]) -> None: ...
    def block_signals(self) -> None: ...
    def ignored_signals(self) -> tuple[int, ...]: ...
    def start_time(self, pid: int) -> int: ...
    def memfd(self, name: str, data: bytes) -> int: ...
    def pipe(self) -> tuple[int, int]: ...
    def spawn(
        self,
        steps: Sequence[Step],
        *,
        cgroup_fd: int = -1,
        meeting: Meeting | None = None,
        sibling: bool = False,
    ) -> Spawned: ...
