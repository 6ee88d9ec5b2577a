"""A kernel that writes down what it is asked, for a start that is compiled ahead.

The operations of a plan are run against it as against the real one, so there is one list and one code for
both; each request becomes an entry of a program (program.py). Where an operation's way depends on what the
kernel says, the answer is foreseen (foresight.py), and written down with the entry, or as a check behind it:
if the kernel says something else when the time comes, the program stops. So a program does just what the
operations would have done, or it does not do it.

Descriptors are not closed one by one: they are a short-lived process's own.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from runtime import signals
from runtime.foresight import FOLDER, Foresight, Unforeseen
from runtime.kernel import AT_FDCWD, Kernel, Meeting, Spawned, Status, Step
from runtime.linux import (
    CLONE_CLEAR_SIGHAND,
    CLONE_INTO_CGROUP,
    CLONE_PARENT,
    CLONE_VFORK,
    CLONE_VM,
    LinuxKernel,
)
from runtime.machine import PASS_RESULT, TOLERATE, Machine, this_machine
from runtime.mounting import NO_SYMLINKS
from runtime.namespaces import PROC_SUPER_MAGIC
from runtime.program import Entry, Given, Holed, Jump, Scratch, Slot
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

SHOWN_FROM_HOST = {"sysfs": "/sys"}  # file systems that show much the same whoever mounts them
WORD = 0xFFFFFFFF
NUMBER_OF_LAST = Slot.FIRST - 1


class Seen(Record):
    """What a descriptor leads to: a `path` of the host, or `inside` the container's root, and its mode. A
    mount that is attached nowhere has the path that it shows, or ""."""

    path: str
    inside: bool
    mode: int
    device: int = 0


class Recorder(LinuxKernel):
    """Implements kernel.Kernel. What cannot be foreseen raises Unforeseen. `entries` is what was asked;
    `child` the number of the entry that makes the child, whose steps follow it."""

    def __init__(
        self,
        kernel: Kernel,
        layers: tuple[str, ...],
        machine: Machine | None = None,
        given: Mapping[str, Given] | None = None,
    ) -> None:
        """`given`: what stands for a path that is not known yet, and is opened by who runs the program."""
        self._kernel = kernel
        self._given = given or {}
        self._machine = self.machine = machine or this_machine()
        self._numbers = self._machine.numbers
        self._root = Foresight(layers)
        self._roots: set[str] = set()
        self._seen: dict[int, Seen] = {}
        self.entries: list[Entry] = []
        self.child = -1

    # --- writing down

    def _call(self, name: str, *arguments: object) -> int:
        return self._ask(name, tuple(map(_passed, arguments)))

    def _ask(self, name: str, arguments: tuple[object, ...], expected: int = 0) -> Slot:
        entries = self.entries
        entries.append(Entry(name, arguments, 0, expected))
        return Slot(NUMBER_OF_LAST + len(entries))

    def _check(self, offset: int, mask: int, value: int, *, differs: bool = False) -> None:
        """The word of the scratch memory at `offset` must be the value, or must not."""
        self.entries.append(Entry("", (Scratch(offset), mask, value, int(differs))))

    def _at(self, name: str, dir_fd: int | None, *arguments: object, expected: int = 0) -> Slot:
        return self._ask(name, (AT_FDCWD if dir_fd is None else dir_fd, *arguments), expected)

    def _note(self, slot: Slot, seen: Seen) -> Slot:
        self._seen[slot] = seen
        return slot

    def _where(self, fd: int) -> Seen:
        if fd not in self._seen:
            raise Unforeseen("a descriptor of unknown origin")
        return self._seen[fd]

    # --- files

    def openat2(self, dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
        folder = self._where(dir_fd)
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
        arguments = (dir_fd, path, how, len(how))
        links = not (resolve & NO_SYMLINKS or flags & os.O_NOFOLLOW)
        try:
            seen = self._find(folder, path, links)
        except OSError as error:
            self._ask("openat2", arguments, -(error.errno or 0))
            raise
        return self._note(self._ask("openat2", arguments), seen)

    def _find(self, folder: Seen, path: str, links: bool) -> Seen:
        if folder.inside:
            place = path if path.startswith("/") else f"{folder.path}/{path}"
            found, mode = self._root.find(place, links=links)
            return Seen(found, True, mode)
        if not folder.path:
            raise Unforeseen("a path below a mount that is attached nowhere")
        status = os.lstat(f"{folder.path}/{path}")
        if stat.S_ISLNK(status.st_mode):
            raise Unforeseen(f"{path} is a symlink")
        return Seen(f"{folder.path}/{path}", False, status.st_mode, status.st_rdev)

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        if dir_fd is not None:
            return self._open_below(dir_fd, path, flags)
        if path in self._given:
            return self._given[path]
        if not (path.startswith("/") or path == "."):
            raise Unforeseen("a relative path of the host")
        slot = self._at("openat", None, path, flags | os.O_CLOEXEC, 0)
        if path == ".":
            return slot
        if path in self._roots:
            return self._note(slot, Seen("", True, FOLDER))
        status = os.stat(path)
        return self._note(slot, Seen(path, False, status.st_mode, status.st_rdev))

    def _open_below(self, folder_fd: int, path: str, flags: int) -> int:
        """In a folder of the host's: /proc, where the files of security modules are."""
        folder = self._where(folder_fd)
        if folder.inside or not folder.path:
            raise Unforeseen("an open in the container")
        place = f"{folder.path}/{path}"
        status = os.stat(place)
        slot = self._at("openat", folder_fd, path, flags | os.O_CLOEXEC, 0)
        return self._note(slot, Seen(place, False, status.st_mode, status.st_rdev))

    def close(self, fd: int) -> None:
        return

    def fstat(self, fd: int) -> Status:
        seen = self._where(fd)
        machine = self._machine
        self._ask("fstat", (fd, Scratch()))
        # Modes that an image or a volume has are looked at, too; of the kernel's own only the type.
        mask = 0o177777 if seen.inside else 0o170000
        self._check(machine.mode_offset, mask, seen.mode & mask)
        if seen.device:
            self._check(machine.rdev_offset, WORD, seen.device)
        return Status(seen.mode, seen.device, 0, 0)

    def filesystem(self, fd: int) -> int:
        """Only whether it is a procfs or not can be told; nothing else is asked."""
        seen = self._where(fd)
        procfs = not seen.inside and (seen.path + "/").startswith("/proc/")
        self._ask("fstatfs", (fd, Scratch()))
        self._check(0, WORD, PROC_SUPER_MAGIC, differs=not procfs)
        return PROC_SUPER_MAGIC if procfs else 0

    def mkdir(self, path: str, mode: int, *, dir_fd: int | None = None) -> None:
        if dir_fd is None:
            if os.path.lexists(path):
                self._at("mkdirat", None, path, mode, expected=-errno.EEXIST)
                raise FileExistsError(errno.EEXIST, path)
            self._at("mkdirat", None, path, mode)
            return
        self._make(path, stat.S_IFDIR | mode, dir_fd)
        self._at("mkdirat", dir_fd, path, mode)

    def _make(self, name: str, mode: int, dir_fd: int) -> None:
        """A name that must not be there yet."""
        folder = self._where(dir_fd)
        if not folder.inside:
            raise Unforeseen("something made outside the root")
        try:
            self._root.find(f"{folder.path}/{name}", links=False)
        except FileNotFoundError:
            self._root.make(f"{folder.path}/{name}", mode)
        else:
            raise Unforeseen(f"{name} is there already")

    def mknod(self, path: str, mode: int, device: int, *, dir_fd: int) -> None:
        self._make(path, mode, dir_fd)
        # The kernel's own form of a number; the two differ beyond 8 bits of major and minor.
        self._at("mknodat", dir_fd, path, mode, _kernel_device(device))

    def chown(self, path: str, uid: int, gid: int, *, dir_fd: int) -> None:
        self._at("fchownat", dir_fd, path, uid, gid, 0x100)  # AT_SYMLINK_NOFOLLOW

    def symlink(self, target: str, path: str, *, dir_fd: int) -> None:
        self._make(path, 0o120777, dir_fd)
        self._ask("symlinkat", (target, dir_fd, path))

    def write(self, fd: int, data: bytes) -> None:
        self._ask("write", (fd, data, len(data)), len(data))

    def may_be_file(self, path: str) -> bool:
        """As the host has it now."""
        return self._kernel.may_be_file(path)

    def is_executable(self, path: str) -> bool:
        if not path.startswith("/"):
            raise Unforeseen("a relative path of a program")
        arguments = (AT_FDCWD, path, Scratch(), 0)
        try:
            _, mode = self._root.find(path)
        except OSError as error:
            self._ask("newfstatat", arguments, -(error.errno or 0))
            raise
        if not stat.S_ISREG(mode) or not mode & 0o111:
            raise Unforeseen(f"{path} is no program")
        self._ask("newfstatat", arguments)
        self._check(self._machine.mode_offset, 0o170000, 0o100000)
        self._check(self._machine.mode_offset, 0o111, 0, differs=True)
        return True

    def head(self, path: str) -> bytes:
        """Nothing: it may be another file when the program runs. Who runs programs is executed from a
        read-only mount, and needs no such care."""
        return b""

    def fchdir(self, fd: int) -> None:
        self._ask("fchdir", (fd,))

    def chdir(self, path: str) -> None:
        self._ask("chdir", (path,))

    def chroot(self, path: str) -> None:
        self._ask("chroot", (path,))

    def getcwd(self) -> str:
        self._ask("getcwd", (Scratch(), 512))
        self._check(0, 0xFF, ord("/"))
        return "/"

    def umask(self, mask: int) -> int:
        return self._ask("umask", (mask,))

    def duplicate(self, fd: int) -> int:
        slot = super().duplicate(fd)
        return self._note(Slot(slot), self._where(fd))

    # --- mounts

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self._ask("mount", (source, target, fstype, flags, data))
        if fstype:
            self._roots.add(target)

    def open_tree(self, dir_fd: int, path: str, flags: int) -> int:
        slot = Slot(super().open_tree(dir_fd, path, flags))
        if path:
            if dir_fd != AT_FDCWD or not path.startswith("/"):
                raise Unforeseen("a relative path of a mount")
            status = os.stat(path)
            return self._note(slot, Seen(path, False, status.st_mode, status.st_rdev))
        return self._note(slot, self._where(dir_fd))

    def fsopen(self, fstype: str) -> int:
        shown = SHOWN_FROM_HOST.get(fstype, "")
        return self._note(Slot(super().fsopen(fstype)), Seen(shown, False, FOLDER))

    def fsmount(self, fd: int, attributes: int) -> int:
        return self._note(Slot(super().fsmount(fd, attributes)), self._where(fd))

    def move_mount(self, from_fd: int, to_fd: int) -> None:
        super().move_mount(from_fd, to_fd)
        tree, target = self._where(from_fd), self._where(to_fd)
        if target.inside and not tree.inside:
            self._root.mount(target.path, tree.path)
        elif target.path == "/":
            self._note(Slot(from_fd), Seen("", True, FOLDER))  # it covers what was the root: see bare.py

    # --- processes

    def block_signals(self) -> None:
        self._ask("rt_sigprocmask", (0, b"\xff" * 8, 0, 8))

    def capabilities(self, *, proc: int = -1) -> tuple[int, int]:
        if proc >= 0:
            raise Unforeseen("capabilities in a user namespace")
        return self._kernel.capabilities()

    def ignored_signals(self) -> tuple[int, ...]:
        """Ours, and those that a shim may ignore besides."""
        return tuple(sorted({*self._kernel.ignored_signals(), signals.SIGPIPE, signals.SIGCHLD, 25}))

    def memfd(self, name: str, data: bytes) -> int:
        slot = self._ask("memfd_create", (name, 3))
        self._ask("write", (slot, data, len(data)), len(data))
        self._ask("fchmod", (slot, 0o555))
        self._ask("fcntl", (slot, 1033, 0xF))  # F_ADD_SEALS
        return self._note(slot, Seen("", False, 0o100555))

    def spawn(
        self,
        steps: Sequence[Step],
        *,
        cgroup_fd: int = -1,
        meeting: Meeting | None = None,
        sibling: bool = False,
    ) -> Spawned:
        """The program's child is the sibling of the process that sets up, so `sibling` does not matter."""
        if meeting is not None:
            raise Unforeseen("a meeting with the child")
        flags = CLONE_VM | CLONE_VFORK | CLONE_PARENT | CLONE_CLEAR_SIGHAND
        flags |= CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0
        arguments = struct.pack("=11Q", flags, *[0] * 10)
        self.child = len(self.entries)
        after = self.child + 1 + len(steps)
        self._ask("clone3", (Holed(arguments, 80, cgroup_fd), len(arguments), 0, 0, 0, Jump(after)))
        for step in steps:
            kind = (TOLERATE if step.tolerate else 0) | (PASS_RESULT if step.pass_result else 0)
            self.entries.append(Entry(step.call, step.arguments, kind, step.expected))
        self._ask("exit_group", (0,))
        return Spawned(0, -1, (0,) * len(steps))

    # --- what needs somebody who thinks

    def _unforeseen(self, *_arguments: Any, **_options: Any) -> Any:
        raise Unforeseen("it needs an answer that nobody knows yet")

    copy_tree: Any = _unforeseen
    set_label: Any = _unforeseen
    become_root: Any = _unforeseen
    raise_limit: Any = _unforeseen
    choose_cpus: Any = _unforeseen
    user_namespace: Any = _unforeseen
    map_mount: Any = _unforeseen
    open_terminal_peer: Any = _unforeseen
    set_window_size: Any = _unforeseen
    thread: Any = _unforeseen
    start_time: Any = _unforeseen
    pipe: Any = _unforeseen
    pidfd_open: Any = _unforeseen
    fspick: Any = _unforeseen
    reconfigure: Any = _unforeseen
    fchown: Any = _unforeseen


def _passed(argument: object) -> object:
    """As an entry has it: nothing is 0, and bytes may be a text without its end."""
    if argument is None:
        return 0
    return argument + b"\0" if isinstance(argument, bytes) else argument


def _kernel_device(device: int) -> int:
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
