"""The files of /proc that tell what a machine uses, read into numbers. Formats: proc(5)."""

from __future__ import annotations

import os
from pathlib import Path

from kubelet_py.node.usage import Interface, Load

LEFT_OUT = ("lo", "veth")  # not the node's traffic with the world (upstream leaves out the same)


def fields(file: Path, scale: int = 1024) -> dict[str, int]:
    """Lines of a name and a number, with or without a colon: meminfo (kB, hence `scale`), vmstat."""
    found = {}
    for line in file.read_text().splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdigit():
            found[name] = int(rest[0]) * scale
    return found


def cpu_ns(file: Path) -> int:
    """CPU time that was used since boot, by /proc/stat: all but idle and iowait.

    Time of guests is in user's and nice's already.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, file.read_text().split("\n", 1)[0].split()[1:9]
    )
    ticks = user + nice + system + irq + softirq + steal
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def boot_time(proc: Path) -> float:
    for line in (proc / "stat").read_text().splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0


def interfaces(file: Path) -> tuple[Interface, ...]:
    """/proc/net/dev without loopback and veth pairs."""
    found = []
    for line in file.read_text().splitlines()[2:]:
        name, _, rest = line.partition(":")
        name = name.strip()
        if name.startswith(LEFT_OUT):
            continue
        values = [int(value) for value in rest.split()]
        received, sent = values[:4], values[8:12]
        found.append(Interface(name, *received, *sent))
    return tuple(found)


def default_interface(file: Path) -> str:
    """The interface of the default route, by /proc/net/route; "" when there is none."""
    for line in file.read_text().splitlines()[1:]:
        name, destination, *_ = line.split()
        if destination == "00000000":
            return name
    return ""


def own_load(at: float, booted_at: float, stat: Path = Path("/proc/self/stat")) -> tuple[float, Load]:
    """This process: since when, and what it uses."""
    values = stat.read_text().rpartition(")")[2].split()
    second = os.sysconf("SC_CLK_TCK")
    resident = int(values[21]) * os.sysconf("SC_PAGE_SIZE")
    load = Load(
        at=at,
        cpu_ns=(int(values[11]) + int(values[12])) * (1_000_000_000 // second),
        memory=resident,
        working_set=resident,
        rss=resident,
        faults=int(values[7]) + int(values[9]),
        major_faults=int(values[9]),
        processes=1,
    )
    return booted_at + int(values[19]) / second, load
