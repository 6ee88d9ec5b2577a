"""Root file system and mounts, none of which can be led outside the container.

Mounts are made detached and attached to a descriptor (open_tree, fsmount, move_mount: Linux 5.2;
mount_setattr: 5.12), so a read-only bind is never visible in a writable state. What goes onto a procfs is
left to the child; see procfs.py.

The overlay is mounted in the container's own mount namespace, over its own upper folder: the host sees
nothing, and when the last process ends the kernel removes it. `volatile` spares the sync of the upper file
system.
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime import procfs
from runtime.kernel import AT_FDCWD, Kernel, Step
from runtime.mounting import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    ATTR_ATIME,
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLONE,
    PAGE,
    PROPAGATION,
    MountOptions,
    make_inside,
    open_inside,
)  # fmt: skip
from runtime.namespaces import PROC_SUPER_MAGIC
from runtime.plan import Context, Operation, Refused


class SetPropagation(Operation):
    """Cuts the new mount namespace's copies off from the host's mounts, before anything is mounted."""

    propagation: str

    def describe(self) -> str:
        return f"make all mounts {self.propagation}"

    def run(self, kernel: Kernel, context: Context) -> None:
        name = self.propagation.removeprefix("r")
        flags = PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") and name != "" else 0)
        kernel.mount("", "/", "", flags, "")


class MountOverlay(Operation):
    """The image's layers (TOP first) under a writable upper folder, mounted over that folder itself."""

    layers: tuple[str, ...]
    upper: str
    work: str
    shared: bool = False

    def describe(self) -> str:
        return f"mount an overlay of {len(self.layers)} layers on {self.upper}"

    def run(self, kernel: Kernel, context: Context) -> None:
        if self.shared:
            cut_off(kernel, posixpath.dirname(self.upper))
        make_folders(kernel, self.upper, self.work)
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


def make_folders(kernel: Kernel, *folders: str) -> None:
    """Those of an overlay, where they are missing."""
    for folder in folders:
        try:
            kernel.mkdir(folder, 0o755)
        except FileExistsError:
            continue


def overlay_data(layers: tuple[str, ...], upper: str, work: str) -> str:
    """overlayfs's option string, with colon, comma and backslash of paths escaped as it wants them."""

    def escaped(path: str, colon: bool) -> str:
        path = path.replace("\\", "\\\\").replace(",", "\\,")
        return path.replace(":", "\\:") if colon else path

    lower = ":".join(escaped(layer, True) for layer in layers)
    return f"lowerdir={lower},upperdir={escaped(upper, False)},workdir={escaped(work, False)},volatile"


def idmap(kernel: Kernel, tree: int, users: int, source: str, *, recursive: bool = False) -> None:
    """Idmaps a mount that is attached nowhere yet. What cannot be is refused by its name: unmapped, its files
    would be nobody's."""
    try:
        kernel.map_mount(tree, users, recursive=recursive)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Refused(
            f"MOUNT_ATTR_IDMAP of {source}: EINVAL (maybe the filesystem used doesn't support idmap mounts "
            "on this kernel?)"
        ) from error


class BindRoot(Operation):
    """A bundle's root folder becomes a mount of its own, as pivot_root wants it."""

    path: str
    shared: bool = False

    def describe(self) -> str:
        return f"bind the root folder {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        if self.shared:
            cut_off(kernel, self.path)
        kernel.mount(self.path, self.path, "", MS_BIND | MS_REC, "")
        context.root = context.keep(kernel.open(self.path, os.O_PATH | os.O_DIRECTORY))


def cut_off(kernel: Kernel, path: str) -> None:
    """Makes the mount that a root lies in private: otherwise the root would appear on the host, and
    pivot_root refuses a shared parent. Which folder it is mounted on is found by trying."""
    while True:
        try:
            kernel.mount("", path, "", MS_PRIVATE, "")
            return
        except OSError as error:
            if error.errno != errno.EINVAL or path == "/":
                raise
        path = posixpath.dirname(path)


