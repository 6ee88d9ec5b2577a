"""Units' names, and the cgroups that they stand for. Pure.

A slice's name is its place: a-b.slice lies in a.slice. What is not a slice lies in the slice it names
(systemd.slice(5)). Sources: runc's specconv and systemd manager for `slice:prefix:name`, upstream's
CgroupName.ToSystemd for the kubelet's slices, systemd's unit_name_escape and cg_escape.
"""

from __future__ import annotations

import re

from runtime.errors import SpecError, SystemdError
from runtime.records import Record

DEFAULT_SLICE = "system.slice"
PREFIX = "kubelet-py-oci"
CONTAINER = "container"  # the name that crun gives to a container's cgroup in its scope
LONGEST = 255
_SLICE = re.compile(r"[A-Za-z0-9:_.\\]+(?:-[A-Za-z0-9:_.\\]+)*\.slice")
_FOREIGN = re.compile(r"[^A-Za-z0-9:_.\\-]")
# Names that the kernel has or may have for files of its own get an underscore in front.
_FILES = re.compile(
    r"_|\.|notify_on_release$|release_agent$|tasks$|"
    r"(?:cgroup|cpu|cpuacct|cpuset|io|blkio|memory|devices|pids|hugetlb|rdma|misc|freezer)\."
)


def slice_path(name: str) -> str:
    """The cgroup of a slice: a-b.slice → a.slice/a-b.slice, -.slice → "". Raises SystemdError."""
    if name == "-.slice":
        return ""
    if not _SLICE.fullmatch(name) or len(name) > LONGEST:
        raise SystemdError(f"Could not use slice {name!r}: a name like machine.slice or a-b.slice is needed")
    parts = name.removesuffix(".slice").split("-")
    return "/".join(cgroup_name("-".join(parts[:count]) + ".slice") for count in range(1, len(parts) + 1))


def cgroup_name(unit: str) -> str:
    """The folder's name of a unit."""
    return f"_{unit}" if _FILES.match(unit) else unit


def unit_name(folder: str) -> str:
    """The unit of a folder's name."""
    return folder.removeprefix("_")


def escaped(text: str) -> str:
    """A text as part of a unit's name: what may not be in one becomes \\xNN."""
    return _FOREIGN.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in found[0].encode()), text)


class Place(Record):
    """A cgroup's path, taken apart: the innermost unit on it ("" for none), that unit's path, the rest."""

    unit: str
    path: str
    inside: str


def place_of(path: str) -> Place:
    """a.slice/x.scope/one → unit x.scope, path a.slice/x.scope, inside one."""
    parts = path.strip("/").split("/")
    for count in range(len(parts), 0, -1):
        if parts[count - 1].endswith((".slice", ".scope")):
            return Place(unit_name(parts[count - 1]), "/".join(parts[:count]), "/".join(parts[count:]))
    return Place("", "", path)


class SystemdNames:
    """Where cgroups are when systemd makes them. See PlainNames."""

    def group(self, *names: str) -> str:
        """("kubelet-py", "kubepods", "burstable") → kubelet_py.slice/kubelet_py-kubepods.slice/…"""
        return slice_path("-".join(name.replace("-", "_") for name in names) + ".slice")

    def group_of(self, home: str) -> str:
        """The slice that a home is in."""
        return home.rpartition("/")[0] if home.endswith(".scope") else home

    def container(self, cgroups_path: str, identity: str) -> str:
        """`slice:prefix:name` → the container's cgroup in the scope of its own. Raises SpecError."""
        if not cgroups_path:
            return self._scope(DEFAULT_SLICE, f"{PREFIX}-{identity}")
        parts = cgroups_path.split(":")
        if len(parts) != 3 or not parts[2]:
            problem = f'expected "slice:prefix:name" for the systemd cgroup driver, got {cgroups_path!r}'
            raise SpecError("linux.cgroupsPath", problem)
        home, prefix, name = parts
        return self._scope(home or DEFAULT_SLICE, f"{prefix}-{name}" if prefix else name)

    def _scope(self, home: str, name: str) -> str:
        unit = escaped(name) + ".scope"
        try:
            folder = slice_path(home)
        except SystemdError as error:
            raise SpecError("linux.cgroupsPath", str(error)) from error
        if len(unit) > LONGEST:
            raise SpecError("linux.cgroupsPath", f"{unit!r} is too long for a unit's name")
        return f"{folder}/{cgroup_name(unit)}/{CONTAINER}".lstrip("/")
