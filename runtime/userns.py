"""User namespaces: entered, mapped, and what has to happen before, while we still are the host's root.

A process with threads cannot enter a user namespace, so such plans run in a process of their own
(runtime/apart.py), which asks its parent to write the mappings: only somebody outside may. Inside, the host's
folders may be closed to us, device nodes cannot be made, and limits cannot be raised; therefore the root and
all bind sources are opened before, nodes are bound instead of made, and limits are raised early.
"""

from __future__ import annotations

import os
import posixpath

from runtime.devices import TYPE_BITS
from runtime.kernel import AT_FDCWD, Kernel
from runtime.mounting import (
    AT_RECURSIVE,
    INSIDE,
    MS_PRIVATE,
    MS_REC,
    MS_SLAVE,
    OPEN_TREE_CLONE,
    attach_to,
    make_inside,
)  # fmt: skip
from runtime.mounts import MountOverlay, idmap
from runtime.namespaces import FLAGS
from runtime.plan import Context, Operation, Refused
from runtime.spec import Device, IdMapping, Rlimit

PROBED = "0 65536 65536\n"


def host_id(mappings: tuple[IdMapping, ...], inside: int) -> int:
    """What the host knows an id of the namespace as; the same without mappings, 65534 (nobody) for one that
    has none."""
    if not mappings:
        return inside
    ranges = (m for m in mappings if m.container <= inside < m.container + m.size)
    return next((m.host + inside - m.container for m in ranges), 65534)


def supported(kernel: Kernel) -> bool:
    """Whether a pod's files can be mapped on this kernel: user namespaces may be made, and even a tmpfs,
    which holds secrets, can be idmapped (Linux 6.3)."""
    opened: list[int] = []
    try:
        opened.append(kernel.user_namespace(PROBED, PROBED))
        opened.append(kernel.fsopen("tmpfs"))
        kernel.fsconfig(opened[1], "", None)
        opened.append(kernel.fsmount(opened[1], 0))
        kernel.map_mount(opened[2], opened[0], recursive=False)
    except OSError:
        return False
    finally:
        for descriptor in opened:
            kernel.close(descriptor)
    return True


class EnterOwnCgroup(Operation):
    """This process enters the cgroups itself; its child is born there. (The child would not be let in: the
    v2 folder belongs to the host's root.)"""

    unified: str
    tasks: tuple[str, ...]

    def describe(self) -> str:
        return f"enter the cgroup {self.unified or self.tasks[0]}"

    def run(self, kernel: Kernel, context: Context) -> None:
        for path in (*([f"{self.unified}/cgroup.procs"] if self.unified else []), *self.tasks):
            fd = kernel.open(path, os.O_WRONLY)
            try:
                kernel.write(fd, b"0")
            finally:
                kernel.close(fd)


class RaiseLimits(Operation):
    """Hard limits above ours are raised while that is allowed; the child sets the rest. The score goes the
    same way: a file of /proc that the namespace's root may not write."""

    limits: tuple[Rlimit, ...]
    oom_score_adj: int | None

    def describe(self) -> str:
        return "raise resource limits"

    def run(self, kernel: Kernel, context: Context) -> None:
        for limit in self.limits:
            try:
                kernel.raise_limit(limit.resource, limit.hard)
            except OSError as error:
                if error.errno != 1:
                    raise
        if self.oom_score_adj is not None:
            fd = kernel.open("self/oom_score_adj", os.O_WRONLY, dir_fd=context.host_proc)
            try:
                kernel.write(fd, str(self.oom_score_adj).encode())
            except OSError as error:
                if error.errno != 13:
                    raise
                context.warnings.append(f"{context.number}:EACCES (oom_score_adj {self.oom_score_adj})")
            finally:
                kernel.close(fd)


class OpenRoot(Operation):
    """A copy of the bundle's root as a mount that is attached later, and its folder as working directory:
    that follows into the new mount namespace."""

    path: str

    def describe(self) -> str:
        return f"open the root folder {self.path}"

    def run(self, kernel: Kernel, context: Context) -> None:
        context.root = context.keep(
            kernel.open_tree(AT_FDCWD, self.path, OPEN_TREE_CLONE | AT_RECURSIVE)
        )
        kernel.mount_setattr(context.root, propagation=MS_PRIVATE, recursive=True)
        kernel.chdir(self.path)


