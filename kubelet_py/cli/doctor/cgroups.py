"""Control groups: which layout, which controllers, whose. PURE."""

from __future__ import annotations

from dataclasses import dataclass

from kubelet_py.cli.doctor.finding import DEGRADED, MISSING, OK, Finding

WANTED = ("cpu", "memory", "pids")
WELCOME = ("cpuset", "io")


@dataclass(frozen=True, slots=True)
class CgroupFacts:
    """`layout` is "v2", "hybrid" or "v1"; `kill` whether groups have cgroup.kill; `manager` is "systemd" or
    "cgroupfs"; `writable` whether groups can be made in the tree."""

    layout: str
    controllers: frozenset[str]
    kill: bool
    writable: bool
    manager: str


def judge(facts: CgroupFacts) -> list[Finding]:
    return [layout(facts), kill(facts), delegation(facts)]


def layout(facts: CgroupFacts) -> Finding:
    purpose = "resource limits"
    have = " ".join(sorted(facts.controllers)) or "nothing"
    if facts.layout == "v1":
        mend = "mount cgroup2 at /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1"
        return Finding("cgroups", MISSING, f"v1 alone, with {have}", "cgroup.kill", mend)
    wanted = WANTED if facts.layout == "v2" else (*WANTED, "devices")
    lacking = [name for name in wanted if name not in facts.controllers]
    found = f"v2 with {have}" if facts.layout == "v2" else f"hybrid, v1 with {have}"
    if lacking:
        mend = f"enable {' '.join(lacking)} on the kernel command line (cgroup_enable=)"
        return Finding("cgroups", DEGRADED, found, purpose, mend)
    welcome = [name for name in WELCOME if name not in facts.controllers]
    if facts.layout == "v2" and welcome:
        return Finding(
            "cgroups", DEGRADED, f"{found}, without {' '.join(welcome)}", "limits of CPUs and disks",
            f"use a kernel with the controllers {' '.join(welcome)}",
        )  # fmt: skip
    return Finding("cgroups", OK, found, purpose)


def kill(facts: CgroupFacts) -> Finding:
    purpose = "ending a pod's processes at once"
    if facts.kill:
        return Finding("cgroup.kill", OK, "there", purpose)
    mend = "use Linux 5.14 or newer with a cgroup2 tree"
    return Finding("cgroup.kill", MISSING, "not there", purpose, mend)


def delegation(facts: CgroupFacts) -> Finding:
    """On systemd hosts with v2 the node asks systemd for slices and scopes that are delegated to it."""
    purpose = "the pods' own groups"
    if not facts.writable:
        mend = "mount the cgroup tree writable (in a container: with a cgroup namespace of its own)"
        return Finding("delegation", MISSING, "the cgroup tree is read-only here", purpose, mend)
    if facts.manager == "systemd":
        return Finding("delegation", OK, "slices and delegated scopes from systemd", purpose)
    return Finding("delegation", OK, "folders of its own in the tree (no systemd, or v1)", purpose)
