"""The real kernel, through the C library (see clibrary.py).

Everything here acts on the calling *thread* where the kernel allows it
(namespaces, working directory after unshare(CLONE_FS), umask); what the kernel keeps per process is done in
the child (`spawn`).
"""

from __future__ import annotations

import errno
import os
import struct
from _thread import get_native_id

from runtime import clibrary, signals
from runtime.copyup import copy_tree
from runtime.kernel import (
    AT_FDCWD,
    LISTENING,
    PAUSE,
    Meeting,
    Region,
    Spawned,
    SpawnError,
    Status,
    Step,
)  # fmt: skip
from runtime.machine import Machine, this_machine
from runtime.mounting import NO_MAGICLINKS
from runtime.stopped import LOOK_SECONDS, kill_stopped
from runtime.table import HEAD_WORDS, REGION, Table, Talk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE, FSCONFIG_CMD_RECONFIGURE = 0, 1, 6, 7
FSPICK_CLOEXEC, FSPICK_EMPTY_PATH = 1, 8
CLONE_VM, CLONE_PIDFD, CLONE_VFORK = 0x100, 0x1000, 0x4000
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 0x100000000, 0x200000000
SETTER = CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND
CLONE_PARENT, CLONE_NEWUSER, ATTR_IDMAP, CLONE_FILES = 0x8000, 0x10000000, 0x100000, 0x400
PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
MAP_FAILED = 2**64 - 1
MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x20, 0x4000
MAP_POPULATE, MAP_FIXED_NOREPLACE = 0x8000, 0x100000
POLLIN = 1
LOOK_UPS = 128
HEAD_BYTES = 256  # BINPRM_BUF_SIZE
LOOK_NANOSECONDS = int(LOOK_SECONDS * 1e9)
KILLED = "the process was killed before it was ready"
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
TIOCGPTPEER, TIOCSPTLCK, TIOCSWINSZ = 0x5441, 0x40045431, 0x5414
AF_INET, SOCK_DGRAM, SIOCSIFFLAGS, IFF_UP = 2, 2, 0x8914, 1
F_DUPFD_CLOEXEC, F_ADD_SEALS, ALL_SEALS = 1030, 1033, 0xF


_PADDING = tuple((0,) * (6 - count) for count in range(7))


