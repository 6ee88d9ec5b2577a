"""/dev: the nodes every container has, those config.json adds, the links, and the console.

Nodes are made by mknod on a descriptor of the container's own /dev, never through a path a symlink could bend
(CVE-2026-41579). What may be *opened* is decided by the device cgroup; see cgroups/.
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.kernel import Kernel
from runtime.mounting import AT_EMPTY_PATH, INSIDE, NO_SYMLINKS, OPEN_TREE_CLONE, make_inside, open_inside
from runtime.plan import NO_STDIO, Context, Operation, Refused
from runtime.spec import Device

DEVPTS_SUPER_MAGIC = 0x1CD1
TYPE_BITS = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}

# runtime-spec, config-linux.md, "Default Devices"
DEFAULT = tuple(
    Device(f"/dev/{name}", "c", major, minor, 0o666, 0, 0)
    for name, major, minor in (
        ("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)
    )
)  # fmt: skip
LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)


class MakeDevices(Operation):
    """Makes the nodes; one that is there already with the same type and number is kept."""

    devices: tuple[Device, ...]

    def describe(self) -> str:
        return f"make {len(self.devices)} device nodes"

    def run(self, kernel: Kernel, context: Context) -> None:
        folders: dict[str, int] = {}
        try:
            for device in self.devices:
                folder, name = posixpath.split(posixpath.normpath(device.path))
                if folder not in folders:
                    folders[folder] = make_inside(kernel, context.root, folder)
                self._make(kernel, folders[folder], name, device)
        finally:
            for fd in folders.values():
                kernel.close(fd)

    def _make(self, kernel: Kernel, folder: int, name: str, device: Device) -> None:
        kind = TYPE_BITS[device.type]
        number = 0 if device.type == "p" else os.makedev(device.major, device.minor)
        try:
            kernel.mknod(name, kind | device.mode, number, dir_fd=folder)
        except FileExistsError:
            fd = kernel.openat2(folder, name, os.O_PATH | os.O_NOFOLLOW, resolve=INSIDE)
            try:
                status = kernel.fstat(fd)
            finally:
                kernel.close(fd)
            if status.mode & 0o170000 != kind or status.rdev != number:
                raise Refused(f"{device.path} is there and is another device") from None
        if device.uid or device.gid:
            kernel.chown(name, device.uid, device.gid, dir_fd=folder)


class LinkDevices(Operation):
    """/dev/fd, the standard streams and ptmx."""

    def describe(self) -> str:
        return "link the standard streams into /dev"

    def run(self, kernel: Kernel, context: Context) -> None:
        folder = make_inside(kernel, context.root, "/dev")
        try:
            for name, target in LINKS:
                try:
                    kernel.symlink(target, name, dir_fd=folder)
                except FileExistsError:
                    continue
        finally:
            kernel.close(folder)


class OpenTerminal(Operation):
    """A terminal from the container's own devpts, when the caller did not bring one.

    The multiplexer is opened without following links and must be device 5:2 on a devpts; the other side comes
    from TIOCGPTPEER, which uses no path (CVE-2025-52565). The caller gets the master side as
    `Process.console`.
    """

    uid: int
    size: tuple[int, int] | None = None

    def describe(self) -> str:
        return "open a terminal"

    def run(self, kernel: Kernel, context: Context) -> None:
        if not context.terminal or context.stdio != NO_STDIO:
            return
        flags = os.O_RDWR | os.O_NOCTTY
        master = context.keep(open_inside(kernel, context.root, "/dev/pts/ptmx", flags, symlinks=False))
        if kernel.filesystem(master) != DEVPTS_SUPER_MAGIC or kernel.fstat(master).rdev != os.makedev(5, 2):
            raise Refused("/dev/pts/ptmx is no terminal multiplexer")
        peer = context.keep(kernel.open_terminal_peer(master))
        kernel.fchown(peer, self.uid, -1)
        if self.size:
            kernel.set_window_size(master, *self.size)
        context.stdio = (peer, peer, peer)
        context.console = master


class BindConsole(Operation):
    """The terminal also appears as /dev/console, which must be a plain file of the container's /dev."""

    def describe(self) -> str:
        return "bind the terminal to /dev/console"

    def run(self, kernel: Kernel, context: Context) -> None:
        if not context.terminal:
            return
        peer = context.stdio[0]
        if os.major(kernel.fstat(peer).rdev) not in range(136, 144):
            raise Refused("standard input is no pseudo terminal")
        folder = make_inside(kernel, context.root, "/dev")
        try:
            try:
                kernel.mknod("console", 0o100620, 0, dir_fd=folder)
            except FileExistsError:
                pass
            flags = os.O_PATH | os.O_NOFOLLOW
            target = kernel.openat2(folder, "console", flags, resolve=INSIDE | NO_SYMLINKS)
        finally:
            kernel.close(folder)
        try:
            if kernel.fstat(target).mode & 0o170000 == 0o120000:
                raise Refused("/dev/console of the image is a symlink")
            self._bind(kernel, peer, target)
        finally:
            kernel.close(target)

    def _bind(self, kernel: Kernel, peer: int, target: int) -> None:
        try:
            tree = kernel.open_tree(peer, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        except OSError as error:
            # A terminal of the host's devpts is not in this mount namespace any more; then there is no
            # /dev/console.
            if error.errno == errno.EINVAL:
                return
            raise
        try:
            kernel.move_mount(tree, target)
        finally:
            kernel.close(tree)
