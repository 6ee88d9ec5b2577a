"""An image of several layers as a volume of a pod with users of its own (`hostUsers: false`).

An overlay cannot be idmapped, but its layers can (Linux 5.19), and what it shows has then the owners of the
layers as they are mapped. overlayfs takes layers by their paths, so the mapped ones are put over the plain
ones in a mount namespace that only this uses; the overlay leaves it as a detached mount and is attached where
the pod's volumes are. The overlay keeps its layers by itself: nothing else of that namespace stays.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.volumes import mounting
from runtime.kernel import AT_FDCWD, Kernel
from runtime.mounting import AT_EMPTY_PATH, MS_PRIVATE, MS_REC, OPEN_TREE_CLONE
from runtime.mounts import idmap
from runtime.namespaces import FLAGS
from runtime.own_thread import in_thread_of_its_own
from runtime.plan import Refused


def mount_mapped_layers(kernel: Kernel, folder: Path, layers: Sequence[str], ids: tuple[int, int]) -> None:
    """Show the layers (top first) at `folder`, read-only and without executing, unless they are; the host's 0
    is the first of `ids`, a first id and a number of them. VolumeError."""
    if mounting.is_mounted(folder):
        return
    what = f"Could not mount an image of {len(layers)} layers with the pod's users on {folder}"
    opened: list[int] = []
    try:
        in_thread_of_its_own(lambda: _overlay(kernel, folder, layers, ids, opened))
        tree, target = opened[-1], kernel.open(str(folder), os.O_PATH | os.O_DIRECTORY)
        opened.append(target)
        kernel.move_mount(tree, target)
    except Refused as error:
        raise VolumeError(f"{what}: {error}") from error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise VolumeError(f"{what}: {errno.errorcode.get(error.errno or 0, error)}{place}") from error
    finally:
        for descriptor in opened:
            kernel.close(descriptor)


def _overlay(
    kernel: Kernel, folder: Path, layers: Sequence[str], ids: tuple[int, int], opened: list[int]
) -> None:
    """The last of `opened` is the overlay, attached nowhere."""
    text = f"0 {ids[0]} {ids[1]}\n"
    users = kernel.user_namespace(text, text)
    opened.append(users)
    kernel.unshare(FLAGS["mount"])
    kernel.mount("", "/", "", MS_PRIVATE | MS_REC, "")
    for layer in layers:
        target = kernel.open(layer, os.O_PATH | os.O_DIRECTORY)
        opened.append(target)
        tree = kernel.open_tree(target, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)
        opened.append(tree)
        idmap(kernel, tree, users, layer)
        kernel.move_mount(tree, target)
    mounting.mount_layers(folder, layers)
    opened.append(kernel.open_tree(AT_FDCWD, str(folder), OPEN_TREE_CLONE))
