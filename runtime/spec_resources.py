"""linux.resources, checked when a stranger hands them over (create, update).

The cgroup drivers take them in the specification's own shape. A wrong type would come out of them as an error
of Python, in the middle of making a cgroup; here it is a field's name, before anything is made.
"""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.spec_reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

LOW = -(2**63)
# Part → numbers, and parts of it that are lists of objects with numbers of their own.
NUMBERS = {
    "cpu": ("shares", "quota", "burst", "period", "realtimeRuntime", "realtimePeriod", "idle"),
    "memory": ("limit", "reservation", "swap", "kernel", "kernelTCP", "swappiness"),
    "pids": ("limit",),
    "blockIO": ("weight", "leafWeight"),
    "network": ("classID",),
}
# Those of them that cannot be -1 for "no limit" (uint in specs-go).
FROM_ZERO = frozenset(
    ("shares", "period", "realtimePeriod", "burst", "swappiness", "weight", "leafWeight", "classID", "rate",
     "priority", "hcaHandles", "hcaObjects")
)  # fmt: skip
FLAGS = {"memory": ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate")}
TEXTS = {"cpu": ("cpus", "mems")}
THROTTLES = (
    "throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice",
)  # fmt: skip


def check(resources: Mapping[str, Any], path: str = "linux.resources") -> None:
    """Raises SpecError."""
    reader = Reader(resources, path)
    for part in NUMBERS:
        section = reader.object(part)
        if section is not None:
            _section(section, part)
    for device in reader.objects("devices"):
        _numbers(device, ("major", "minor"))
        device.flag("allow")
        device.text("type")
        device.text("access")
    for page in reader.objects("hugepageLimits"):
        _required(page, "pageSize", "limit")
        page.text("pageSize")
        _numbers(page, ("limit",))
    rdma = reader.object("rdma")
    for name in rdma.value if rdma else ():
        entry = rdma.object(name) if rdma else None
        if entry is not None:
            _numbers(entry, ("hcaHandles", "hcaObjects"))
    unified = reader.string_mapping("unified")
    for name in unified:
        if "/" in name or name in ("", ".", ".."):
            raise SpecError(reader.at(f"unified[{name}]"), "must be the name of a cgroup file")


def _section(section: Reader, part: str) -> None:
    _numbers(section, NUMBERS[part])
    for flag in FLAGS.get(part, ()):
        section.flag(flag)
    for text in TEXTS.get(part, ()):
        section.text(text)
    if part == "blockIO":
        for entry in section.objects("weightDevice"):
            _required(entry, "major", "minor")
            _numbers(entry, ("major", "minor", "weight", "leafWeight"))
        for throttle in THROTTLES:
            for entry in section.objects(throttle):
                _required(entry, "major", "minor", "rate")
                _numbers(entry, ("major", "minor", "rate"))
    if part == "network":
        for entry in section.objects("priorities"):
            _required(entry, "name", "priority")
            _numbers(entry, ("priority",))


def _numbers(reader: Reader, keys: tuple[str, ...]) -> None:
    for key in keys:
        reader.number(key, low=0 if key in FROM_ZERO else LOW)


def _required(reader: Reader, *keys: str) -> None:
    for key in keys:
        if reader.value.get(key) is None:
            raise SpecError(reader.at(key), "is missing")
