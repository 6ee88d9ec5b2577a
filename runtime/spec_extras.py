"""The parts of config.json that few configurations have: scheduling, personality, memory policy.

Read late, so that the many that do without them pay nothing. Names become the kernel's numbers here
(uapi linux/sched.h, linux/ioprio.h, linux/personality.h, linux/mempolicy.h), so that an unknown one is
refused with the field's path and nothing half-made.
"""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from runtime.spec_reader import Reader

POLICIES = {
    "SCHED_OTHER": 0, "SCHED_FIFO": 1, "SCHED_RR": 2, "SCHED_BATCH": 3, "SCHED_ISO": 4, "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}  # fmt: skip
SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01, "SCHED_FLAG_RECLAIM": 0x02, "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08, "SCHED_FLAG_KEEP_PARAMS": 0x10, "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}  # fmt: skip
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
MEMORY_MODES = {
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
}  # fmt: skip
MEMORY_FLAGS = {
    "MPOL_F_NUMA_BALANCING": 1 << 13, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_STATIC_NODES": 1 << 15,
}  # fmt: skip
WITHOUT_NODES = ("MPOL_DEFAULT", "MPOL_LOCAL")
LARGEST_INDEX = 4095


class Scheduler(Record):
    """sched_setattr(2)'s values; times in nanoseconds."""

    name: str
    policy: int
    flags: int = 0
    nice: int = 0
    priority: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0


class Scheduling(Record):
    """How the kernel lets a process run. `io_priority` is ioprio_set(2)'s value. The affinities are sets of
    processors before and after the cgroup is entered, for execs alone; () is none given."""

    scheduler: Scheduler | None = None
    io_priority: int | None = None
    initial_cpus: tuple[int, ...] = ()
    final_cpus: tuple[int, ...] = ()


class MemoryPolicy(Record):
    """set_mempolicy(2): mode with its flags, and memory nodes."""

    name: str
    mode: int
    nodes: tuple[int, ...]


def scheduling(reader: Reader) -> Scheduling:
    """process.scheduler, ioPriority and execCPUAffinity. Raises SpecError."""
    scheduler, priority = reader.object("scheduler"), reader.object("ioPriority")
    affinity = reader.object("execCPUAffinity")
    return Scheduling(
        _scheduler(scheduler) if scheduler else None,
        _io_priority(priority) if priority else None,
        _indexes(affinity, "initial") if affinity else (),
        _indexes(affinity, "final") if affinity else (),
    )


def linux_extras(reader: Reader) -> dict[str, Any]:
    """linux.personality and memoryPolicy as fields of LinuxSpec. Raises SpecError, also for what this runtime
    does not have."""
    for name in ("intelRdt", "netDevices"):
        if reader.value.get(name):
            raise SpecError(reader.at(name), "is not supported by this runtime (see its features command)")
    personality, policy = reader.object("personality"), reader.object("memoryPolicy")
    return {
        "personality": _personality(personality) if personality else None,
        "memory_policy": _memory_policy(policy) if policy else None,
    }


def _chosen(reader: Reader, key: str, known: Mapping[str, int]) -> int:
    return known[reader.one_of(key, reader.text(key), tuple(known))]


def _flags(reader: Reader, known: Mapping[str, int]) -> int:
    total = 0
    for flag in reader.texts("flags"):
        total |= known[reader.one_of("flags", flag, tuple(known))]
    return total


def _scheduler(reader: Reader) -> Scheduler:
    high = 2**63 - 1
    return Scheduler(
        reader.text("policy"),
        _chosen(reader, "policy", POLICIES),
        _flags(reader, SCHEDULER_FLAGS),
        reader.number("nice", low=-20, high=19),
        reader.number("priority", high=99),
        reader.number("runtime", high=high),
        reader.number("deadline", high=high),
        reader.number("period", high=high),
    )


def _io_priority(reader: Reader) -> int:
    return _chosen(reader, "class", IO_CLASSES) << 13 | reader.number("priority", high=7)


def _personality(reader: Reader) -> int:
    if reader.texts("flags"):
        raise SpecError(reader.at("flags"), "must be empty: the specification names no flag yet")
    return _chosen(reader, "domain", PERSONALITIES)


def _memory_policy(reader: Reader) -> MemoryPolicy:
    mode, nodes = _chosen(reader, "mode", MEMORY_MODES), _indexes(reader, "nodes")
    name = reader.text("mode")
    if bool(nodes) == (name in WITHOUT_NODES):
        raise SpecError(reader.at("nodes"), f"{name} takes none" if nodes else f"{name} needs some")
    return MemoryPolicy(name, mode | _flags(reader, MEMORY_FLAGS), nodes)


def _indexes(reader: Reader, key: str) -> tuple[int, ...]:
    """`0-3,7` → (0, 1, 2, 3, 7), the format of cpuset files."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in reader.text(key).split(","))):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdigit() and last.isdigit()):
            raise SpecError(reader.at(key), f"{part!r} is no number and no range")
        low, high = int(first), int(last)
        if low > high or high > LARGEST_INDEX:
            raise SpecError(reader.at(key), f"{part!r} is no range of numbers up to {LARGEST_INDEX}")
        found.update(range(low, high + 1))
    return tuple(sorted(found))
