"""What a cgroup has used, in the shape of runc's `events --stats` (its types.Stats); ns and bytes.

Apart from the drivers, because only the OCI command line shows it. What a host does not count is left out:
pressure (PSI, Linux 4.20, of v2 cgroups alone) has no file, or one that cannot be read (EOPNOTSUPP), when the
kernel was started without it (psi=0) or the cgroup's cgroup.pressure is 0.
"""

from __future__ import annotations

import errno
import glob
import os

from runtime.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

TICK_NS = 1_000_000_000 // 100  # USER_HZ, which is 100 on every processor that we know
NO_LIMIT = 2**62


def unified(folder: str) -> dict[str, Any]:
    """Of a cgroup of a v2 tree."""
    cpu, memory = files.table(f"{folder}/cpu.stat"), files.table(f"{folder}/memory.stat")
    usage = {name: cpu.get(f"{key}_usec", 0) * 1000 for name, key in V2_CPU.items()}
    return {
        "cpu": {
            "usage": usage,
            "throttling": _throttling(cpu, cpu.get("throttled_usec", 0) * 1000),
            **pressure(f"{folder}/cpu.pressure"),
        },
        "memory": {
            **_sizes("usage", folder, V2_MEMORY),
            **_swap(folder),
            "cache": memory.get("file", 0),
            "raw": memory,
            **pressure(f"{folder}/memory.pressure"),
        },
        "pids": _sizes("pids", folder, PIDS).get("pids", {}),
        "blkio": {**_v2_disks(files.read(f"{folder}/io.stat")), **pressure(f"{folder}/io.pressure")},
        **_huge_pages(folder),
    }


def _swap(folder: str) -> dict[str, dict[str, int]]:
    """Memory and swap together, as v1 counts them and runc tells them everywhere; how much of both there was
    at most is not known."""
    swap = _sizes("swap", folder, V2_SWAP).get("swap", {})
    memory = _sizes("usage", folder, V2_MEMORY).get("usage", {})
    both = {key: value + memory[key] for key, value in swap.items() if key in memory}
    return {"swap": both} if both else {}


def _huge_pages(folder: str) -> dict[str, dict[str, dict[str, int]]]:
    """{"hugetlb": {"2MB": bytes in use, and how often the limit was met}}; {} where they are not counted."""
    found = {}
    for path in sorted(glob.glob(f"{glob.escape(folder)}/hugetlb.*.events")):
        size = os.path.basename(path).split(".")[1]
        used = files.number(f"{folder}/hugetlb.{size}.current")
        found[size] = {"usage": used, "failcnt": files.table(path).get("max", 0)}
    return {"hugetlb": found} if found else {}


def hybrid(folders: Mapping[str, str]) -> dict[str, Any]:
    """Of a cgroup in v1 hierarchies: its folder by controller."""
    cpuacct, memory, pids = (folders.get(name, "") for name in ("cpuacct", "memory", "pids"))
    cpu = files.table(f"{folders.get('cpu', '')}/cpu.stat")
    ticks, raw = files.table(f"{cpuacct}/cpuacct.stat"), files.table(f"{memory}/memory.stat")
    return {
        "cpu": {
            "usage": {
                "total": files.number(f"{cpuacct}/cpuacct.usage"),
                "percpu": [int(part) for part in files.read(f"{cpuacct}/cpuacct.usage_percpu").split()],
                "kernel": ticks.get("system", 0) * TICK_NS,
                "user": ticks.get("user", 0) * TICK_NS,
            },
            "throttling": _throttling(cpu, cpu.get("throttled_time", 0)),
        },
        "memory": {
            **_sizes("usage", memory, {key: f"memory.{name}" for key, name in V1_MEMORY.items()}),
            **_sizes("swap", memory, {key: f"memory.memsw.{name}" for key, name in V1_MEMORY.items()}),
            **_sizes("kernel", memory, {key: f"memory.kmem.{name}" for key, name in V1_MEMORY.items()}),
            "cache": raw.get("cache", 0),
            "raw": raw,
        },
        "pids": _sizes("pids", pids, PIDS).get("pids", {}),
        "blkio": _v1_disks(folders.get("blkio", "")),
    }


