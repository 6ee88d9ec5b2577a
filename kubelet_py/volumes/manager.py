"""Sets a pod's volumes up, keeps payload volumes current, takes all away when the pod is gone.

Folders are `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`, as upstream, so that a new agent finds what an
old one made. What comes from the API as a secret lies on a tmpfs.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from kubelet_py.errors import VolumeError, VolumesError
from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.pods.container_spec import Mount
from kubelet_py.pods.model import Object
from kubelet_py.volumes import (
    atomic_writer,
    claim,
    config_map,
    downward_api,
    empty_dir,
    host_path,
    mounting,
    nfs,
    ownership,
    projected,
    secret,
)
from kubelet_py.volumes.container_mounts import container_mounts
from kubelet_py.volumes.disk_usage import Used, used
from kubelet_py.volumes.exclusive import Exclusive
from kubelet_py.volumes.mapped_layers import mount_mapped_layers
from kubelet_py.volumes.plugin import Context, PayloadMaker, Volume, Volumes, kind_of
from runtime.kernel import Kernel
from runtime.linux import LinuxKernel
from runtime.removal import remove_tree

log = logging.getLogger(__name__)

PAYLOADS: dict[str, PayloadMaker] = {
    "configMap": config_map.payload,
    "secret": secret.payload,
    "downwardAPI": downward_api.payload,
    "projected": projected.payload,
}
IN_MEMORY = ("secret", "projected")
FOLDERS = {
    "configMap": "configmap",
    "downwardAPI": "downward-api",
    "emptyDir": "empty-dir",
    "persistentVolumeClaim": "persistent-volume",
    "ephemeral": "persistent-volume",
}
SUBPATHS = "volume-subpaths"
STORAGE_BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600)


class VolumeManager:
    """`pods` is the folder of all pods."""

    def __init__(self, pods: Path, kernel: Kernel | None = None) -> None:
        self._pods = pods
        self._kernel = kernel or LinuxKernel()
        self._exclusive = Exclusive(pods)
        self._durations = Histogram(
            "storage_operation_duration_seconds",
            "Storage operation duration",
            "volume_plugin",
            "operation_name",
            "status",
            "migrated",
            bounds=STORAGE_BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (self._durations,)

    def set_up(self, context: Context) -> dict[str, Volume]:
        """The pod's volumes by name; VolumesError (events FailedMount) when some are not possible yet.

        Image volumes are missing: their containers bring the images, and `set_up_image` shows them.
        """
        found, failed = {}, []
        for volume in context.pod["spec"].get("volumes") or ():
            if kind_of(volume) == "image":
                continue
            began, status = time.monotonic(), "fail-unknown"
            try:
                found[volume["name"]] = self._set_up_one(context, volume)
                status = "success"
            except claim.ClaimError as error:
                failed.append(str(error))
            except (VolumeError, OSError) as error:
                why = _in_words(error)
                failed.append(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {why}')
            finally:
                seconds = time.monotonic() - began
                self._durations.observe(seconds, plugin(kind_of(volume)), "volume_mount", status, "false")
        if failed:
            raise VolumesError(failed)
        return found

    def _set_up_one(self, context: Context, volume: Object) -> Volume:
        kind = kind_of(volume)
        source = volume.get(kind) or {}
        folder = self._folder(context.pod["metadata"]["uid"], kind, volume["name"])
        match kind:
            case "hostPath":
                return Volume(host_path.set_up(context, source))
            case "emptyDir":
                return Volume(empty_dir.set_up(context, source, folder))
            case "persistentVolumeClaim" | "ephemeral":
                return claim.set_up(context, volume, folder, self._exclusive)
            case "nfs":
                return Volume(nfs.set_up(source, folder), bool(source.get("readOnly")))
        maker = PAYLOADS.get(kind)
        if maker is None:
            raise VolumeError(f"volumes of kind {kind} are not supported by this node")
        files = maker(context, source)
        folder.mkdir(parents=True, exist_ok=True)
        if kind in IN_MEMORY:
            mounting.mount_tmpfs(folder, mode=0o1777)
        else:
            folder.chmod(0o777)
        atomic_writer.write(folder, files, context.fs_group)
        if context.fs_group is not None:
            ownership.give_root(folder, context.fs_group)
        # Files that come from the API are never the container's to change (upstream since 1.9.6).
        return Volume(folder, read_only=True)

    def set_up_image(
        self, uid: str, name: str, layers: Sequence[str], ids: tuple[int, int] = (0, 0)
    ) -> Volume:
        """The root of an image as a volume that can only be read. `ids`: the first of the pod's users and how
        many it has, if they are its own; several layers are mapped to them here, since their overlay cannot
        be mapped when it is mounted in a container."""
        mapped = bool(ids[1]) and len(layers) > 1
        # An agent of before may have left the plain layers at the usual place; a mount is taken as it is.
        folder = self._folder(uid, "mapped-image" if mapped else "image", name)
        folder.mkdir(parents=True, exist_ok=True)
        if mapped:
            mount_mapped_layers(self._kernel, folder, layers, ids)
        else:
            mounting.mount_layers(folder, layers)
        return Volume(folder, read_only=True, mapped=mapped)

    def refresh(self, context: Context) -> bool:
        """Write changed payloads of a pod whose volumes are there; True when something changed.

        Every volume is tried; VolumesError tells of those that could not be made.
        """
        changed, failed = False, []
        for volume in context.pod["spec"].get("volumes") or ():
            kind = kind_of(volume)
            folder = self._folder(context.pod["metadata"]["uid"], kind, volume["name"])
            if kind not in PAYLOADS or not folder.is_dir():
                continue
            try:
                files = PAYLOADS[kind](context, volume[kind])
                changed |= atomic_writer.write(folder, files, context.fs_group)
            except VolumeError as error:
                failed.append(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}')
        if failed:
            raise VolumesError(failed)
        return changed

    def mounts(self, uid: str, container: Object, volumes: Volumes, values: Mapping[str, str]) -> list[Mount]:
        """The container's binds; a subPath is bound below the pod's folder first."""
        subpaths = self._pods / uid / SUBPATHS
        return container_mounts(container, volumes, values, subpaths, mounting.propagation_of)

    def usage(self, pod: Object) -> dict[str, Used]:
        """What each emptyDir on the node's disk holds now, by the volume's name."""
        uid, found = pod["metadata"]["uid"], {}
        for volume in pod["spec"].get("volumes") or ():
            if kind_of(volume) == "emptyDir" and not (volume.get("emptyDir") or {}).get("medium"):
                folder = self._folder(uid, "emptyDir", volume["name"])
                if folder.is_dir():
                    found[volume["name"]] = used(folder)
        return found

    def give_up(self, uid: str) -> None:
        """Unmount and remove the volumes of a pod that is over, and nothing else of it: what they hold, in
        memory or on the disk, is free for others long before somebody deletes the pod."""
        home = Path(os.path.realpath(self._pods / uid))
        self._remove(home / SUBPATHS)  # binds of what is in the volumes
        volumes = home / "volumes"
        if not volumes.is_dir():
            self._exclusive.give_back(uid)
            return
        mounts = mounting.below(volumes)
        for folder in volumes.glob("*/*"):
            self._unmount(folder, [mount for mount in mounts if mount == folder or folder in mount.parents])
        remove_tree(volumes)
        self._exclusive.give_back(uid)

    def _unmount(self, folder: Path, mounts: Sequence[Path]) -> None:
        """Take one volume away, and count how long that took. Nothing is asked of what is mounted there: it
        may be a server that is gone."""
        began, status = time.monotonic(), "fail-unknown"
        try:
            for mount in mounts:
                mounting.unmount(mount)
            remove_tree(folder)
            status = "success"
        finally:
            name = folder.parent.name.replace("~", "/")
            self._durations.observe(time.monotonic() - began, name, "volume_unmount", status, "false")

    def tear_down(self, uid: str) -> None:
        """Unmount and remove everything of the pod. Never follows a symlink, never crosses a mount."""
        folder = self._pods / uid
        if not folder.is_dir():
            return
        self.give_up(uid)
        self._remove(folder)
        log.info("Removed volumes pod_uid=%s", uid)

    @staticmethod
    def _remove(folder: Path) -> None:
        # Ours (tmpfs, subPaths, images, shares), and what a container mounted inside a shared volume.
        if folder.is_dir():
            for mount in mounting.below(folder):
                mounting.unmount(mount)
            remove_tree(folder)

    def _folder(self, uid: str, kind: str, name: str) -> Path:
        return self._pods / uid / "volumes" / plugin(kind).replace("/", "~") / name


def _in_words(error: Exception) -> str:
    if not isinstance(error, OSError) or not error.errno or not error.filename:
        return str(error)
    name = errno.errorcode.get(error.errno, error.errno)
    return f"Could not use {error.filename}: {name} ({error.strerror})"


def plugin(kind: str) -> str:
    """Upstream's name of the plugin for a kind of volume: secret → kubernetes.io/secret."""
    return f"kubernetes.io/{FOLDERS.get(kind, kind.lower())}"
