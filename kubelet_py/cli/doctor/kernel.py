"""Rights and kernel features. PURE.

Facts relied on: cgroup.kill came with Linux 5.14; /proc/pressure answers EOPNOTSUPP where PSI was switched
off at boot (psi=0); a limit of 0 in /proc/sys/user forbids a kind of namespace though the kernel has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubelet_py.cli.doctor.finding import DEGRADED, MISSING, OK, Finding

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
NEEDED = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID",
    "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
)  # fmt: skip
LEAST_PYTHON, LEAST_KERNEL = (3, 11), (5, 14)
LINKS = {
    "veth": (MISSING, "the wire between a pod and the node"),
    "bridge": (MISSING, "the pods' bridge"),
    "vxlan": (DEGRADED, "pods of nodes behind a router"),
}


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """`overlay` is "known", "module" or ""; `links` maps a kind of interface to why it cannot be made ("": it
    can), and `wireguard` is the same for that one; `encrypts` says that the node was told to use it;
    `pressure` is the set of PSI files that can be read; `apparmor` is "off", "loads" (profiles), or what is
    missing for that."""

    uid: int
    capabilities: frozenset[str]
    python: tuple[int, ...]
    release: str
    namespaces: frozenset[str]
    overlay: str
    seccomp: bool
    apparmor: str
    links: Mapping[str, str]
    wireguard: str
    pressure: frozenset[str]
    encrypts: bool = False


def judge(facts: KernelFacts) -> list[Finding]:
    return [
        rights(facts.uid),
        capabilities(facts.capabilities),
        python(facts.python),
        version(facts.release),
        namespaces(facts.namespaces),
        overlay(facts.overlay),
        seccomp(facts.seccomp),
        apparmor(facts.apparmor),
        *(link(kind, facts.links.get(kind, "not looked at")) for kind in LINKS),
        encryption(facts.wireguard, facts.encrypts),
        pressure(facts.pressure),
    ]


def encryption(wireguard: str, wanted: bool) -> Finding:
    """Whoever needs it should know; a node that was not told to use it lacks nothing."""
    purpose = "packets between nodes, hidden from the network they cross (--pod-routes wireguard)"
    if not wireguard:
        return Finding("wireguard", OK, "can be made", purpose)
    if wanted:
        mend = "modprobe wireguard, or up --pod-routes auto: the node does not start without"
        return Finding("wireguard", MISSING, wireguard, purpose, mend)
    found = f"none in this kernel ({wireguard}): packets between nodes travel in the clear"
    return Finding("wireguard", OK, found, purpose)


def rights(uid: int) -> Finding:
    purpose = "namespaces, mounts and netfilter"
    if uid == 0:
        return Finding("rights", OK, "root", purpose)
    return Finding("rights", MISSING, f"uid {uid}", purpose, "use sudo")


def capabilities(held: frozenset[str]) -> Finding:
    """A root without some of them is what a container or a hardened service has."""
    lacking = [name for name in NEEDED if name not in held]
    if lacking:
        mend = "run it in the host's own capability set (no container, no CapabilityBoundingSet)"
        return Finding("capabilities", MISSING, f"without {' '.join(lacking)}", "starting containers", mend)
    if "CAP_SYS_RESOURCE" not in held:
        purpose = "limits above the hard ones and an oom_score_adj below the parent's"
        mend = "run it with CAP_SYS_RESOURCE; without, pods get what may be had"
        return Finding("capabilities", DEGRADED, "without CAP_SYS_RESOURCE", purpose, mend)
    return Finding("capabilities", OK, "all that are needed", "starting containers")


def python(found: tuple[int, ...]) -> Finding:
    state = OK if found[:2] >= LEAST_PYTHON else MISSING
    mend = "use Python 3.11 or newer (Debian 12 and Ubuntu 24.04 have it)"
    return Finding("python", state, ".".join(map(str, found)), "the node itself", mend if state != OK else "")


def version(release: str) -> Finding:
    major, _, rest = release.partition(".")
    minor = "".join(letter for letter in rest.partition(".")[0].partition("-")[0] if letter.isdigit())
    state = OK if (int(major), int(minor or 0)) >= LEAST_KERNEL else MISSING
    mend = "" if state == OK else "use Linux 5.14 or newer"
    return Finding("kernel", state, release, "cgroup.kill and pidfd", mend)


def namespaces(found: frozenset[str]) -> Finding:
    purpose = "what separates pods"
    lacking = [name for name in NAMESPACES if name not in found]
    if not lacking:
        return Finding("namespaces", OK, " ".join(NAMESPACES), purpose)
    mend = f"sysctl -w user.max_{lacking[0]}_namespaces=15000, or a kernel with them"
    state = DEGRADED if lacking == ["user"] else MISSING  # only pods with hostUsers: false need it
    return Finding("namespaces", state, f"without {' '.join(lacking)}", purpose, mend)


def overlay(found: str) -> Finding:
    purpose = "container images"
    if found == "known":
        return Finding("overlayfs", OK, "built in or loaded", purpose)
    if found == "module":
        return Finding("overlayfs", OK, "a module that `up` loads", purpose)
    return Finding(
        "overlayfs", MISSING, "neither in /proc/filesystems nor a module", purpose, "modprobe overlay"
    )


def seccomp(found: bool) -> Finding:
    purpose = "the system calls that containers must not make"
    if found:
        return Finding("seccomp", OK, "filters", purpose)
    mend = "use a kernel with CONFIG_SECCOMP_FILTER"
    return Finding("seccomp", MISSING, "no /proc/sys/kernel/seccomp", purpose, mend)


def apparmor(found: str) -> Finding:
    """A kernel without it is no fault: most distributions that lack it have SELinux."""
    purpose = "the default AppArmor profile of containers"
    if found == "off":
        return Finding("apparmor", OK, "off in this kernel: pods that ask for a profile are refused", purpose)
    if found == "loads":
        return Finding("apparmor", OK, "profiles can be loaded", purpose)
    mend = "apt-get install apparmor" if found == "apparmor_parser" else f"mount -t securityfs none {found}"
    return Finding("apparmor", DEGRADED, f"without {found}: containers run unconfined", purpose, mend)


def link(kind: str, problem: str) -> Finding:
    state, purpose = LINKS[kind]
    if not problem:
        return Finding(kind, OK, "can be made", purpose)
    return Finding(kind, state, problem, purpose, f"modprobe {kind}, or a kernel with it")


def pressure(found: frozenset[str]) -> Finding:
    purpose = "pressure (PSI) of pods in /stats/summary"
    lacking = sorted({"cpu", "io", "memory"} - found)
    if not lacking:
        return Finding("pressure", OK, "cpu io memory", purpose)
    return Finding("pressure", DEGRADED, f"without {' '.join(lacking)}", purpose, "boot with psi=1")
