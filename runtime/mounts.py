"""Root file system and mounts, none of which can be led outside the container.

A path inside a container belongs to whoever made its image or shares its volumes. So each destination is first
resolved to a descriptor by openat2(RESOLVE_IN_ROOT, no magic links), and mounts are attached to that *descriptor*
(open_tree, fsmount, move_mount: Linux 5.2; mount_setattr: 5.12). Between look-up and use nobody can swap a symlink in
(CVE-2021-30465), and a read-only bind is never visible in a writable state.

The overlay is mounted in the container's own mount namespace, over its own upper folder: the host sees nothing, and
when the last process ends the kernel removes it. `volatile` spares the sync of the upper file system.
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.errors import SpecError
from runtime.kernel import AT_FDCWD, Kernel, Step
from runtime.namespaces import PROC_SUPER_MAGIC
from runtime.plan import Context, Operation, Refused
from runtime.records import Record

MS_RDONLY, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE = (
    1, 0x1000, 0x4000, 1 << 18, 1 << 19, 1 << 20, 1 << 17
)  # fmt: skip
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_ATIME, ATTR_NOATIME, ATTR_STRICTATIME, ATTR_NODIRATIME, ATTR_NOSYMFOLLOW = 0x70, 0x10, 0x20, 0x80, 0x200000
OPEN_TREE_CLONE, AT_RECURSIVE, AT_EMPTY_PATH = 1, 0x8000, 0x1000
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 1, 2, 4, 8, 16
INSIDE = IN_ROOT | NO_MAGICLINKS
SYSFS_MAGIC, CGROUP2_MAGIC = 0x62656572, 0x63677270
PAGE = 4096

# What may be mounted over below /proc; anything else could hide what security depends on (CVE-2019-16884).
PROC_ALLOWED = frozenset(
    "/proc/" + name
    for name in (
        "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
        "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
    )
)  # fmt: skip

_SET = {
    "ro": ATTR_RDONLY, "nosuid": ATTR_NOSUID, "nodev": ATTR_NODEV, "noexec": ATTR_NOEXEC,
    "noatime": ATTR_NOATIME, "strictatime": ATTR_STRICTATIME, "relatime": 0, "nodiratime": ATTR_NODIRATIME,
    "nosymfollow": ATTR_NOSYMFOLLOW,
}  # fmt: skip
_CLEAR = {
    "rw": ATTR_RDONLY, "suid": ATTR_NOSUID, "dev": ATTR_NODEV, "exec": ATTR_NOEXEC, "atime": ATTR_NOATIME,
    "diratime": ATTR_NODIRATIME, "symfollow": ATTR_NOSYMFOLLOW, "defaults": 0, "norelatime": 0,
    "nostrictatime": 0,
}  # fmt: skip
_PROPAGATION = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED, "unbindable": MS_UNBINDABLE}


class MountOptions(Record):
    """Options sorted by what they become: attributes of this mount or of the whole tree, propagation, and data
    for the file system."""

    bind: bool = False
    recursive: bool = False
    set: int = 0
    clear: int = 0
    tree_set: int = 0
    tree_clear: int = 0
    propagation: int = 0
    tree_propagation: bool = False
    data: tuple[str, ...] = ()


def parse_options(options: tuple[str, ...], where: str) -> MountOptions:
    """OCI mount options → MountOptions. `where` names the field for SpecError."""
    chosen: dict[str, int] = {"set": 0, "clear": 0, "tree_set": 0, "tree_clear": 0}
    bind = recursive = tree = False
    propagation = 0
    data: list[str] = []
    for option in options:
        prefix, name = ("tree_", option[1:]) if option[:1] == "r" and option not in _SET | _CLEAR else ("", option)
        if option in ("bind", "rbind"):
            bind, recursive = True, recursive or option == "rbind"
        elif name in _PROPAGATION:
            propagation, tree = _PROPAGATION[name], prefix != ""
        elif name in _SET:
            if _SET[name] & ATTR_ATIME or name == "relatime":
                chosen[prefix + "clear"] |= ATTR_ATIME
                chosen[prefix + "set"] &= ~ATTR_ATIME
            chosen[prefix + "set"] |= _SET[name]
            chosen[prefix + "clear"] &= ~_SET[name] | ATTR_ATIME
        elif name in _CLEAR:
            chosen[prefix + "clear"] |= ATTR_ATIME if name == "atime" else _CLEAR[name]
            chosen[prefix + "set"] &= ~_CLEAR[name]
        elif option in ("tmpcopyup", "idmap", "ridmap"):
            raise SpecError(where, f"the mount option {option} is not supported")
        else:
            data.append(option)
    return MountOptions(bind=bind, recursive=recursive, propagation=propagation, tree_propagation=tree,
                        data=tuple(data), **chosen)  # fmt: skip


def open_inside(kernel: Kernel, root: int, path: str, flags: int = os.O_PATH, *, symlinks: bool = True) -> int:
    """A descriptor for `path` resolved inside `root`; magic links never, other symlinks only if allowed."""
    resolve = INSIDE if symlinks else INSIDE | NO_SYMLINKS
    return kernel.openat2(root, path, flags, resolve=resolve)


def make_inside(kernel: Kernel, root: int, path: str, *, folder: bool = True, symlinks: bool = True) -> int:
    """As open_inside, and makes what is missing, one name at a time, so that nothing is ever made outside
    (CVE-2024-45310). `folder` False makes an empty file at the end."""
    try:
        return open_inside(kernel, root, path, symlinks=symlinks)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    names = [name for name in posixpath.normpath("/" + path).split("/") if name]
    parent = open_inside(kernel, root, "/")
    for index in range(len(names)):
        try:
            child = _make_one(kernel, root, parent, names[: index + 1], folder or index < len(names) - 1, symlinks)
        finally:
            kernel.close(parent)
        parent = child
    return parent


def _make_one(kernel: Kernel, root: int, parent: int, names: list[str], folder: bool, symlinks: bool) -> int:
    try:
        return open_inside(kernel, root, "/" + "/".join(names), symlinks=symlinks)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    name = names[-1]
    try:
        if folder:
            kernel.mkdir(name, 0o755, dir_fd=parent)
        else:
            kernel.mknod(name, 0o100644, 0, dir_fd=parent)
    except FileExistsError:
        # Somebody else made it, or it is a dangling symlink, which the next look-up refuses.
        pass
    return kernel.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=BENEATH | NO_SYMLINKS)


class SetPropagation(Operation):
    """Cuts the new mount namespace's copies off from the host's mounts, before anything is mounted."""

    propagation: str

    def describe(self) -> str:
        return f"make all mounts {self.propagation}"

    def run(self, kernel: Kernel, context: Context) -> None:
        name = self.propagation.removeprefix("r")
        flags = _PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") and name != "" else 0)
        kernel.mount("", "/", "", flags, "")


class MountOverlay(Operation):
    """The image's layers (TOP first) under a writable upper folder, mounted over that folder itself."""

    layers: tuple[str, ...]
    upper: str
    work: str

    def describe(self) -> str:
        return f"mount an overlay of {len(self.layers)} layers on {self.upper}"

    def run(self, kernel: Kernel, context: Context) -> None:
        for folder in (self.upper, self.work):
            try:
                kernel.mkdir(folder, 0o755)
            except FileExistsError:
                continue
        data = overlay_data(self.layers, self.upper, self.work)
        if len(os.fsencode(data)) < PAGE:
            kernel.mount("overlay", self.upper, "overlay", 0, data)
        else:
            self._mount_many(kernel)
        context.root = context.keep(kernel.open(self.upper, os.O_PATH | os.O_DIRECTORY))

    def _mount_many(self, kernel: Kernel) -> None:
        """Options beyond one page: layer by layer (Linux 6.7)."""
        target = kernel.open(self.upper, os.O_PATH | os.O_DIRECTORY)
        config = kernel.fsopen("overlay")
        try:
            for layer in self.layers:
                kernel.fsconfig(config, "lowerdir+", layer)
            kernel.fsconfig(config, "upperdir", self.upper)
            kernel.fsconfig(config, "workdir", self.work)
            kernel.fsconfig(config, "volatile", None)
            kernel.fsconfig(config, "", None)
            tree = kernel.fsmount(config, 0)
            try:
                kernel.move_mount(tree, target)
            finally:
                kernel.close(tree)
        finally:
            kernel.close(config)
            kernel.close(target)


