"""A kernel that only remembers: what was asked of it, in order, and it can be told to fail at the Nth
request.

It hands out descriptors and keeps count, so a test sees which were left open; it knows just enough about
files for the operations' own checks to pass. Nothing is executed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from runtime.kernel import Meeting, Spawned, SpawnError, Status, Step

PROC_MAGIC, DEVPTS_MAGIC, OTHER_MAGIC = 0x9FA0, 0x1CD1, 0xEF53
FOLDER, FILE, CHARACTER = 0o040755, 0o100644, 0o020666


class FakeKernel:
    """Implements kernel.Kernel. `calls` is a list of (name, arguments); `open_fds` maps descriptor → path."""

    def __init__(
        self, *, fail_at: int | None = None, fail_step: int | None = None, missing: Sequence[str] = ()
    ) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self.open_fds: dict[int, str] = {}
        self.steps: tuple[Step, ...] = ()
        self.spawned = 0
        self._fail_at = fail_at
        self._fail_step = fail_step
        self._missing = set(missing)
        self._next = 100

    def names(self) -> list[str]:
        """The names of all calls, in order."""
        return [name for name, _ in self.calls]

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append((name, arguments))
        if self._fail_at is not None and len(self.calls) - 1 == self._fail_at:
            raise OSError(errno.EIO, f"{name} was told to fail")

    def _new(self, path: str) -> int:
        self._next += 1
        self.open_fds[self._next] = path
        return self._next

    # --- namespaces

    def unshare(self, flags: int) -> None:
        self._note("unshare", flags)

    def setns(self, fd: int, flags: int) -> None:
        self._note("setns", self.open_fds[fd], flags)

    def pidfd_open(self, pid: int) -> int:
        self._note("pidfd_open", pid)
        return self._new(f"pidfd:{pid}")

    def sethostname(self, name: str) -> None:
        self._note("sethostname", name)

    def setdomainname(self, name: str) -> None:
        self._note("setdomainname", name)

    def raise_loopback(self) -> None:
        self._note("raise_loopback")

    # --- mounts

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self._note("mount", source, target, fstype, flags, data)

    def umount(self, target: str, flags: int) -> None:
        self._note("umount", target, flags)

    def pivot_root(self, new: str, old: str) -> None:
        self._note("pivot_root", new, old)

    def chroot(self, path: str) -> None:
        self._note("chroot", path)

    def open_tree(self, dir_fd: int, path: str, flags: int) -> int:
        self._note("open_tree", self.open_fds.get(dir_fd, ""), path, flags)
        return self._new(path or self.open_fds.get(dir_fd, ""))

    def move_mount(self, from_fd: int, to_fd: int) -> None:
        self._note("move_mount", self.open_fds[from_fd], self.open_fds[to_fd])

    def mount_setattr(
        self, fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
    ) -> None:
        self._note("mount_setattr", self.open_fds[fd], set, clear, propagation, recursive)

    def user_namespace(self, uids: str, gids: str) -> int:
        self._note("user_namespace", uids, gids)
        return self._new(f"users {uids.strip()}")

    def map_mount(self, fd: int, namespace: int, *, recursive: bool) -> None:
        self._note("map_mount", self.open_fds[fd], self.open_fds[namespace], recursive)

    def fsopen(self, fstype: str) -> int:
        self._note("fsopen", fstype)
        return self._new(f"{fstype}/")

    def fsconfig(self, fd: int, key: str, value: str | None) -> None:
        self._note("fsconfig", self.open_fds[fd], key, value)

    def fspick(self, fd: int) -> int:
        self._note("fspick", self.open_fds[fd])
        return self._new(self.open_fds[fd])

    def reconfigure(self, fd: int) -> None:
        self._note("reconfigure", self.open_fds[fd])

    def fsmount(self, fd: int, attributes: int) -> int:
        self._note("fsmount", self.open_fds[fd], attributes)
        return self._new(self.open_fds[fd])

    # --- files

    def openat2(self, dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
        self._note("openat2", self.open_fds.get(dir_fd, ""), path, flags, resolve)
        if path in self._missing:
            raise FileNotFoundError(errno.ENOENT, path)
        return self._new(path)

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        self._note("open", path, flags)
        if path in self._missing:
            raise FileNotFoundError(errno.ENOENT, path)
        return self._new(path)

    def close(self, fd: int) -> None:
        # Not a request that can fail: it would be noted twice when cleaning up after a failure.
        del self.open_fds[fd]

    def fstat(self, fd: int) -> Status:
        path = self.open_fds[fd]
        if path == "/dev/null":
            return Status(CHARACTER, os.makedev(1, 3), 0, 1)
        if path.endswith("ptmx"):
            return Status(CHARACTER, os.makedev(5, 2), 0, 1)
        if path == "terminal":
            return Status(CHARACTER, os.makedev(136, 0), 0, 1)
        return Status(FILE if path.endswith(("kcore", "hosts", "keys", "console")) else FOLDER, 0, 0, 1)

    def filesystem(self, fd: int) -> int:
        path = self.open_fds[fd]
        if path.endswith("ptmx"):
            return DEVPTS_MAGIC
        return PROC_MAGIC if path.startswith("/proc") else OTHER_MAGIC

    def mkdir(self, path: str, mode: int, *, dir_fd: int | None = None) -> None:
        self._note("mkdir", path, mode)

    def mknod(self, path: str, mode: int, device: int, *, dir_fd: int) -> None:
        self._note("mknod", path, mode, device)

    def chown(self, path: str, uid: int, gid: int, *, dir_fd: int) -> None:
        self._note("chown", path, uid, gid)

    def symlink(self, target: str, path: str, *, dir_fd: int) -> None:
        self._note("symlink", target, path)

    def write(self, fd: int, data: bytes) -> None:
        self._note("write", self.open_fds[fd], data)

    def may_be_file(self, path: str) -> bool:
        return path not in self._missing

    def is_executable(self, path: str) -> bool:
        self._note("is_executable", path)
        if path in self._missing:
            raise FileNotFoundError(errno.ENOENT, path)
        return True

    def head(self, path: str) -> bytes:
        return b""

    def fchdir(self, fd: int) -> None:
        self._note("fchdir", self.open_fds[fd])

    def chdir(self, path: str) -> None:
        self._note("chdir", path)

    def getcwd(self) -> str:
        return "/"

    def copy_tree(self, source: int, target: int) -> None:
        self._note("copy_tree", self.open_fds[source], self.open_fds[target])

    def set_label(self, folder: int, label: str) -> None:
        self._note("set_label", self.open_fds[folder], label)

    def umask(self, mask: int) -> int:
        self._note("umask", mask)
        return 0o022

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        self._note("fchown", self.open_fds[fd], uid, gid)

    def duplicate(self, fd: int) -> int:
        self._note("duplicate", self.open_fds.get(fd, str(fd)))
        return self._new(self.open_fds.get(fd, str(fd)))

    # --- terminals

    def open_terminal_peer(self, master: int) -> int:
        self._note("open_terminal_peer", self.open_fds[master])
        return self._new("terminal")

    def set_window_size(self, fd: int, rows: int, columns: int) -> None:
        self._note("set_window_size", rows, columns)

    # --- processes

    def dumpable(self, on: bool) -> None:
        self._note("dumpable", on)

    def become_root(self) -> None:
        self._note("become_root")

    def raise_limit(self, resource: int, hard: int) -> None:
        self._note("raise_limit", resource, hard)

    def choose_cpus(self, cpus: Sequence[int]) -> None:
        self._note("choose_cpus", tuple(cpus))

    def thread(self) -> int:
        return 4712

    def capabilities(self, *, proc: int = -1) -> tuple[int, int]:
        return (1 << 41) - 1, (1 << 41) - 1

    def block_signals(self) -> None:
        self._note("block_signals")

    def ignored_signals(self) -> tuple[int, ...]:
        return (13, 25)

    def start_time(self, pid: int) -> int:
        return 4711

    def memfd(self, name: str, data: bytes) -> int:
        self._note("memfd", name, len(data))
        return self._new(f"memfd:{name}")

    def pipe(self) -> tuple[int, int]:
        self._note("pipe")
        return self._new("pipe"), self._new("pipe")

    def spawn(
        self,
        steps: Sequence[Step],
        *,
        cgroup_fd: int = -1,
        meeting: Meeting | None = None,
        sibling: bool = False,
    ) -> Spawned:
        self.steps = tuple(steps)
        self._note("spawn", len(steps), self.open_fds.get(cgroup_fd, ""), meeting is None)
        if meeting is not None:
            while meeting.more is not None and self.steps[-1] == Step("read", (meeting.go - 1, b"\0", 1)):
                self.steps += tuple(meeting.more(1000))
            if meeting.more is None:
                self.close(meeting.ready[1])
            if meeting.listen is not None:
                meeting.listen(1000, lambda _index: 7)
        if self._fail_step is not None:
            raise SpawnError(self._fail_step, errno.EIO, "told to fail")
        self.spawned += 1
        return Spawned(1000 + self.spawned, self._new("pidfd"), (0,) * len(steps))