class EmptyRoot(Operation):
    """A root with nothing in it, read-only, for a sandbox: who reaches /proc/<pause>/root finds nothing."""

    def describe(self) -> str:
        return "mount an empty root"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.mount(
            "kubelet-py", "/proc", "tmpfs", ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV, "size=4k,nr_inodes=1"
        )
        context.root = context.keep(kernel.open("/proc", os.O_PATH | os.O_DIRECTORY))


class Mount(Operation):
    """One entry of config.json's mounts, attached to a destination resolved inside the root."""

    destination: str
    type: str
    source: str
    options: MountOptions
    mappings: tuple[str, str] = ("", "")
    label: str = ""  # SELinux's, of a new mount's root: for file systems that take no context=

    def describe(self) -> str:
        return f"mount {self.source or self.type} on {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        tree = self.open(kernel, context)
        try:
            place = procfs.below(context, self.destination)
            if place is not None:
                if place[1] not in procfs.ALLOWED:
                    raise Refused("it would cover a part of /proc")
                procfs.cover(context, place, context.keep(kernel.duplicate(tree)))
                return
            target = self._target(kernel, context, tree)
            try:
                self._check_proc(kernel, target, tree)
                _attach(kernel, tree, target)
            finally:
                kernel.close(target)
        finally:
            kernel.close(tree)

    def open(self, kernel: Kernel, context: Context) -> int:
        """The mount, attached nowhere yet."""
        if self.destination in context.prepared:
            return kernel.duplicate(context.prepared.pop(self.destination))
        if self.options.bind:
            return self._bind(kernel, context)
        return self._new(kernel, context, self._covered(kernel, context))

    def _bind(self, kernel: Kernel, context: Context) -> int:
        options = self.options
        tree = kernel.open_tree(
            AT_FDCWD, self.source, OPEN_TREE_CLONE | (AT_RECURSIVE if options.recursive else 0)
        )
        try:
            if options.idmap:
                users = context.users(kernel, self.mappings)
                idmap(kernel, tree, users, self.source, recursive=options.idmap == "ridmap")
            if options.set or options.clear:
                kernel.mount_setattr(tree, set=options.set, clear=_cleared(options.set, options.clear))
            self._tree(kernel, tree)
        except (OSError, Refused):
            kernel.close(tree)
            raise
        return tree

    def _covered(self, kernel: Kernel, context: Context) -> int:
        """What the image has where a tmpfs goes, -1 if nothing: its mode is kept, as runc does, and with
        tmpcopyup its content."""
        wanted = self.options.copy_up or not any(o.startswith("mode=") for o in self.options.data)
        if self.options.bind or self.type != "tmpfs" or not wanted:
            return -1
        found = _existing(kernel, context, self.destination)
        return context.keep(found) if found >= 0 else -1

    def _new(self, kernel: Kernel, context: Context, covered: int) -> int:
        config = kernel.fsopen(self.type)
        try:
            kernel.fsconfig(config, "source", self.source or self.type)
            for option in self.options.data:
                key, equals, value = option.partition("=")
                kernel.fsconfig(config, key, value if equals else None)
            if covered >= 0 and not any(o.startswith("mode=") for o in self.options.data):
                kernel.fsconfig(config, "mode", f"{kernel.fstat(covered).mode & 0o7777:o}")
            kernel.fsconfig(config, "", None)
            tree = kernel.fsmount(config, 0 if self.options.copy_up else self.options.set)
        finally:
            kernel.close(config)
        try:
            if self.options.copy_up:
                if covered >= 0:
                    kernel.copy_tree(covered, tree)
                kernel.mount_setattr(tree, set=self.options.set, clear=ATTR_ATIME)
            if self.label:
                kernel.set_label(tree, self.label)
            self._tree(kernel, tree)
        except OSError:
            kernel.close(tree)
            raise
        return tree

    def _tree(self, kernel: Kernel, tree: int) -> None:
        """What holds for the mount and all below it: recursive attributes, then propagation (private by
        default, so that nothing mounted inside reaches the host)."""
        options = self.options
        if options.tree_set or options.tree_clear:
            clear = _cleared(options.tree_set, options.tree_clear)
            kernel.mount_setattr(tree, set=options.tree_set, clear=clear, recursive=True)
        everywhere = options.tree_propagation or not options.propagation
        kernel.mount_setattr(tree, propagation=options.propagation or MS_PRIVATE, recursive=everywhere)

    def _target(self, kernel: Kernel, context: Context, tree: int) -> int:
        folder = kernel.fstat(tree).mode & 0o170000 == 0o040000
        # An image whose /sys is a symlink would have it mounted elsewhere (CVE-2019-19921).
        symlinks = self.type != "sysfs"
        try:
            return make_inside(kernel, context.root, self.destination, folder=folder, symlinks=symlinks)
        except OSError as error:
            if error.errno == errno.ELOOP and not symlinks:
                raise Refused(f"{self.destination} of the image is a symlink") from error
            raise

    def _check_proc(self, kernel: Kernel, target: int, tree: int) -> None:
        if kernel.filesystem(target) == PROC_SUPER_MAGIC:
            raise Refused("it would cover a part of /proc")
        if posixpath.normpath(self.destination) == "/proc" and kernel.filesystem(tree) != PROC_SUPER_MAGIC:
            raise Refused("only a procfs may be mounted on /proc")