class LinuxKernel:
    """Implements kernel.Kernel. Thread-safe; make one per process."""

    def __init__(self, machine: Machine | None = None) -> None:
        self._machine = machine or this_machine()
        self._numbers = self._machine.numbers
        self._syscall = clibrary.libc("syscall", "llPPPPPP")
        self._mmap = clibrary.libc("mmap", "PPLiiil")
        self._munmap = clibrary.libc("munmap", "iPL")
        self._mprotect = clibrary.libc("mprotect", "iPLi")
        self._fstatfs = clibrary.libc("fstatfs", "iiP")
        self._held = _held_capabilities()
        self._spawn_code = self._load_code(self._machine.spawn)

    def _call(self, name: str, *arguments: int | bytes | None) -> int:
        result = int(self._syscall(self._numbers[name], *arguments, *_PADDING[len(arguments)]))
        if result < 0:
            number = clibrary.errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")
        return result

    def _map(self, size: int, flags: int, *, at: int | None = None, file: int = -1, offset: int = 0) -> int:
        kind = flags if file >= 0 else flags | MAP_ANONYMOUS
        address = self._mmap(at, size, PROT_READ | PROT_WRITE, kind, file, offset)
        if address in (None, MAP_FAILED):
            raise OSError(clibrary.errno(), "mmap: " + os.strerror(clibrary.errno()))
        return int(address)

    def _load_code(self, code: bytes) -> Callable[..., int]:
        """Machine code as a callable; never writable and executable at once."""
        address = self._map(self._machine.page, MAP_PRIVATE)
        clibrary.write(address, code)
        if self._mprotect(address, self._machine.page, PROT_READ | PROT_EXEC):
            raise OSError(clibrary.errno(), "mprotect: " + os.strerror(clibrary.errno()))
        return clibrary.at(address, "lPLPP")

    # --- namespaces

    def unshare(self, flags: int) -> None:
        self._call("unshare", flags)

    def setns(self, fd: int, flags: int) -> None:
        self._call("setns", fd, flags)

    def pidfd_open(self, pid: int) -> int:
        return self._call("pidfd_open", pid, 0)

    def sethostname(self, name: str) -> None:
        raw = name.encode()
        self._call("sethostname", raw, len(raw))

    def setdomainname(self, name: str) -> None:
        raw = name.encode()
        self._call("setdomainname", raw, len(raw))

    def raise_loopback(self) -> None:
        """IFF_UP for `lo` of the thread's network namespace (netdevice(7)); 127.0.0.1 comes with it."""
        fd = self._call("socket", AF_INET, SOCK_DGRAM | os.O_CLOEXEC, 0)
        try:
            self._call("ioctl", fd, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
        finally:
            self.close(fd)

    # --- mounts

    def mount(self, source: str, target: str, fstype: str, flags: int, data: str) -> None:
        self._call(
            "mount", os.fsencode(source), os.fsencode(target), fstype.encode(), flags, os.fsencode(data)
        )

    def umount(self, target: str, flags: int) -> None:
        self._call("umount2", os.fsencode(target), flags)

    def pivot_root(self, new: str, old: str) -> None:
        self._call("pivot_root", os.fsencode(new), os.fsencode(old))

    def chroot(self, path: str) -> None:
        os.chroot(path)

    def open_tree(self, dir_fd: int, path: str, flags: int) -> int:
        return self._call("open_tree", dir_fd, os.fsencode(path), flags | os.O_CLOEXEC)

    def move_mount(self, from_fd: int, to_fd: int) -> None:
        self._call("move_mount", from_fd, b"", to_fd, b"", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)

    def mount_setattr(
        self, fd: int, *, set: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
    ) -> None:
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        attributes = struct.pack("=QQQQ", set, clear, propagation, 0)
        self._call("mount_setattr", fd, b"", flags, attributes, len(attributes))

    def user_namespace(self, uids: str, gids: str) -> int:
        """A user namespace with these mappings and no process, which `map_mount` takes. It is made by a child
        that waits while they are written. Never call it after unshare of the PID namespace: the child would
        be its init."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ready = os.pipe2(os.O_CLOEXEC)
        steps = (
            Step("unshare", (CLONE_NEWUSER,)),
            Step("close", (writer,)),
            Step("write", (ready[1], b"1", 1)),
            Step("close", (ready[1],)),
            Step("read", (reader, b"\0", 1)),
            Step("exit", (0,)),
        )
        try:
            child = self.spawn(steps, meeting=Meeting(ready))
            try:
                for name, text in (("uid_map", uids), ("gid_map", gids)):
                    with open(f"/proc/{child.pid}/{name}", "wb", buffering=0) as file:
                        file.write(text.encode())
                return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(writer)
                writer = -1
                _reap(child.pidfd)
        finally:
            os.close(reader)
            os.close(ready[0])
            if writer >= 0:
                os.close(writer)

    def map_mount(self, fd: int, namespace: int, *, recursive: bool) -> None:
        """Idmaps a detached mount by the mappings of a user namespace (Linux 5.12, tmpfs 6.3)."""
        attributes = struct.pack("=QQQQ", ATTR_IDMAP, 0, 0, namespace)
        flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
        self._call("mount_setattr", fd, b"", flags, attributes, len(attributes))

    def fsopen(self, fstype: str) -> int:
        return self._call("fsopen", fstype.encode(), 1)

    def fsconfig(self, fd: int, key: str, value: str | None) -> None:
        """Sets `key` to `value`; a flag if the value is None; an empty key creates the superblock."""
        if not key:
            self._call("fsconfig", fd, FSCONFIG_CMD_CREATE, None, None, 0)
        elif value is None:
            self._call("fsconfig", fd, FSCONFIG_SET_FLAG, os.fsencode(key), None, 0)
        else:
            self._call("fsconfig", fd, FSCONFIG_SET_STRING, os.fsencode(key), os.fsencode(value), 0)

    def fspick(self, fd: int) -> int:
        """A mount's file system, to be configured anew."""
        return self._call("fspick", fd, b"", FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)

    def reconfigure(self, fd: int) -> None:
        """Makes what fsconfig has set on an fspick descriptor true."""
        self._call("fsconfig", fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0)

    def fsmount(self, fd: int, attributes: int) -> int:
        return self._call("fsmount", fd, 1, attributes)

    # --- files

    def openat2(self, dir_fd: int, path: str, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
        for _ in range(LOOK_UPS):
            try:
                return self._call("openat2", dir_fd, os.fsencode(path), how, len(how))
            except BlockingIOError:
                continue  # a rename or mount somewhere on the machine made ".." uncertain
        raise BlockingIOError(errno.EAGAIN, f"openat2: {os.strerror(errno.EAGAIN)}")

    def open(self, path: str, flags: int, *, dir_fd: int | None = None) -> int:
        return os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def fstat(self, fd: int) -> Status:
        status = os.fstat(fd)
        return Status(status.st_mode, status.st_rdev, status.st_uid, status.st_ino)

    def filesystem(self, fd: int) -> int:
        """The file system's magic number (statfs.f_type), 32 bits."""
        buffer = clibrary.buffer(128)
        if self._fstatfs(fd, buffer):
            raise OSError(clibrary.errno(), "fstatfs: " + os.strerror(clibrary.errno()))
        return int(struct.unpack_from("=q", buffer)[0]) & 0xFFFFFFFF

    def mkdir(self, path: str, mode: int, *, dir_fd: int | None = None) -> None:
        os.mkdir(path, mode, dir_fd=dir_fd)

    def mknod(self, path: str, mode: int, device: int, *, dir_fd: int) -> None:
        os.mknod(path, mode, device, dir_fd=dir_fd)

    def chown(self, path: str, uid: int, gid: int, *, dir_fd: int) -> None:
        os.chown(path, uid, gid, dir_fd=dir_fd, follow_symlinks=False)

    def symlink(self, target: str, path: str, *, dir_fd: int) -> None:
        os.symlink(target, path, dir_fd=dir_fd)

    def write(self, fd: int, data: bytes) -> None:
        os.write(fd, data)

    def may_be_file(self, path: str) -> bool:
        """Whether something but a folder is there. Where it matters it is looked at again."""
        return os.path.lexists(path) and not os.path.isdir(path)

    def is_executable(self, path: str) -> bool:
        """A regular file with any execute bit; raises OSError when it is not there."""
        status = os.stat(path)
        return status.st_mode & 0o170000 == 0o100000 and bool(status.st_mode & 0o111)

    def head(self, path: str) -> bytes:
        """The first bytes of a file, by which execve(2) tells what it is; b"" if it is none, or is behind a
        magic link."""
        try:
            # Looked at before it is opened: opening a device may have it do something.
            for flags in (os.O_PATH, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY):
                fd = self.openat2(AT_FDCWD, path, flags, resolve=NO_MAGICLINKS)
                try:
                    if os.fstat(fd).st_mode & 0o170000 != 0o100000:
                        return b""
                    if flags != os.O_PATH:
                        return os.pread(fd, HEAD_BYTES, 0)
                finally:
                    os.close(fd)
        except OSError:
            pass  # who executes it tells why
        return b""

    def fchdir(self, fd: int) -> None:
        os.fchdir(fd)

    def chdir(self, path: str) -> None:
        os.chdir(path)

    def getcwd(self) -> str:
        return os.getcwd()

    def copy_tree(self, source: int, target: int) -> None:
        """A folder's content into another; see copyup."""
        copy_tree(source, target)

    def set_label(self, folder: int, label: str) -> None:
        """SELinux's label of a folder, which may be an O_PATH descriptor."""
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.setxattr(opened, "security.selinux", label.encode() + b"\0")
        finally:
            os.close(opened)

    def umask(self, mask: int) -> int:
        return os.umask(mask)

    def fchown(self, fd: int, uid: int, gid: int) -> None:
        os.fchown(fd, uid, gid)

    def duplicate(self, fd: int) -> int:
        """A copy of `fd` above 2."""
        return self._call("fcntl", fd, F_DUPFD_CLOEXEC, 3)

    # --- terminals

    def open_terminal_peer(self, master: int) -> int:
        """The other side of a pty, without a path (TIOCGPTPEER); unlocked first."""
        self._call("ioctl", master, TIOCSPTLCK, struct.pack("i", 0))
        return self._call("ioctl", master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def set_window_size(self, fd: int, rows: int, columns: int) -> None:
        self._call("ioctl", fd, TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    # --- processes

    def dumpable(self, on: bool) -> None:
        self._call("prctl", PR_SET_DUMPABLE, int(on), 0, 0, 0)

    def child_subreaper(self, on: bool) -> None:
        """Whether orphans below this process become its children instead of init's."""
        self._call("prctl", PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)

    def capabilities(self, *, proc: int = -1) -> tuple[int, int]:
        """Bits of our own permitted and bounding sets, as they were at the start or, by a descriptor of the
        host's /proc, are now."""
        if proc < 0:
            return self._held
        return _held_capabilities(os.open("self/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))

    def become_root(self) -> None:
        """Of a user namespace just entered; whole process, which therefore has one thread."""
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    def raise_limit(self, resource: int, hard: int) -> None:
        """Raises our own hard limit to `hard`; a higher one stays."""
        import resource as limits

        soft, present = limits.getrlimit(resource)
        wanted = limits.RLIM_INFINITY if hard >= 2**64 - 1 else hard
        if present != limits.RLIM_INFINITY and (wanted == limits.RLIM_INFINITY or wanted > present):
            try:
                limits.setrlimit(resource, (soft, wanted))
            except ValueError as error:  # what Python makes of EPERM
                raise PermissionError(errno.EPERM, str(error)) from error

    def thread(self) -> int:
        """The calling thread's number, which /proc knows too."""
        return get_native_id()

    def choose_cpus(self, cpus: Sequence[int]) -> None:
        """The processors that the calling thread may run on."""
        os.sched_setaffinity(0, cpus)

    def block_signals(self) -> None:
        """All signals of this thread: a handler must not run in a child that shares our memory."""
        signals.block_all()

    def ignored_signals(self) -> tuple[int, ...]:
        """Those that this process ignores."""
        return signals.ignored()

    def start_time(self, pid: int) -> int:
        """Clock ticks between boot and the process's start: field 22 of /proc/<pid>/stat."""
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(descriptor, 4096).rpartition(b")")[2].split()[19])
        finally:
            os.close(descriptor)

    def memfd(self, name: str, data: bytes) -> int:
        """A sealed file in memory: nobody can change what was written, whoever holds a descriptor."""
        fd = self._call("memfd_create", name.encode(), 3)
        try:
            os.write(fd, data)
            os.fchmod(fd, 0o555)
            self._call("fcntl", fd, F_ADD_SEALS, ALL_SEALS)
        except OSError:
            os.close(fd)
            raise
        return fd

    def pipe(self) -> tuple[int, int]:
        return os.pipe2(os.O_CLOEXEC)

    def spawn(
        self,
        steps: Sequence[Step],
        *,
        cgroup_fd: int = -1,
        meeting: Meeting | None = None,
        sibling: bool = False,
    ) -> Spawned:
        """Starts a child that works off `steps`, the last of which is an execve, and returns after that.

        With a meeting the child gets a copy of our memory instead of sharing it, and this returns when it is
        over. The second end of its pipe `ready` is closed, unless the child shares our descriptors. A
        `sibling` becomes the child of our parent. The child has no signal handler of ours (which would run in
        our memory), but ignores what we ignore.

        Raises SpawnError with the failed step; clone3's own failure has index -1.
        """
        if meeting is not None:
            return self._spawn_together(steps, cgroup_fd, meeting, sibling)
        table = Table(steps, self._numbers)
        size = -(-table.size // clibrary.PAGE) * clibrary.PAGE
        address = self._map(size, MAP_SHARED)
        try:
            clibrary.write(address, table.image(address))
            shared = CLONE_VM | CLONE_VFORK
            pid, pidfd = self._clone(address, cgroup_fd, shared | (CLONE_PARENT if sibling else 0))
            results, failed = table.results(clibrary.read(address, size // clibrary.PAGE), address)
        finally:
            self._munmap(address, size)
        return self._spawned(pid, pidfd, steps, results, failed)

    def perform(
        self, file: int, place: Region, given: Sequence[tuple[int, int]], wanted: Sequence[int]
    ) -> tuple[int, ...]:
        """Has a whole program run that lies in `file`: by a child that shares our memory, makes the program's
        process our child, and ends. Returns the words that are `wanted` of it afterwards; `given` (place in
        it, value) are put in before.

        Raises OSError, with nothing done, when its addresses are taken or memory is short.
        """
        flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_POPULATE
        address = self._map(place.size, flags, at=place.address, file=file, offset=place.offset)
        try:
            if address != place.address:  # a kernel before 4.17 takes it for a hint
                raise FileExistsError(errno.EEXIST, "mmap: " + os.strerror(errno.EEXIST))
            for offset, value in given:
                clibrary.write(address + offset, value.to_bytes(8, "little"))
            pidfd = clibrary.Number(-1)
            arguments = struct.pack("=11Q", SETTER, pidfd.address, 0, 0, signals.SIGCHLD, 0, 0, 0, 0, 0, 0)
            # It may run beside us, on our stack: its instructions do not use one.
            setter = self._spawn_code(arguments, len(arguments), address + HEAD_WORDS * 8, address)
            if setter < 0:
                raise OSError(-setter, f"clone3: {os.strerror(-setter)}")
            while not self._ends(pidfd.value, LOOK_NANOSECONDS):
                kill_stopped(os.getpid())
            _reap(pidfd.value)
            return tuple(clibrary.word(address + offset) for offset in wanted)
        finally:
            self._munmap(address, place.size)

    def _spawn_together(
        self, steps: Sequence[Step], cgroup_fd: int, meeting: Meeting, sibling: bool
    ) -> Spawned:
        """The child's table and all it points to lie in memory that stays shared, and has room for more."""
        address = self._map(REGION, MAP_SHARED | MAP_NORESERVE)
        try:
            talk = Talk(address, steps, self._numbers)
            flags = (CLONE_PARENT if sibling else 0) | (CLONE_FILES if meeting.more else 0)
            pid, pidfd = self._clone(address, cgroup_fd, flags)
            try:
                self._meet(meeting, pid, pidfd, talk)
            except BaseException:
                self._kill(pidfd)
                _reap(pidfd)
                raise
            results, failed = talk.results()
        finally:
            self._munmap(address, REGION)
        return self._spawned(pid, pidfd, talk.steps, results, failed)

    def _meet(self, meeting: Meeting, pid: int, pidfd: int, talk: Talk) -> None:
        if meeting.more is None:
            os.close(meeting.ready[1])
        while True:
            said = b""
            # The pipe has no end while the child shares our own descriptor of it.
            if self._waits(meeting.ready[0], pidfd):
                said = os.read(meeting.ready[0], 1)
            if said == PAUSE and meeting.more is not None:
                talk.close_leftovers()
                talk.add(meeting.more(pid))
                os.write(meeting.go, b"1")
                continue
            if said == LISTENING and meeting.listen is not None:
                meeting.listen(pid, lambda index: self._result_of(talk, index, pidfd))
            elif not said and meeting.more is not None and not talk.failed():
                raise OSError(errno.ECANCELED, KILLED)
            return

    def _kill(self, pidfd: int) -> None:
        try:
            self._call("pidfd_send_signal", pidfd, signals.SIGKILL, None, 0)
        except ProcessLookupError:
            return

    def _waits(self, reader: int, pidfd: int) -> bool:
        """Waits until there is something to read; False if the child ends without having said anything."""
        waited = clibrary.held(struct.pack("=ihhihh", reader, POLLIN, 0, pidfd, POLLIN, 0))
        while True:
            try:
                self._call("ppoll", clibrary.address(waited), 2, None, None, 0)
            except InterruptedError:
                continue
            return bool(struct.unpack_from("=h", waited.raw, 6)[0])

    def _result_of(self, talk: Talk, index: int, pidfd: int) -> int:
        """What the child's step `index` returned, 0 if a step before it has ended the child. The table is
        shared, and the child must not make a single system call more than the program's filter expects: so it
        is looked at until it is there, for the few microseconds between two steps. Raises OSError for a child
        that was killed."""
        ended = False
        while True:
            result = talk.result(index)
            if result or talk.failed():
                return result
            if ended:
                raise OSError(errno.ECANCELED, KILLED)
            ended = self._ends(pidfd, 100_000)

    def _ends(self, pidfd: int, nanoseconds: int) -> bool:
        waited = clibrary.held(struct.pack("=ihh", pidfd, POLLIN, 0))
        patience = clibrary.held(struct.pack("=qq", 0, nanoseconds))
        try:
            return self._call("ppoll", clibrary.address(waited), 1, clibrary.address(patience), None, 0) > 0
        except InterruptedError:
            return False

    def _clone(self, table: int, cgroup_fd: int, extra: int) -> tuple[int, int]:
        pidfd = clibrary.Number(-1)
        flags = CLONE_PIDFD | CLONE_CLEAR_SIGHAND | extra | (CLONE_INTO_CGROUP if cgroup_fd >= 0 else 0)
        ends_with = 0 if extra & CLONE_PARENT else signals.SIGCHLD  # a sibling inherits it
        arguments = struct.pack(
            "=11Q", flags, pidfd.address, 0, 0, ends_with, 0, 0, 0, 0, 0, max(cgroup_fd, 0)
        )
        pid = self._spawn_code(arguments, len(arguments), table + HEAD_WORDS * 8, table)
        if pid < 0:
            raise SpawnError(-1, -pid, f"clone3: {os.strerror(-pid)}")
        return pid, pidfd.value

    def _spawned(
        self, pid: int, pidfd: int, steps: Sequence[Step], results: tuple[int, ...], failed: int
    ) -> Spawned:
        if failed >= 0:
            number = -results[failed]
            self._waits(-1, pidfd)  # a sibling is not ours to reap, but when we tell, its parent can
            _reap(pidfd)
            raise SpawnError(failed, number, f"{steps[failed].call}: {os.strerror(number)}")
        return Spawned(pid, pidfd, results)


def _held_capabilities(status: str | int = "/proc/self/status") -> tuple[int, int]:
    with open(status, "rb", 0) as file:
        fields = dict(line.split(b":", 1) for line in file.read().splitlines() if line.startswith(b"Cap"))
    return int(fields[b"CapPrm"], 16), int(fields[b"CapBnd"], 16)


def _reap(pidfd: int) -> None:
    """Collects a child that failed; a process-wide reaper may have been faster."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    except OSError as error:
        if error.errno != errno.ECHILD:
            raise
    finally:
        os.close(pidfd)


__all__ = ["AT_FDCWD", "LinuxKernel"]
