"""Processors as the kernel numbers them, and which of them go together. The choosing is pure.

Threads of one core share its caches and units, cores of one socket its memory: whoever gets processors of
its own gets whole sockets, then whole cores, then single threads, of those places that are broken into
already. Source: upstream's pkg/kubelet/cm/cpumanager/cpu_assignment.go (takeByTopology, packed); the kernel's
Documentation/admin-guide/cputopology.rst.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

CPUS = frozenset[int]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a processor (a thread) is; numbers of cores count within their socket."""

    socket: int
    core: int


Topology = Mapping[int, Place]


def read(cpus: Iterable[int], folder: Path = Path("/sys/devices/system/cpu")) -> Topology:
    """Each processor's place; one that the kernel does not tell of is a core of its own."""
    return {cpu: _place(folder / f"cpu{cpu}" / "topology", cpu) for cpu in cpus}


def here() -> Topology:
    """The processors that this process may use."""
    return read(os.sched_getaffinity(0))


def _place(folder: Path, cpu: int) -> Place:
    try:
        socket = int((folder / "physical_package_id").read_text())
        return Place(socket, int((folder / "core_id").read_text()))
    except (OSError, ValueError):
        return Place(0, cpu)


def take(count: int, available: Collection[int], topology: Topology) -> CPUS:
    """`count` of the available processors. Raises ValueError where there are not so many."""
    left = set(available)
    if count > len(left):
        text = f"not enough cpus available to satisfy request: requested={count}, available={len(left)}"
        raise ValueError(text)
    taken: set[int] = set()
    for together in (_sockets(topology), _cores(topology)):
        for group in together:
            if group <= left and len(group) <= count - len(taken):
                taken |= group
                left -= group
    threads = sorted(left, key=lambda cpu: (*_free_around(cpu, left, topology), cpu))
    return frozenset(taken | set(threads[: count - len(taken)]))


def with_siblings(cpus: Collection[int], topology: Topology) -> CPUS:
    """These and all other threads of their cores."""
    places = {topology[cpu] for cpu in cpus}
    return frozenset(cpu for cpu, place in topology.items() if place in places)


def threads_per_core(topology: Topology) -> int:
    """As upstream counts them: all processors by all cores."""
    return len(topology) // max(1, len(set(topology.values())))


def _sockets(topology: Topology) -> list[CPUS]:
    sockets = sorted({place.socket for place in topology.values()})
    return [frozenset(c for c, place in topology.items() if place.socket == number) for number in sockets]


def _cores(topology: Topology) -> list[CPUS]:
    cores = sorted(set(topology.values()), key=lambda place: (place.socket, place.core))
    return [frozenset(cpu for cpu, place in topology.items() if place == core) for core in cores]


def _free_around(cpu: int, left: Collection[int], topology: Topology) -> tuple[int, int]:
    """How many are free in the processor's socket and core: the fullest place is filled up first."""
    own = topology[cpu]
    return (
        sum(topology[other].socket == own.socket for other in left),
        sum(topology[other] == own for other in left),
    )


def parse(text: str) -> CPUS:
    """ "0,2-4" → {0, 2, 3, 4}. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        found |= set(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def write(cpus: Iterable[int]) -> str:
    """{0, 2, 3, 4} → "0,2-4": as the kernel and upstream write it."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