def overlay_data(layers: tuple[str, ...], upper: str, work: str) -> str:
    """overlayfs's option string, with colon, comma and backslash of paths escaped as it wants them."""

    def escaped(path: str, colon: bool) -> str:
        path = path.replace("\\", "\\\\").replace(",", "\\,")
        return path.replace(":", "\\:") if colon else path

    lower = ":".join(escaped(layer, True) for layer in layers)
    return f"lowerdir={lower},upperdir={escaped(upper, False)},workdir={escaped(work, False)},volatile"


class BindRoot(Operation):
    """A bundle's root folder becomes a mount of its own, as pivot_root wants it."""

    path: str

    def describe(self) -> str:
        return f"bind the root folder {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.mount(self.path, self.path, "", MS_BIND | MS_REC, "")
        context.root = context.keep(kernel.open(self.path, os.O_PATH | os.O_DIRECTORY))


class EmptyRoot(Operation):
    """A root with nothing in it, read-only, for a sandbox: who reaches /proc/<pause>/root finds nothing."""

    def describe(self) -> str:
        return "mount an empty root"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.mount("kubelet-py", "/proc", "tmpfs", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, "size=4k,nr_inodes=1")
        context.root = context.keep(kernel.open("/proc", os.O_PATH | os.O_DIRECTORY))


