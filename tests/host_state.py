"""What of this host a test could leave behind: read before and after, and compared.

Everything is read in the namespaces that the test runs in (hack/isolate), cgroups and processes included.
Of these only what carries our names counts, since who runs pytest without hack/isolate sees the machine's.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from dataclasses import dataclass, fields
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
SYSCTLS = ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/bridge/bridge-nf-call-iptables")
OUR_CGROUPS = ("kubelet-py", "kubelet_py", "kubepods", "kpy")


@dataclass(frozen=True, slots=True)
class HostState:
    """Sets of one-line facts; two states are compared field by field."""

    links: frozenset[str]
    namespaces: frozenset[str]
    routes: frozenset[str]
    rules: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    sysctls: frozenset[str]
    processes: frozenset[str]

    def difference(self, later: HostState) -> list[str]:
        """Lines such as "links: +kpy0", empty where nothing changed."""
        lines = []
        for field in fields(self):
            before, after = getattr(self, field.name), getattr(later, field.name)
            lines += [f"{field.name}: +{fact}" for fact in sorted(after - before)]
            lines += [f"{field.name}: -{fact}" for fact in sorted(before - after)]
        return lines


def read() -> HostState:
    """The present state of the host, as this process sees it."""
    return HostState(
        links=frozenset(name for _, name in _interfaces()),
        namespaces=frozenset(_names("/run/netns")),
        routes=frozenset(_lines("ip", "route", "show", "table", "all") + _lines("ip", "rule")),
        rules=frozenset(_rules()),
        mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        cgroups=frozenset(_cgroups()),
        sysctls=frozenset(_sysctls()),
        processes=frozenset(_processes()),
    )


def settled_difference(before: HostState, seconds: float = 30.0) -> list[str]:
    """What differs from `before` once the kernel's delayed undoing (links, cgroups) had its time."""
    deadline = time.monotonic() + seconds
    while True:
        difference = before.difference(read())
        if not difference or time.monotonic() > deadline:
            return difference
        time.sleep(0.05)


def _interfaces() -> list[tuple[int, str]]:
    return socket.if_nameindex()


def _names(folder: str) -> list[str]:
    """Named namespaces, but for the test frame's own "outside" ones, which live as long as a module."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [name for name in names if not name.startswith(("kpytest", "kpybench"))]


def _lines(*argv: str) -> list[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [line.strip() for line in done.stdout.splitlines()]


def _rules() -> list[str]:
    """Chains and rules of netfilter without counters; empty tables and built-in chains say nothing."""
    try:
        lines = _lines("nft", "list", "ruleset")
    except FileNotFoundError:
        lines = _lines("iptables-save")
    words = (
        "table ",
        "}",
        "chain INPUT",
        "chain OUTPUT",
        "chain FORWARD",
        "chain PREROUTING",
        "chain POSTROUTING",
    )
    bare = [re.sub(r"counter packets \d+ bytes \d+", "counter", line) for line in lines]
    return [line for line in bare if line and not line.startswith(words) and not line.startswith("type ")]


def _cgroups() -> list[str]:
    """Our folders in the first three levels of every hierarchy; a foreign one may vanish meanwhile."""
    found = []
    level = [str(CGROUP_ROOT)]
    for _ in range(3):
        level = [folder for parent in level for folder in _folders(parent)]
        found += [folder for folder in level if os.path.basename(folder).startswith(OUR_CGROUPS)]
    return found


def _folders(parent: str) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _sysctls() -> list[str]:
    found = []
    for name in SYSCTLS:
        path = Path("/proc/sys") / name
        if path.exists():
            found.append(f"{name}={path.read_text().strip()}")
    return found


def _processes() -> list[str]:
    """Processes in our mount namespace, or in a cgroup of ours; not this one and its ancestors."""
    mine = os.readlink("/proc/self/ns/mnt")
    family = _ancestors(os.getpid())
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in family:
            continue
        try:
            inside = os.readlink(f"/proc/{entry}/ns/mnt") == mine
            cgroup = Path(f"/proc/{entry}/cgroup").read_text()
            command = (
                Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if (inside or any(f"/{name}" in cgroup for name in OUR_CGROUPS)) and command:
            found.append(f"{entry} {command.strip()}")
    return found


def _ancestors(pid: int) -> set[int]:
    family = set()
    while pid:
        family.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return family