class Remount(Operation):
    """The mount that is already on a destination gets other attributes, its file system other options."""

    destination: str
    options: MountOptions

    def describe(self) -> str:
        return f"remount {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        clean = posixpath.normpath(self.destination)
        if any(clean == place or clean.startswith(place + "/") for place, _ in context.procs):
            raise Refused("a procfs gets its options when it is mounted")
        options = self.options
        target = open_inside(kernel, context.root, self.destination)
        try:
            if options.set or options.clear:
                kernel.mount_setattr(target, set=options.set, clear=_cleared(options.set, options.clear))
            if options.tree_set or options.tree_clear:
                clear = _cleared(options.tree_set, options.tree_clear)
                kernel.mount_setattr(target, set=options.tree_set, clear=clear, recursive=True)
            if options.data:
                self._reconfigure(kernel, target)
        finally:
            kernel.close(target)

    def _reconfigure(self, kernel: Kernel, target: int) -> None:
        config = kernel.fspick(target)
        try:
            for option in self.options.data:
                key, equals, value = option.partition("=")
                kernel.fsconfig(config, key, value if equals else None)
            kernel.reconfigure(config)
        finally:
            kernel.close(config)


class OpenSource(Operation):
    """Opens a bind mount's source before any namespace: while the host's folders are open to us, and while a
    child may be made that is no container's first."""

    mount: Mount

    def describe(self) -> str:
        return f"open {self.mount.source} for {self.mount.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.prepared[self.mount.destination] = context.keep(self.mount.open(kernel, context))


def _attach(kernel: Kernel, tree: int, target: int) -> None:
    """move_mount, with mount(2)'s word for a file on a folder and a folder on a file; it says EINVAL."""
    try:
        kernel.move_mount(tree, target)
    except OSError as error:
        kinds = {kernel.fstat(fd).mode & 0o170000 == 0o040000 for fd in (tree, target)}
        if error.errno != errno.EINVAL or len(kinds) == 1:
            raise
        raise NotADirectoryError(
            errno.ENOTDIR, "Not a directory (a folder goes on a folder, a file on a file)"
        ) from error


def _cleared(added: int, cleared: int) -> int:
    """mount_setattr wants the whole access-time field cleared whenever one of its values is set."""
    return cleared | (ATTR_ATIME if added & ATTR_ATIME else 0)


