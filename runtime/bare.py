"""A container's mount namespace made of an empty one, not of a copy of the host's.

A copy of the host's mounts has to be left again: pivot_root looks at every thread of the host, and detaching
what was copied waits for an RCU grace period. So where a pod's pause has a mount namespace with an empty
root, its containers begin with a copy of that. What they need of the host is opened before, as mounts that
are attached nowhere: the root, the sources of binds, /dev/null for masks. The root then covers the empty one
and is entered by chroot(2). Underneath lies a read-only tmpfs with nothing in it, and below that the host's
initramfs, on which the root lies after pivot_root: who uncovers it finds less, not more. For the kernel such
a root is the namespace's own (current_chrooted and mntns_install follow what covers it). The copy is made
private as one of the host's is: in a pod with one PID namespace a privileged container can join pause's mount
namespace and make the empty root shared, and what covered it would be seen there.

Not for what has to do with the host's mounts later: propagation to or from them.
"""

from __future__ import annotations

import os

from runtime.kernel import Kernel
from runtime.mounting import AT_EMPTY_PATH, ATTR_RDONLY, MS_PRIVATE, OPEN_TREE_CLONE, attach_to
from runtime.mounts import Mount, make_folders, mask_of
from runtime.namespaces import open_null
from runtime.plan import Context, Operation
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.operations import Rootfs
    from runtime.spec import Spec

LONGEST_TEXT = 255  # of fsconfig(2)
LAYER_BY_LAYER = (6, 7)  # the first Linux whose overlayfs takes "lowerdir+"
ESCAPED = frozenset("\\:,")
OF_THE_KERNEL = ("/proc/", "/sys/")  # where a container sees what the host does
OWN = ("", "private", "rprivate", "slave", "rslave")


PATH = "/proc/0/ns/mnt"  # stands for pause's, as what namespaces_of gives without a pid


class Bare(Record):
    """The path of the empty mount namespace, and the kernel's release (as uname has it)."""

    path: str
    release: str

    def fits(self, spec: Spec, rootfs: Rootfs, mounted: Sequence[Operation]) -> bool:
        """Whether a container with these mounts can be made so."""
        texts = (*rootfs.layers, rootfs.upper, rootfs.work)
        if any(len(os.fsencode(text)) > LONGEST_TEXT or ESCAPED.intersection(text) for text in texts):
            return False
        if len(rootfs.layers) > 1 and not appends(self.release):
            return False
        if spec.linux.rootfs_propagation not in OWN:
            return False
        binds = [mount for mount in mounted if isinstance(mount, Mount) and mount.options.bind]
        places = {mount.destination for mount in binds}
        return len(places) == len(binds) and all(m.options.propagation in (0, MS_PRIVATE) for m in binds)

    def opened(self, spec: Spec, rootfs: Rootfs) -> tuple[Operation, ...]:
        """What is opened of the host besides the sources of binds, before the namespace is joined."""
        overlay = OpenOverlay(rootfs.layers, rootfs.upper, rootfs.work)
        masked = spec.linux.masked_paths
        return (overlay, HoldMasks(masked)) if masked else (overlay,)

    def attached(self) -> Operation:
        """What is done with the root when the namespace is there."""
        return CoverRoot()


def appends(release: str) -> bool:
    """Whether overlayfs of the kernel `release` (as uname has it) takes its layers one by one."""
    numbers = release.split(".", 2)[:2]
    return all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) >= LAYER_BY_LAYER


class OpenOverlay(Operation):
    """As MountOverlay, but attached nowhere yet."""

    layers: tuple[str, ...]
    upper: str
    work: str

    def describe(self) -> str:
        return f"make an overlay of {len(self.layers)} layers and {self.upper}"

    def run(self, kernel: Kernel, context: Context) -> None:
        make_folders(kernel, self.upper, self.work)
        config = kernel.fsopen("overlay")
        try:
            kernel.fsconfig(config, "source", "overlay")
            for layer in self.layers:
                kernel.fsconfig(config, "lowerdir+" if len(self.layers) > 1 else "lowerdir", layer)
            kernel.fsconfig(config, "upperdir", self.upper)
            kernel.fsconfig(config, "workdir", self.work)
            kernel.fsconfig(config, "volatile", None)
            kernel.fsconfig(config, "", None)
            context.root = context.keep(kernel.fsmount(config, 0))
        finally:
            kernel.close(config)


class HoldMasks(Operation):
    """A mount of the host's /dev/null for each path that may have to be masked by it: read-only as
    MaskPath's, and private, or what a container mounts over it appeared over the host's /dev/null where that
    is shared (systemd's way). None for what the kernel shows as a folder or not at all: closing a mount that
    was attached nowhere waits for an RCU grace period each time."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        return f"open the host's /dev/null for {len(self.paths)} paths"

    def run(self, kernel: Kernel, context: Context) -> None:
        null = open_null(kernel, context)
        for path in self.paths:
            if path.startswith(OF_THE_KERNEL) and not kernel.may_be_file(path):
                continue
            mask = context.keep(kernel.open_tree(null, "", OPEN_TREE_CLONE | AT_EMPTY_PATH))
            kernel.mount_setattr(mask, set=ATTR_RDONLY, propagation=MS_PRIVATE)
            context.prepared[mask_of(path)] = mask


class CoverRoot(Operation):
    """The opened root goes over the empty one of the new mount namespace."""

    def describe(self) -> str:
        return "cover the empty root"

    def run(self, kernel: Kernel, context: Context) -> None:
        attach_to(kernel, context.root, "/")
