"""`kubelet-py doctor`: what a node needs of this host, what it found, and the command that mends it.

Each check says what it is for. "missing" ends with exit code 1; "degraded" means that pods run, but
something that Kubernetes promises cannot be enforced here, and says what.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kubelet_py.node import modules
from kubelet_py.paths import NodePaths


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: `state` is ok, degraded or missing; `mend` what to do about it."""

    name: str
    state: str
    found: str
    purpose: str
    mend: str = ""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check what a node needs of this host",
        description="Check kernel, cgroups, netfilter, forwarding, disk and rights. The exit code is 1 when "
        "something is missing that pods cannot run without.",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    findings = examine(NodePaths(args.root.resolve()))
    if args.output == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:<9} {finding.name:<15} {finding.found}")
            if finding.state != "ok":
                print(f"{'':<9} {'':<15} needed for {finding.purpose}; {finding.mend}")
    return 1 if any(finding.state == "missing" for finding in findings) else 0


def examine(paths: NodePaths) -> list[Finding]:
    """All checks in the order in which a start would need them."""
    checks: list[Callable[[], Finding]] = [
        _root, _python, _kernel, _overlay, _cgroups, _iptables, _legacy_rules, _conntrack, _bridge_netfilter,
        lambda: _disk(paths),
    ]  # fmt: skip
    return [check() for check in checks]


def _root() -> Finding:
    purpose = "namespaces, mounts and netfilter"
    if os.geteuid() == 0:
        return Finding("rights", "ok", "root", purpose)
    return Finding("rights", "missing", f"uid {os.geteuid()}", purpose, "use sudo")


def _python() -> Finding:
    found = platform.python_version()
    state = "ok" if sys.version_info >= (3, 11) else "missing"
    return Finding("python", state, found, "the node itself", "Debian 12 and Ubuntu 24.04 have 3.11 or newer")


def _kernel() -> Finding:
    """cgroup.kill came with 5.14; without it a cgroup is ended process by process."""
    release = platform.release()
    major, minor = (int(part) for part in release.split(".")[:2])
    state = "ok" if (major, minor) >= (5, 14) else "missing"
    return Finding("kernel", state, release, "cgroup.kill and pidfd", "use Linux 5.14 or newer")


def _overlay() -> Finding:
    if modules.has_filesystem("overlay"):
        return Finding("overlayfs", "ok", "built in or loaded", "container images")
    if modules.loadable("overlay"):
        return Finding("overlayfs", "ok", "a module that `up` loads", "container images")
    found = "neither in /proc/filesystems nor a module"
    return Finding("overlayfs", "missing", found, "container images", "modprobe overlay")


def _cgroups() -> Finding:
    """On hybrid hosts the v1 trees are read with cgroupspy, which knows just those."""
    purpose = "resource limits"
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        have = set((root / "cgroup.controllers").read_text().split())
        lacking = {"cpu", "memory", "pids"} - have
        found = f"v2 with {' '.join(sorted(have))}"
    else:
        from cgroupspy import trees

        have = {node.name.decode() for node in trees.Tree().root.children}
        lacking = {"cpu", "memory", "pids", "devices"} - have
        found = f"hybrid, v1 with {' '.join(sorted(have - {'unified'}))}"
        if "unified" not in have:
            return Finding(
                "cgroups", "missing", found, "cgroup.kill", "mount cgroup2 at /sys/fs/cgroup/unified"
            )
    if lacking:
        mend = f"enable {' '.join(sorted(lacking))} on the kernel command line"
        return Finding("cgroups", "degraded", found, purpose, mend)
    return Finding("cgroups", "ok", found, purpose)


def _iptables() -> Finding:
    purpose = "Services and host ports"
    if shutil.which("iptables-restore") is None:
        return Finding("iptables", "missing", "not on PATH", purpose, "apt-get install iptables")
    done = subprocess.run(["iptables", "--version"], capture_output=True, text=True)
    return Finding("iptables", "ok", done.stdout.strip(), purpose)


def _legacy_rules() -> Finding:
    """The nft variant of iptables hides the rules of the legacy tables; python-iptables sees just those."""
    purpose = "one set of rules, not two that contradict each other"
    if os.geteuid() != 0:
        return Finding("legacy rules", "degraded", "not readable", purpose, "use sudo")
    if (
        not Path("/proc/net/ip_tables_names").exists()
        or not Path("/proc/net/ip_tables_names").read_text().strip()
    ):
        return Finding("legacy rules", "ok", "no legacy tables in use", purpose)
    tables = Path("/proc/net/ip_tables_names").read_text().split()
    try:
        import iptc
    except ImportError:
        found, mend = f"not known; legacy tables: {', '.join(tables)}", "look with iptables-legacy-save"
        return Finding("legacy rules", "degraded", found, purpose, mend)
    hidden = []
    for name in tables:
        table = iptc.Table(name)
        table.refresh()
        hidden += [f"{name}/{chain.name}" for chain in table.chains if chain.rules]
    variant = subprocess.run(["iptables", "--version"], capture_output=True, text=True).stdout
    if hidden and "nf_tables" in variant:
        found = f"rules in {', '.join(hidden)}"
        return Finding(
            "legacy rules", "degraded", found, purpose, "look with iptables-legacy-save, move them to nft"
        )
    return Finding("legacy rules", "ok", "none hidden", purpose)


def _conntrack() -> Finding:
    found = shutil.which("conntrack")
    state = "ok" if found else "degraded"
    purpose = "cutting UDP flows to endpoints that are gone"
    return Finding("conntrack", state, found or "not on PATH", purpose, "apt-get install conntrack")


def _bridge_netfilter() -> Finding:
    """Without br_netfilter an answer between two pods of one bridge never meets the rules that undo DNAT."""
    file = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    purpose = "Services between pods of one node"
    if not file.exists():
        if modules.loadable("br_netfilter"):
            return Finding("br_netfilter", "ok", "a module that `up` loads", purpose)
        return Finding("br_netfilter", "degraded", "not loaded", purpose, "modprobe br_netfilter")
    value = file.read_text().strip()
    mend = "sysctl -w net.bridge.bridge-nf-call-iptables=1"
    return Finding(
        "br_netfilter",
        "ok" if value == "1" else "degraded",
        f"bridge-nf-call-iptables={value}",
        purpose,
        mend,
    )


def _disk(paths: NodePaths) -> Finding:
    place = paths.state
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    state = "ok" if free > 1 << 30 else "degraded" if free > 128 << 20 else "missing"
    return Finding(
        "disk", state, f"{free >> 20} MiB free at {place}", "images and volumes", "make room, or use --root"
    )