class MountCgroup(Operation):
    """A cgroup2 tree as the container's new cgroup namespace shows it, mounted by the child because only the
    child is inside; onto "." after fchdir, so no path is resolved again. v1 trees are never shown
    (CVE-2022-0492). `data`: the tree's own options. From the first cgroup namespace of a machine a mount sets
    those of the one tree that all see, anew and all of them (cgroup_reconfigure in the kernel's cgroup.c).
    """

    destination: str
    options: MountOptions
    data: str = ""

    def describe(self) -> str:
        return f"mount cgroup2 on {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        target = context.keep(make_inside(kernel, context.root, self.destination, symlinks=False))
        back = context.keep(kernel.open(".", os.O_PATH | os.O_DIRECTORY))
        attributes = self.options.set
        flags = sum(bit for bit in (ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC) if attributes & bit)
        context.child(
            Step("fchdir", (target,)),
            Step("mount", ("cgroup", ".", "cgroup2", flags, self.data or 0)),
            Step("fchdir", (back,)),
        )
        context.flush = True


class MaskPath(Operation):
    """Hides a path: a file under /dev/null, a folder under an empty tmpfs. Missing ones need no mask. Both
    read-only: the host's own /dev/null it is, whose mode and owner a container's root could change."""

    path: str

    def describe(self) -> str:
        return f"mask {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        place = procfs.below(context, self.path)
        if place is not None:
            kind = procfs.kind(kernel, context, place[1])
            if kind is not None:
                procfs.cover(context, place, context.keep(self._mask(kernel, context, kind)))
            return
        target = _existing(kernel, context, self.path)
        if target < 0:
            return
        try:
            tree = self._mask(kernel, context, kernel.fstat(target).mode & 0o170000)
            try:
                kernel.move_mount(tree, target)
            finally:
                kernel.close(tree)
        finally:
            kernel.close(target)

    def _mask(self, kernel: Kernel, context: Context, kind: int) -> int:
        if kind == 0o040000:
            return _empty_folder(kernel)
        held = context.prepared.pop(mask_of(self.path), -1)
        if held >= 0:
            return kernel.duplicate(held)
        tree = kernel.open_tree(context.null, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        try:
            kernel.mount_setattr(tree, set=ATTR_RDONLY)
        except OSError:
            kernel.close(tree)
            raise
        return tree


def mask_of(path: str) -> str:
    """Under which name a mask for the path is prepared, where it cannot be made when it is put there."""
    return f"mask of {path}"


def _existing(kernel: Kernel, context: Context, path: str) -> int:
    """A descriptor for a path in the container, -1 if there is none."""
    try:
        return open_inside(kernel, context.root, path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return -1
        raise


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
        place = procfs.below(context, self.path)
        if place is not None:
            procfs.protect(kernel, context, place)
            return
        target = _existing(kernel, context, self.path)
        if target < 0:
            return
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
    """The container's root becomes the thread's; the old one is stacked on top of it, cut off, and detached,
    so that nothing of the host stays reachable."""

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


class MoveRoot(Operation):
    """`--no-pivot`: the container's root is moved over the old one and entered by chroot, as switch_root does
    for a ramfs. The old root stays in the mount namespace, covered."""

    def describe(self) -> str:
        return "move to the container's root"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.fchdir(context.root)
        kernel.mount(".", "/", "", MS_MOVE, "")
        kernel.chroot(".")
        kernel.chdir("/")


class EnterRoot(Operation):
    """The root in a mount namespace that was joined. It has other users, whose root pivot_root would change,
    too; so it is entered by chroot, which is no wall against CAP_SYS_CHROOT."""

    def describe(self) -> str:
        return "enter the container's root"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.fchdir(context.root)
        kernel.chroot(".")
        kernel.chdir("/")


class SetRootPropagation(Operation):
    """rootfsPropagation of config.json, on the container's own root."""

    propagation: str

    def describe(self) -> str:
        return f"make the root {self.propagation}"

    def run(self, kernel: Kernel, context: Context) -> None:
        name = self.propagation.removeprefix("r")
        flags = PROPAGATION[name] | (MS_REC if self.propagation.startswith("r") else 0)
        kernel.mount("", "/", "", flags, "")
