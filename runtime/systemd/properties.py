"""linux.resources as properties of units. Pure.

Source: systemd.resource-control(5) and runc's genV2ResourcesProperties. A container's limits are set twice,
as properties of its scope, for systemd and its tools, and exactly in the files of the cgroup inside it, as
crun does. What has no property (io.max, hugetlb, rdma, memory.oom.group, devices) is in the files alone.
"""

from __future__ import annotations

from runtime.cgroups import v2
from runtime.errors import CgroupError
from runtime.systemd.messages import Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    Property = tuple[str, Variant]

INFINITY = 2**64 - 1
PERCENT_USEC = 10_000  # systemd keeps whole percents of a processor
_NUMBERS = {
    "memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh",
    "memory.max": "MemoryMax", "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax",
    "cpu.weight": "CPUWeight",
}  # fmt: skip
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
LATE = ("CPU", "TasksMax")
IDLE = {"1": 0, "0": INFINITY}  # cpu.idle → CPUWeight; the kernel takes no others


def of_writes(writes: Iterable[tuple[str, str]]) -> list[Property]:
    """Properties for what is written into a v2 cgroup's files; the last one of a name counts."""
    found: dict[str, Variant] = {}
    for file, value in writes:
        found.update(_property(file, value))
    return list(found.items())


def _property(file: str, value: str) -> dict[str, Variant]:
    try:
        if file in _NUMBERS:
            return {_NUMBERS[file]: Variant("t", INFINITY if value == "max" else int(value))}
        if file in _SETS:
            return {_SETS[file]: Variant("ay", bits(value))}
        if file == "cpu.max":
            return _quota(*value.split())
        if file == "cpu.idle" and value.strip() in IDLE:  # 252: the weight called idle
            return {"CPUWeight": Variant("t", IDLE[value.strip()])}
        if file == "io.weight" and value.startswith("default"):
            return {"IOWeight": Variant("t", int(value.split()[1]))}
    except (ValueError, TypeError, IndexError):
        raise CgroupError(f"Could not use {value!r} for {file}: systemd needs a number or max") from None
    return {}


def _quota(quota: str, period: str = "100000") -> dict[str, Variant]:
    length = Variant("t", int(period))
    if quota == "max":
        return {"CPUQuotaPerSecUSec": Variant("t", INFINITY), "CPUQuotaPeriodUSec": length}
    exact = int(quota) * 1_000_000 // int(period)
    rounded = -(-exact // PERCENT_USEC) * PERCENT_USEC
    return {"CPUQuotaPerSecUSec": Variant("t", rounded), "CPUQuotaPeriodUSec": length}


def bits(listed: str) -> bytes:
    """As systemd wants sets of processors: bit n for number n, the lowest byte first. Raises ValueError."""
    mask = 0
    for part in filter(None, listed.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high <= 8191:
            raise ValueError(part)
        mask |= (1 << high + 1) - (1 << low)
    return mask.to_bytes((mask.bit_length() + 7) // 8, "little")


def of_resources(resources: Mapping[str, Any] | None) -> list[Property]:
    """All properties for linux.resources. Raises CgroupError."""
    return of_writes([*v2.other_writes(resources), *v2.cpu_writes(resources)])


def late(properties: Iterable[Property]) -> tuple[list[Property], list[Property]]:
    """Those to start with, and those to set once the first process is in: a processor limit would slow its
    set-up, and a limit on tasks would count what holds the scope until then."""
    listed = list(properties)
    later = [entry for entry in listed if entry[0].startswith(LATE)]
    return [entry for entry in listed if entry not in later], later


def of_scope(description: str, slice_unit: str, pid: int, properties: Iterable[Property]) -> list[Property]:
    """All that a new scope is started with."""
    return [
        ("Description", Variant("s", description)),
        ("Slice", Variant("s", slice_unit)),
        ("PIDs", Variant("au", [pid])),
        ("Delegate", Variant("b", True)),
        ("DefaultDependencies", Variant("b", False)),
        ("CollectMode", Variant("s", "inactive-or-failed")),
        *_ACCOUNTING,
        ("TasksMax", Variant("t", INFINITY)),  # not systemd's own default, which is a limit
        *properties,
    ]


def of_slice(description: str, properties: Iterable[Property]) -> list[Property]:
    """All that a new slice is started with."""
    return [
        ("Description", Variant("s", description)),
        ("DefaultDependencies", Variant("b", False)),
        *_ACCOUNTING,
        *properties,
    ]


_ACCOUNTING = [(f"{name}Accounting", Variant("b", True)) for name in ("CPU", "Memory", "IO", "Tasks")]
