"""/proc of a container, mounted by the child itself.

A procfs shows the PID namespace its *mounter* lives in (proc_init_fs_context), and the starting thread never
lives in the new one: only its child does. So mounting /proc, and everything that goes on top of it (masks,
read-only parts, single files), are steps of the child, attached to descriptors which the thread prepared. The
thread looks at the host's /proc to see which of the paths exist and whether they are folders: the kernel's
own entries are the same in every procfs.

The child cannot compute, so results go to descriptor numbers that the thread reserved (`Context.reserve`).
"""

from __future__ import annotations

import errno
import os
import posixpath

from runtime.kernel import AT_FDCWD, Kernel, Step
from runtime.mounting import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    ATTR_RDONLY,
    BENEATH,
    MS_PRIVATE,
    NO_SYMLINKS,
    OPEN_TREE_CLONE,
    MountOptions,
    make_inside,
)  # fmt: skip
from runtime.plan import Context, Operation, Refused

FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
F_EMPTY_PATH, T_EMPTY_PATH = 0x04, 0x40
DETACH = 2 | 8  # MNT_DETACH, UMOUNT_NOFOLLOW

# What may be mounted over below /proc; anything else could hide what security depends on (CVE-2019-16884).
ALLOWED = frozenset((
    "cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo", "net/dev",
    "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled",
))  # fmt: skip


def below(context: Context, path: str) -> tuple[int, str] | None:
    """The reserved descriptor of the procfs that `path` lies in, and the rest of the path; None for
    others."""
    clean = posixpath.normpath(path)
    for destination, slot in context.procs:
        if clean.startswith(destination + "/"):
            return slot, clean[len(destination) + 1 :]
    return None


class MountProc(Operation):
    """Mounts a procfs. An image whose /proc is a symlink is refused (CVE-2019-19921)."""

    destination: str
    options: MountOptions

    def describe(self) -> str:
        return f"mount proc on {self.destination}"

    def run(self, kernel: Kernel, context: Context) -> None:
        try:
            target = context.keep(make_inside(kernel, context.root, self.destination, symlinks=False))
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise Refused(f"{self.destination} of the image is a symlink") from error
            raise
        if context.user_namespace:
            keep_visible(kernel, target)
        config, tree = context.reserve(kernel), context.reserve(kernel)
        context.procs.append((posixpath.normpath(self.destination), tree))
        context.child(
            Step("fsopen", ("proc", 1), pass_result=True),
            Step("dup3", (0, config, os.O_CLOEXEC)),
            Step("fsconfig", (config, FSCONFIG_SET_STRING, "source", "proc", 0)),
            *(_option(config, option) for option in self.options.data),
            Step("fsconfig", (config, FSCONFIG_CMD_CREATE, 0, 0, 0)),
            Step("fsmount", (config, 1, self.options.set), pass_result=True),
            Step("dup3", (0, tree, os.O_CLOEXEC)),
            *(self._uncover(context) if context.user_namespace else ()),
            Step("move_mount", (tree, "", target, "", F_EMPTY_PATH | T_EMPTY_PATH)),
        )
        context.flush = True

    def _uncover(self, context: Context) -> tuple[Step, ...]:
        """What keep_visible put there is in the way. A child that is there before the change of root has the
        container's root elsewhere."""
        if not context.early:
            return (Step("umount2", (self.destination, DETACH)),)
        inside = posixpath.normpath(self.destination).lstrip("/")
        return (Step("fchdir", (context.root,)), Step("umount2", (inside, DETACH)))


def keep_visible(kernel: Kernel, target: int) -> None:
    """Puts the present /proc where a new one will be mounted. The kernel lets a user namespace mount a
    procfs only while it sees a whole one, and by then the host's is gone."""
    tree = kernel.open_tree(AT_FDCWD, "/proc", OPEN_TREE_CLONE | AT_RECURSIVE)
    try:
        kernel.mount_setattr(tree, propagation=MS_PRIVATE, recursive=True)
        kernel.move_mount(tree, target)
    finally:
        kernel.close(tree)


def _option(config: int, option: str) -> Step:
    key, equals, value = option.partition("=")
    if equals:
        return Step("fsconfig", (config, FSCONFIG_SET_STRING, key, value, 0))
    return Step("fsconfig", (config, FSCONFIG_SET_FLAG, key, 0, 0))


def cover(context: Context, place: tuple[int, str], tree: int) -> None:
    """Puts a prepared mount on an entry of a procfs."""
    slot, name = place
    context.child(Step("move_mount", (tree, "", slot, name, F_EMPTY_PATH)))


def protect(kernel: Kernel, context: Context, place: tuple[int, str]) -> None:
    """Makes an entry of a procfs read-only, with what is mounted below it."""
    slot, name = place
    if kind(kernel, context, name) is None:
        return
    tree = context.reserve(kernel)
    attributes = ATTR_RDONLY.to_bytes(8, "little") + bytes(24)
    context.child(
        Step("open_tree", (slot, name, OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC), pass_result=True),
        Step("dup3", (0, tree, os.O_CLOEXEC)),
        Step("mount_setattr", (tree, "", AT_EMPTY_PATH | AT_RECURSIVE, attributes, len(attributes))),
        Step("move_mount", (tree, "", slot, name, F_EMPTY_PATH)),
    )


def kind(kernel: Kernel, context: Context, name: str) -> int | None:
    """The type bits of a procfs entry; None when this kernel has none of that name."""
    try:
        fd = kernel.openat2(context.host_proc, name, os.O_PATH, resolve=BENEATH | NO_SYMLINKS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        return kernel.fstat(fd).mode & 0o170000
    finally:
        kernel.close(fd)
