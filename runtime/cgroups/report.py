"""What a cgroup has used, in the shape of runc's `events --stats` (its types.Stats); ns and bytes.

Apart from the drivers, because only the OCI command line shows it. What a host does not count is left out.
"""

from __future__ import annotations

import os

from runtime.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

TICK_NS = 1_000_000_000 // 100  # USER_HZ, which is 100 on every processor that we know
NO_LIMIT = 2**62


def unified(folder: str) -> dict[str, Any]:
    """Of a cgroup of a v2 tree."""
    cpu, memory = files.table(f"{folder}/cpu.stat"), files.table(f"{folder}/memory.stat")
    usage = {name: cpu.get(f"{key}_usec", 0) * 1000 for name, key in V2_CPU.items()}
    return {
        "cpu": {"usage": usage, "throttling": _throttling(cpu, cpu.get("throttled_usec", 0) * 1000)},
        "memory": {
            **_sizes("usage", folder, V2_MEMORY),
            **_sizes("swap", folder, V2_SWAP),
            "cache": memory.get("file", 0),
            "raw": memory,
        },
        "pids": _sizes("pids", folder, PIDS).get("pids", {}),
    }


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
    }


V1_MEMORY = {
    "limit": "limit_in_bytes", "usage": "usage_in_bytes", "max": "max_usage_in_bytes", "failcnt": "failcnt"
}  # fmt: skip
V2_MEMORY = {"limit": "memory.max", "usage": "memory.current", "max": "memory.peak"}
V2_SWAP = {"limit": "memory.swap.max", "usage": "memory.swap.current", "max": "memory.swap.peak"}
V2_CPU = {"total": "usage", "kernel": "system", "user": "user"}
PIDS = {"current": "pids.current", "limit": "pids.max"}


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
