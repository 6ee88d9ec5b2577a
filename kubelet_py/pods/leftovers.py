"""What is still owed for pods that nobody has any more, because an agent was killed in the middle of a step.

A pod's own folder is made before anything else of it and removed after everything else, so as long as it is
there, something may be left: logs, cgroup, volumes. It is our own record; nothing is looked for by a pattern
over the host. Addresses and host ports are the network's GC's to take back (node/network_keeper.py).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.paths import NodePaths
from kubelet_py.pods.resources import KUBEPODS
from kubelet_py.volumes.manager import VolumeManager
from runtime.cgroups import CgroupDriver
from runtime.errors import RuntimeFailure

log = logging.getLogger(__name__)

LEVELS = ((), ("burstable",), ("besteffort",))


class Leftovers:
    def __init__(self, paths: NodePaths, cgroups: CgroupDriver, volumes: VolumeManager) -> None:
        self._paths = paths
        self._cgroups = cgroups
        self._volumes = volumes

    def clear(self, uid: str) -> None:
        """Remove what is left of a pod that is gone and has no sandbox any more; its folder last."""
        try:
            for folder in self._paths.pod_logs.glob(f"*_{uid}"):
                remove_logs(self._paths, folder)
            for level in LEVELS:
                group = self._cgroups.names.group(self._paths.cgroup_root, KUBEPODS, *level, f"pod{uid}")
                if self._cgroups.exists(group):
                    self._cgroups.remove(group, recursive=True)
            self._volumes.tear_down(uid)
        except (RuntimeFailure, VolumeError, OSError) as error:
            # Its folder is still there, so the next look finds it again; other pods' must not wait for it.
            log.warning("Failed to clear away pod_uid=%s error=%s", uid, error)


def remove_log(paths: NodePaths, container_id: str, log_path: Path) -> None:
    """Remove one attempt's log with its rotated files, and the link to it: a pod that crashes for weeks must
    not fill the disk with them."""
    for link in paths.container_logs.glob(f"*-{container_id}.log"):
        link.unlink(missing_ok=True)
    for file in log_path.parent.glob(f"{log_path.name}*"):
        file.unlink(missing_ok=True)


def remove_logs(paths: NodePaths, folder: Path) -> None:
    """Remove a pod's log folder, named `<namespace>_<name>_<uid>`, and the links into it."""
    if paths.container_logs.is_dir():
        namespace, name, _ = folder.name.split("_")
        for link in paths.container_logs.glob(f"{name}_{namespace}_*.log"):
            if link.is_symlink() and Path(link.readlink()).is_relative_to(folder):
                link.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