class OpenMappedRoot(Operation):
    """An overlay as the root that is attached later, its layers idmapped (Linux 5.19): the image's root is
    the namespace's. The upper folder is not mapped but handed over, so whatever is changed belongs on the
    disk to ids that are nobody's on the host.

    It is mounted in a mount namespace of the host's root that only this operation uses: overlayfs takes
    layers by their paths, so the mapped ones are put over the plain ones, which nobody else may see.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    mappings: tuple[str, str]
    owner: tuple[int, int]

    def describe(self) -> str:
        return f"mount an overlay of {len(self.layers)} idmapped layers on {self.upper}"

    def run(self, kernel: Kernel, context: Context) -> None:
        users = context.users(kernel, self.mappings)
        kernel.unshare(FLAGS["mount"])
        kernel.mount("", "/", "", MS_SLAVE | MS_REC, "")
        for layer in self.layers:
            self._map(kernel, layer, users)
        kernel.chown(self.upper, *self.owner, dir_fd=AT_FDCWD)
        MountOverlay(self.layers, self.upper, self.work).run(kernel, context)
        context.root = context.keep(kernel.open_tree(AT_FDCWD, self.upper, OPEN_TREE_CLONE))
        kernel.mount_setattr(context.root, propagation=MS_PRIVATE)
        kernel.chdir(self.upper)

    def _map(self, kernel: Kernel, layer: str, users: int) -> None:
        tree = kernel.open_tree(AT_FDCWD, layer, OPEN_TREE_CLONE)
        try:
            idmap(kernel, tree, users, layer)
            attach_to(kernel, tree, layer)
        finally:
            kernel.close(tree)


class AttachRoot(Operation):
    """The opened root goes over its own folder, in the new mount namespace."""

    def describe(self) -> str:
        return "attach the root"

    def run(self, kernel: Kernel, context: Context) -> None:
        attach_to(kernel, context.root, ".")


class EnterUserNamespace(Operation):
    """A new user namespace, mapped from outside, in which we are root."""

    def describe(self) -> str:
        return "make a new user namespace and map its users"

    def run(self, kernel: Kernel, context: Context) -> None:
        kernel.unshare(FLAGS["user"])
        if context.ask is None:
            raise Refused("a process with threads cannot enter a user namespace")
        context.ask("map")
        _become_root(kernel, context)


class BecomeRoot(Operation):
    """Root of the user namespace that was joined."""

    def describe(self) -> str:
        return "become root of the user namespace"

    def run(self, kernel: Kernel, context: Context) -> None:
        _become_root(kernel, context)


def _become_root(kernel: Kernel, context: Context) -> None:
    kernel.become_root()
    context.user_namespace = True
    context.held = kernel.capabilities(proc=context.host_proc)


class SetTimeOffsets(Operation):
    """Offsets of the new time namespace's clocks; before its first process, or never."""

    text: str

    def describe(self) -> str:
        return "set the clocks of the time namespace"

    def run(self, kernel: Kernel, context: Context) -> None:
        if context.ask is not None:
            context.ask("time")
            return
        fd = kernel.open(f"{kernel.thread()}/timens_offsets", os.O_WRONLY, dir_fd=context.host_proc)
        try:
            kernel.write(fd, self.text.encode())
        finally:
            kernel.close(fd)


class BindDevices(Operation):
    """The host's nodes in place of new ones, which a user namespace may not make."""

    devices: tuple[Device, ...]

    def describe(self) -> str:
        return f"bind {len(self.devices)} device nodes"

    def run(self, kernel: Kernel, context: Context) -> None:
        for device in self.devices:
            tree = kernel.open_tree(AT_FDCWD, device.path, OPEN_TREE_CLONE)
            try:
                status = kernel.fstat(tree)
                if (status.mode & 0o170000, status.rdev) != (
                    TYPE_BITS[device.type], os.makedev(device.major, device.minor)
                ):  # fmt: skip
                    raise Refused(f"{device.path} of the host is another device")
                self._attach(kernel, context, device, tree)
            finally:
                kernel.close(tree)

    def _attach(self, kernel: Kernel, context: Context, device: Device, tree: int) -> None:
        folder, name = posixpath.split(posixpath.normpath(device.path))
        parent = make_inside(kernel, context.root, folder)
        try:
            try:
                kernel.mknod(name, 0o100000 | device.mode, 0, dir_fd=parent)
            except FileExistsError:
                pass
            target = kernel.openat2(parent, name, os.O_PATH | os.O_NOFOLLOW, resolve=INSIDE)
            try:
                kernel.move_mount(tree, target)
            finally:
                kernel.close(target)
        finally:
            kernel.close(parent)