class Mount(Operation):
    """One entry of config.json's mounts, attached to a destination resolved inside the root."""

    destination: str
    type: str
    source: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount {self.source or self.type} on {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        tree = self._bind(kernel) if self.options.bind else self._new(kernel)
        try:
            target = self._target(kernel, context, tree)
            try:
                self._check_proc(kernel, target, tree)
                kernel.move_mount(tree, target)
            finally:
                kernel.close(target)
        finally:
            kernel.close(tree)

    def _bind(self, kernel: Kernel) -> int:
        options = self.options
        tree = kernel.open_tree(AT_FDCWD, self.source, OPEN_TREE_CLONE | (AT_RECURSIVE if options.recursive else 0))
        try:
            if options.set or options.clear:
                kernel.mount_setattr(tree, set=options.set, clear=_cleared(options.set, options.clear))
            self._tree(kernel, tree)
        except OSError:
            kernel.close(tree)
            raise
        return tree

    def _new(self, kernel: Kernel) -> int:
        config = kernel.fsopen(self.type)
        try:
            kernel.fsconfig(config, "source", self.source or self.type)
            for option in self.options.data:
                key, equals, value = option.partition("=")
                kernel.fsconfig(config, key, value if equals else None)
            kernel.fsconfig(config, "", None)
            tree = kernel.fsmount(config, self.options.set)
        finally:
            kernel.close(config)
        try:
            self._tree(kernel, tree)
        except OSError:
            kernel.close(tree)
            raise
        return tree

    def _tree(self, kernel: Kernel, tree: int) -> None:
        """What holds for the mount and all below it: recursive attributes, then propagation (private by default,
        so that nothing mounted inside reaches the host)."""
        options = self.options
        if options.tree_set or options.tree_clear:
            clear = _cleared(options.tree_set, options.tree_clear)
            kernel.mount_setattr(tree, set=options.tree_set, clear=clear, recursive=True)
        everywhere = options.tree_propagation or not options.propagation
        kernel.mount_setattr(tree, propagation=options.propagation or MS_PRIVATE, recursive=everywhere)

    def _target(self, kernel: Kernel, context: Context, tree: int) -> int:
        folder = kernel.fstat(tree).mode & 0o170000 == 0o040000
        # An image whose /proc or /sys is a symlink would have them mounted elsewhere (CVE-2019-19921).
        symlinks = self.type not in ("proc", "sysfs")
        try:
            return make_inside(kernel, context.root, self.destination, folder=folder, symlinks=symlinks)
        except OSError as error:
            if error.errno == errno.ELOOP and not symlinks:
                raise Refused(f"{self.destination} of the image is a symlink") from error
            raise

    def _check_proc(self, kernel: Kernel, target: int, tree: int) -> None:
        destination = posixpath.normpath(self.destination)
        if kernel.filesystem(target) == PROC_SUPER_MAGIC and destination not in PROC_ALLOWED:
            raise Refused("it would cover a part of /proc")
        if destination == "/proc" and kernel.filesystem(tree) != PROC_SUPER_MAGIC:
            raise Refused("only a procfs may be mounted on /proc")


def _cleared(added: int, cleared: int) -> int:
    """mount_setattr wants the whole access-time field cleared whenever one of its values is set."""
    return cleared | (ATTR_ATIME if added & ATTR_ATIME else 0)


class MountCgroup(Operation):
    """A cgroup2 tree as the container's new cgroup namespace shows it, mounted by the child because only the
    child is inside; onto "." after fchdir, so no path is resolved again. v1 trees are never shown (CVE-2022-0492).
    """

    destination: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount cgroup2 on {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        target = context.keep(make_inside(kernel, context.root, self.destination, symlinks=False))
        back = context.keep(kernel.open(".", os.O_PATH | os.O_DIRECTORY))
        attributes = self.options.set
        flags = sum(bit for bit in (ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC) if attributes & bit)
        context.child(
            Step("fchdir", (target,)),
            Step("mount", ("cgroup", ".", "cgroup2", flags, 0)),
            Step("fchdir", (back,)),
        )


class MaskPath(Operation):
    """Hides a path: a file under /dev/null, a folder under an empty read-only tmpfs. Missing ones need no mask."""

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        try:
            target = open_inside(kernel, context.root, self.path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        try:
            if kernel.fstat(target).mode & 0o170000 == 0o040000:
                tree = _empty_folder(kernel)
            else:
                tree = kernel.open_tree(context.null, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
            try:
                kernel.move_mount(tree, target)
            finally:
                kernel.close(tree)
        finally:
            kernel.close(target)


def _empty_folder(kernel: Kernel) -> int:
    config = kernel.fsopen("tmpfs")
    try:
        kernel.fsconfig(config, "nr_blocks", "1")
        kernel.fsconfig(config, "nr_inodes", "1")
        kernel.fsconfig(config, "", None)
        return kernel.fsmount(config, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
    finally:
        kernel.close(config)


class ProtectPath(Operation):
    """Makes a path and everything mounted below it read-only. Missing ones need no protection."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def run(self, kernel: Kernel, context: Context) -> None:
        try:
            target = open_inside(kernel, context.root, self.path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return
            raise
        try:
            tree = kernel.open_tree(target, "", OPEN_TREE_CLONE | AT_RECURSIVE | AT_EMPTY_PATH)
            try:
                kernel.mount_setattr(tree, set=ATTR_RDONLY, recursive=True)
                kernel.move_mount(tree, target)
            finally:
                kernel.close(tree)
        finally:
            kernel.close(target)


class ProtectRoot(Operation):
    """Makes the root itself read-only; mounts inside keep their own mode."""

    def describe(self) -> str:
        return "make the root read-only"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.mount_setattr(context.root, set=ATTR_RDONLY)


class PivotRoot(Operation):
    """The container's root becomes the thread's; the old one is stacked on top of it, cut off, and detached, so
    that nothing of the host stays reachable."""

    def describe(self) -> str:
        return "change to the container's root"

    def run(self, kernel: Kernel, context: Context) -> None:
        old = kernel.open("/", os.O_PATH | os.O_DIRECTORY)
        try:
            kernel.fchdir(context.root)
            kernel.pivot_root(".", ".")
            kernel.fchdir(old)
            # Slave first: the detach must not propagate to the host's mounts.
            kernel.mount("", ".", "", MS_SLAVE | MS_REC, "")
            kernel.umount(".", MNT_DETACH)
            kernel.chdir("/")
        finally:
            kernel.close(old)


class SetRootPropagation(Operation):
    """rootfsPropagation of config.json, on the container's own root."""

    propagation: str

    def describe(self) -> str:
        return f"make the root {self.propagation}"

    def run(self, kernel: Kernel, context: Context) -> None:
        name = self.propagation.removeprefix("r")
        flags = _PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") else 0)
        kernel.mount("", "/", "", flags, "")
