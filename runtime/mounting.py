"""Mount options and paths inside a container: the two things every mount operation needs.

A path inside a container belongs to whoever made its image or shares its volumes. So each destination is
first resolved to a descriptor by openat2(RESOLVE_IN_ROOT, no magic links), and mounts are attached to that
*descriptor*. Between look-up and use nobody can swap a symlink in (CVE-2021-30465).
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.kernel import AT_FDCWD, Kernel
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MS_RDONLY, MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE = (
    1, 0x1000, 0x4000, 1 << 18, 1 << 19, 1 << 20, 1 << 17
)  # fmt: skip
MS_MOVE = 0x2000
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8
ATTR_ATIME, ATTR_NOATIME, ATTR_STRICTATIME, ATTR_NODIRATIME, ATTR_NOSYMFOLLOW = (
    0x70,
    0x10,
    0x20,
    0x80,
    0x200000,
)
OPEN_TREE_CLONE, AT_RECURSIVE, AT_EMPTY_PATH = 1, 0x8000, 0x1000
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT = 1, 2, 4, 8, 16
INSIDE = IN_ROOT | NO_MAGICLINKS
SYSFS_MAGIC, CGROUP2_MAGIC = 0x62656572, 0x63677270
PAGE = 4096

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
PROPAGATION = {"private": MS_PRIVATE, "slave": MS_SLAVE, "shared": MS_SHARED, "unbindable": MS_UNBINDABLE}
# Of the file system, not of the mount: handed over as they are, each a flag of fsconfig(2).
SUPERBLOCK = ("async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync")
# How much the kernel writes into its log while it mounts, and a counter that is off unless asked for.
WITHOUT_EFFECT = ("silent", "loud", "noiversion")
KNOWN_OPTIONS = frozenset(
    {"bind", "rbind", "tmpcopyup", "idmap", "ridmap", "remount", *SUPERBLOCK, *WITHOUT_EFFECT}
    | set(_SET)
    | set(_CLEAR)
    | set(PROPAGATION)
    | {"r" + name for name in (*_SET, *_CLEAR, *PROPAGATION) if name != "defaults"}
)


class MountOptions(Record):
    """Options sorted by what they become: attributes of this mount or of the whole tree, propagation, and
    data for the file system. `copy_up`: fill a tmpfs with what it covers. `idmap`: "" or one of idmap (this
    mount) and ridmap (all below, too); `idmap_by`: mappings of the option's own, as crun has them, "" for the
    container's. `remount`: change the mount that is there."""

    bind: bool = False
    recursive: bool = False
    set: int = 0
    clear: int = 0
    tree_set: int = 0
    tree_clear: int = 0
    propagation: int = 0
    tree_propagation: bool = False
    data: tuple[str, ...] = ()
    copy_up: bool = False
    idmap: str = ""
    idmap_by: str = ""
    remount: bool = False


def changed(options: MountOptions, **changes: Any) -> MountOptions:
    """The same options but for `changes`."""
    return MountOptions(**{name: changes.get(name, getattr(options, name)) for name in options._fields})


REMEMBERED = 64  # lists of options: the same few come with every container
_parsed: dict[tuple[str, ...], MountOptions] = {}


def parse_options(options: tuple[str, ...]) -> MountOptions:
    """OCI mount options → MountOptions. Unknown ones are data for the file system, which refuses them."""
    found = _parsed.get(options)
    if found is None:
        if len(_parsed) >= REMEMBERED:
            _parsed.clear()
        found = _parsed[options] = _parse(options)
    return found


def _parse(options: tuple[str, ...]) -> MountOptions:
    chosen: dict[str, int] = {"set": 0, "clear": 0, "tree_set": 0, "tree_clear": 0}
    bind = recursive = tree = copy_up = remount = False
    idmap = idmap_by = ""
    propagation = 0
    data: list[str] = []
    for option in options:
        prefix, name = (
            ("tree_", option[1:]) if option[:1] == "r" and option not in _SET | _CLEAR else ("", option)
        )
        if option in ("bind", "rbind"):
            bind, recursive = True, recursive or option == "rbind"
        elif name in PROPAGATION:
            propagation, tree = PROPAGATION[name], prefix != ""
        elif name in _SET:
            if _SET[name] & ATTR_ATIME or name == "relatime":
                chosen[prefix + "clear"] |= ATTR_ATIME
                chosen[prefix + "set"] &= ~ATTR_ATIME
            chosen[prefix + "set"] |= _SET[name]
            chosen[prefix + "clear"] &= ~_SET[name] | ATTR_ATIME
        elif name in _CLEAR:
            chosen[prefix + "clear"] |= ATTR_ATIME if name == "atime" else _CLEAR[name]
            chosen[prefix + "set"] &= ~_CLEAR[name]
        elif option == "tmpcopyup":
            copy_up = True
        elif option.partition("=")[0] in ("idmap", "ridmap"):
            idmap, _, idmap_by = option.partition("=")
        elif option == "remount":
            remount = True
        elif option in WITHOUT_EFFECT:
            continue
        else:
            data.append(option)
    return MountOptions(bind=bind, recursive=recursive, propagation=propagation, tree_propagation=tree,
                        data=tuple(data), copy_up=copy_up, idmap=idmap,
                        idmap_by=idmap_by, remount=remount, **chosen)  # fmt: skip


def open_inside(
    kernel: Kernel, root: int, path: str, flags: int = os.O_PATH, *, symlinks: bool = True
) -> int:
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
            child = _make_one(
                kernel, root, parent, names[: index + 1], folder or index < len(names) - 1, symlinks
            )
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


def attach_to(kernel: Kernel, tree: int, folder: str) -> None:
    """Attach a mount that is held open to a folder of this thread's own. Raises OSError."""
    target = kernel.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        kernel.move_mount(tree, target)
    finally:
        kernel.close(target)


def read_only(kernel: Kernel, path: str) -> int:
    """A descriptor of a file in a read-only mount of its own, which is attached nowhere. A process that was
    executed through it shows a /proc/<pid>/exe that nobody can write to, not even root of the host: a
    container that gets hold of ours cannot overwrite our interpreter (CVE-2019-5736). Raises OSError."""
    tree = kernel.open_tree(AT_FDCWD, os.path.realpath(path), OPEN_TREE_CLONE)
    try:
        kernel.mount_setattr(tree, set=ATTR_RDONLY)
    except OSError:
        kernel.close(tree)
        raise
    return tree
