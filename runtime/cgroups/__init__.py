"""Control groups: what a container may use, and the one handle by which all its processes are reached.

`detect` finds which of two drivers fits the host: v2 (the model) or hybrid (v1 controllers for limits, a
same-named v2 folder for kill, freeze and PSI). `choose` takes systemd's, where systemd makes the cgroups and
we ask it, or the detected one. All take OCI's linux.resources. Paths are relative to the hierarchies' roots.
"""

from __future__ import annotations

from runtime.cgroups.files import CgroupLimits, CgroupStats
from runtime.cgroups.join import CgroupJoin
from runtime.cgroups.oom_files import OomFiles
from runtime.errors import CgroupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol
else:

    class Protocol:
        """typing.Protocol costs 1.5 MB per forkserver; only type checkers need it."""


CGROUPFS, SYSTEMD = "cgroupfs", "systemd"


class Cgroup(Protocol):
    """One cgroup. `path` is relative to the root."""

    path: str

    def update(self, resources: Mapping[str, Any]) -> None: ...
    def kill(self) -> None: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def pids(self) -> list[int]: ...
    def stats(self) -> CgroupStats: ...
    def report(self) -> dict[str, Any]: ...
    def limits(self) -> CgroupLimits: ...
    def oom_files(self) -> OomFiles: ...
    def frozen(self) -> bool: ...
    def join(self, below: Mapping[str, str] = ...) -> CgroupJoin: ...
    def give(self, uid: int) -> None: ...
    def beside(self, pid: int) -> Mapping[str, str]: ...
    def missing_features(self) -> list[str]: ...


class CgroupNames(Protocol):
    """Where cgroups are. See PlainNames and SystemdNames."""

    def group(self, *names: str) -> str: ...
    def group_of(self, home: str) -> str: ...
    def container(self, cgroups_path: str, identity: str) -> str: ...


class CgroupDriver(Protocol):
    """Makes, opens and removes cgroups. Implemented by UnifiedDriver, HybridDriver and SystemdDriver.
    `unified`: where the v2 tree is mounted. `parents_first`: a cgroup can only be made in one that `create`
    has made; else what is missing above it is made with it, and `create` may give that its limits afterwards.

    A cgroup from `create` takes its first process at once; then `settle` is called. `home` makes the place in
    a group for a pod's containers, and is settled likewise.
    """

    name: str
    unified: str
    parents_first: bool

    @property
    def names(self) -> CgroupNames: ...

    def create(
        self,
        path: str,
        resources: Mapping[str, Any] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Cgroup: ...
    def create_bare(self, path: str) -> Cgroup: ...
    def home(self, group: str) -> str: ...
    def settle(self, path: str) -> None: ...
    def open(self, path: str) -> Cgroup: ...
    def exists(self, path: str) -> bool: ...
    def remove(self, path: str, recursive: bool = False) -> None: ...
    def missing_features(self) -> list[str]: ...


def detect(mountinfo: str = "/proc/self/mountinfo") -> CgroupDriver:
    """The driver for the cgroup trees mounted here, imported alone: commands live for milliseconds, and what
    the forkserver has, all shims have. Raises CgroupError when there is no v2 tree at all."""
    with open(mountinfo, "rb") as file:
        unified, controllers = _trees(file.read().decode("utf-8", "surrogateescape"))
    if not unified:
        raise CgroupError("Could not find a cgroup v2 tree (mount cgroup2 on /sys/fs/cgroup or below it)")
    if {"memory", "cpu", "pids"} & set(controllers):
        from runtime.cgroups.hybrid import HybridDriver

        return HybridDriver(controllers, unified)
    from runtime.cgroups.v2 import UnifiedDriver

    return UnifiedDriver(unified)


def choose(manager: str) -> CgroupDriver:
    """The driver for `manager`: cgroupfs, or systemd. Raises CgroupError where the host does not have it."""
    if manager != SYSTEMD:
        return detect()
    from runtime.cgroups import systemd

    return systemd.driver(detect())


def native() -> str:
    """The manager that this host wants: systemd where that owns a v2 tree, else cgroupfs."""
    from runtime.cgroups import v2
    from runtime.systemd.manager import is_running

    return SYSTEMD if is_running() and isinstance(detect(), v2.UnifiedDriver) else CGROUPFS


def _trees(mountinfo: str) -> tuple[str, dict[str, str]]:
    """Where cgroup2 is mounted, and where each v1 controller is (or a tree without one: name=systemd)."""
    unified, controllers = "", {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup"):
            continue
        folder = left.split()[4]
        if "\\" in folder:  # blanks and such; the decoder is a module of its own
            folder = folder.encode().decode("unicode_escape")
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2" and not unified:
            unified = folder
        elif kind == "cgroup":
            names = options.split()[-1].split(",")
            controllers.update({name: folder for name in names if name != "rw"})
    return unified, controllers


def tree_options(mountinfo: str) -> tuple[str, ...]:
    """What the v2 tree is mounted with (nsdelegate, memory_recursiveprot …), from the text of a mountinfo. It
    is one tree, so the first mount of it tells."""
    for line in mountinfo.splitlines():
        kind, _, rest = line.partition(" - ")[2].partition(" ")
        if kind == "cgroup2":
            return tuple(name for name in rest.split()[-1].split(",") if name not in ("rw", "ro"))
    return ()


__all__ = [
    "CGROUPFS", "SYSTEMD", "Cgroup", "CgroupDriver", "CgroupJoin", "CgroupNames", "CgroupStats", "choose",
    "detect", "native", "tree_options",
]  # fmt: skip
