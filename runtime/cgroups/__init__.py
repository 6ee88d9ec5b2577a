"""Control groups: what a container may use, and the one handle by which all its processes are reached.

`detect` finds which of two drivers fits the host: v2 (the model) or hybrid (v1 controllers for limits, a
same-named v2 folder for kill, freeze and PSI). Both take OCI's linux.resources. Paths are relative to the
hierarchies' roots.
"""

from __future__ import annotations

import os

from runtime.cgroups.files import CgroupStats
from runtime.cgroups.hybrid import HybridDriver
from runtime.cgroups.join import CgroupJoin
from runtime.cgroups.v2 import UnifiedDriver
from runtime.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol
else:

    class Protocol:
        """typing.Protocol costs 1.5 MB per forkserver; only type checkers need it."""


class Cgroup(Protocol):
    """One cgroup. `path` is relative to the root."""

    path: str

    def update(self, resources: Mapping[str, Any]) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def pids(self) -> list[int]: ...
    def stats(self) -> CgroupStats: ...
    def watch_oom(self) -> tuple[int, int]: ...
    def frozen(self) -> bool: ...
    def join(self, below: Mapping[str, str] = ...) -> CgroupJoin: ...
    def missing_features(self) -> list[str]: ...


class CgroupDriver(Protocol):
    """Makes, opens and removes cgroups. Implemented by UnifiedDriver and HybridDriver. `unified`: where the
    v2 tree is mounted."""

    name: str
    unified: str

    def create(self, path: str, resources: Mapping[str, Any] | None = None) -> Cgroup: ...
    def create_bare(self, path: str) -> Cgroup: ...
    def open(self, path: str) -> Cgroup: ...
    def exists(self, path: str) -> bool: ...
    def remove(self, path: str, recursive: bool = False) -> None: ...
    def missing_features(self) -> list[str]: ...


def detect(mountinfo: str = "/proc/self/mountinfo") -> CgroupDriver:
    """The driver for the cgroup trees mounted here. Raises CgroupError when there is no v2 tree at all."""
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        unified, controllers = _trees(file.read())
    if not unified:
        raise CgroupError("Could not find a cgroup v2 tree (mount cgroup2 on /sys/fs/cgroup or below it)")
    if {"memory", "cpu", "pids"} & set(controllers):
        return HybridDriver(controllers, unified)
    return UnifiedDriver(unified)


def _trees(mountinfo: str) -> tuple[str, dict[str, str]]:
    """Where cgroup2 is mounted, and where each v1 controller is (or a tree without one: name=systemd)."""
    unified, controllers = "", {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        folder = left.split()[4].encode().decode("unicode_escape")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" and not unified:
            unified = folder
        elif kind == "cgroup":
            names = options.split()[-1].split(",")
            controllers.update({name: folder for name in names if name != "rw"})
    return unified, controllers


def owned_path(path: str) -> str:
    """A cgroup path as a driver takes it, from an absolute one."""
    return os.path.normpath(path).strip("/")


__all__ = ["Cgroup", "CgroupDriver", "CgroupJoin", "CgroupStats", "detect", "owned_path"]
