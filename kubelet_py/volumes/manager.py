"""Sets a pod's volumes up, keeps payload volumes current, takes all away when the pod is gone.

Folders are `pods/<uid>/volumes/kubernetes.io~<kind>/<name>`, as upstream, so that a new agent finds what an
old one made. A secret's folder is a tmpfs.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.container_spec import PROPAGATION, Mount
from kubelet_py.pods.environment import expand
from kubelet_py.pods.files import SHM
from kubelet_py.pods.model import Object
from kubelet_py.volumes import (
    atomic_writer,
    config_map,
    downward_api,
    empty_dir,
    host_path,
    mounting,
    projected,
    secret,
    subpath,
)
from kubelet_py.volumes.plugin import Context, PayloadMaker

log = logging.getLogger(__name__)

PAYLOADS: dict[str, PayloadMaker] = {
    "configMap": config_map.payload,
    "secret": secret.payload,
    "downwardAPI": downward_api.payload,
    "projected": projected.payload,
}
IN_MEMORY = ("secret", "projected")
SUBPATHS = "volume-subpaths"


class VolumeManager:
    """`pods` is the folder of all pods."""

    def __init__(self, pods: Path) -> None:
        self._pods = pods

    def set_up(self, context: Context) -> dict[str, Path]:
        """Volume name → path on the host; VolumeError (event FailedMount) when one is not possible yet."""
        found = {}
        for volume in context.pod["spec"].get("volumes") or ():
            try:
                found[volume["name"]] = self._set_up_one(context, volume)
            except VolumeError as error:
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}'
                ) from error
        return found

    def _set_up_one(self, context: Context, volume: Object) -> Path:
        kind = next((key for key in volume if key != "name"), "emptyDir")
        source = volume.get(kind) or {}
        if kind == "hostPath":
            return host_path.set_up(context, source)
        folder = self._folder(context.pod["metadata"]["uid"], kind, volume["name"])
        if kind == "emptyDir":
            return empty_dir.set_up(context, source, folder)
        maker = PAYLOADS.get(kind)
        if maker is None:
            raise VolumeError(f"volumes of kind {kind} are not supported by this node")
        files = maker(context, source)
        folder.mkdir(parents=True, exist_ok=True)
        if kind in IN_MEMORY:
            mounting.mount_tmpfs(folder)
        atomic_writer.write(folder, files, context.fs_group)
        return folder

    def refresh(self, context: Context) -> bool:
        """Write changed payloads of a running pod; True when something changed."""
        changed = False
        for volume in context.pod["spec"].get("volumes") or ():
            kind = next((key for key in volume if key != "name"), "emptyDir")
            folder = self._folder(context.pod["metadata"]["uid"], kind, volume["name"])
            if kind in PAYLOADS and folder.is_dir():
                files = PAYLOADS[kind](context, volume[kind])
                changed |= atomic_writer.write(folder, files, context.fs_group)
        return changed

    def mounts(
        self, uid: str, container: Object, volumes: dict[str, Path], values: dict[str, str]
    ) -> list[Mount]:
        """The container's binds; a subPath is bound below the pod's folder first."""
        mounts: list[Mount] = []
        for index, entry in enumerate(container.get("volumeMounts") or ()):
            if entry["name"] not in volumes:
                raise VolumeError(f"volumeMount {entry['name']!r} names no volume of the pod")
            source = volumes[entry["name"]]
            read_only = bool(entry.get("readOnly")) or _is_payload(source)
            below = entry.get("subPath") or expand(entry.get("subPathExpr") or "", values)
            if below:
                target = self._pods / uid / SUBPATHS / entry["name"] / container["name"] / str(index)
                subpath.bind(source, below, target)
                source = target
            propagation = PROPAGATION[entry.get("mountPropagation") or "None"]
            mounts.append(Mount(str(source), entry["mountPath"], read_only, propagation))
        return mounts

    def tear_down(self, uid: str) -> None:
        """Unmount and remove everything of the pod. Never follows a symlink, never crosses a mount."""
        folder = self._pods / uid
        if not folder.is_dir():
            return
        mounting.unmount(folder / SHM)  # its sandbox took it away, unless no agent was there to do so
        for bound in (folder / SUBPATHS).glob("*/*/*"):
            mounting.unmount(bound)
        for kind in (folder / "volumes").glob("kubernetes.io~*"):
            for volume in kind.iterdir():
                if mounting.is_mounted(volume):
                    mounting.unmount(volume)
        shutil.rmtree(folder)
        log.info("Removed volumes pod_uid=%s", uid)

    def _folder(self, uid: str, kind: str, name: str) -> Path:
        plugin = {"configMap": "configmap", "secret": "secret", "downwardAPI": "downward-api"}.get(kind)
        plugin = plugin or {"emptyDir": "empty-dir", "projected": "projected"}.get(kind, kind.lower())
        return self._pods / uid / "volumes" / f"kubernetes.io~{plugin}" / name


def _is_payload(path: Path) -> bool:
    """Files that come from the API are never the container's to change (upstream since 1.9.6)."""
    kinds = ("configmap", "secret", "downward-api", "projected")
    return path.parent.name in {f"kubernetes.io~{kind}" for kind in kinds}