V1_MEMORY = {
    "limit": "limit_in_bytes", "usage": "usage_in_bytes", "max": "max_usage_in_bytes", "failcnt": "failcnt"
}  # fmt: skip
V2_MEMORY = {"limit": "memory.max", "usage": "memory.current", "max": "memory.peak"}
V2_SWAP = {"limit": "memory.swap.max", "usage": "memory.swap.current"}
V2_CPU = {"total": "usage", "kernel": "system", "user": "user"}
PIDS = {"current": "pids.current", "limit": "pids.max"}
V1_DISKS = {"ioServiceBytesRecursive": "io_service_bytes", "ioServicedRecursive": "io_serviced"}
V2_DISKS = {
    "ioServiceBytesRecursive": {"rbytes": "Read", "wbytes": "Write"},
    "ioServicedRecursive": {"rios": "Read", "wios": "Write"},
}


def pressure(path: str, read: Callable[[str], str] = files.read) -> dict[str, Any]:
    """{"psi": shares of time (percent) and a total (µs) in which some or all processes waited}; {} where the
    kernel does not count it. "full" is in every answer, as runc's: cpu.pressure has it from Linux 5.13 on."""
    try:
        lines = [line.split() for line in read(path).splitlines()]
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        lines = []
    found = {kind: _stalls(pairs) for kind, *pairs in lines}
    return {"psi": {kind: found.get(kind) or _stalls(()) for kind in ("some", "full")}} if found else {}


def _stalls(pairs: Sequence[str]) -> dict[str, float]:
    """From avg10=0.12, avg60=…, avg300=…, total=345; 0 for one that is not there."""
    values = dict(pair.split("=", 1) for pair in pairs)
    averages = {name: float(values.get(name, 0)) for name in ("avg10", "avg60", "avg300")}
    return {**averages, "total": int(values.get("total", 0))}


def _v1_disks(folder: str) -> dict[str, list[dict[str, Any]]]:
    """Nothing where the cgroup has no place in that hierarchy, or it counts nothing yet."""
    found: dict[str, list[dict[str, Any]]] = {}
    for key, name in V1_DISKS.items() if folder else ():
        lines = [
            line.split() for line in files.read(f"{folder}/blkio.throttle.{name}_recursive").splitlines()
        ]
        rows = [_disk(line[0], line[1], line[2]) for line in lines if len(line) == 3]
        if rows:
            found[key] = rows
    return found


def _v2_disks(text: str) -> dict[str, list[dict[str, Any]]]:
    """io.stat: a line per device, "8:0 rbytes=1 wbytes=2 rios=3 …"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for key, names in V2_DISKS.items():
            rows = [_disk(device, op, values[name]) for name, op in names.items() if name in values]
            if rows:
                found.setdefault(key, []).extend(rows)
    return found


def _disk(device: str, op: str, value: str) -> dict[str, Any]:
    major, _, minor = device.partition(":")
    return {"major": int(major), "minor": int(minor), "op": op, "value": int(value)}


def _throttling(cpu: Mapping[str, int], throttled_ns: int) -> dict[str, int]:
    return {
        "periods": cpu.get("nr_periods", 0),
        "throttledPeriods": cpu.get("nr_throttled", 0),
        "throttledTime": throttled_ns,
    }


def _sizes(name: str, folder: str, wanted: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """{name: numbers of files that are there}; limits that are none are left out."""
    there = {key: f"{folder}/{file}" for key, file in wanted.items() if os.path.exists(f"{folder}/{file}")}
    found = {key: files.number(path) for key, path in there.items()}
    if found.get("limit", 0) >= NO_LIMIT:
        del found["limit"]
    return {name: found} if found else {}
