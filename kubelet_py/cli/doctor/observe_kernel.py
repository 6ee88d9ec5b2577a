"""Reads rights, kernel features and cgroups of this host.

Kinds of interfaces are tried in a network namespace that ends with the attempt: no file says of all kernels
which kinds they know.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from kubelet_py.cli import settings
from kubelet_py.cli.doctor.cgroups import CgroupFacts
from kubelet_py.cli.doctor.kernel import LINKS, NAMESPACES, KernelFacts
from kubelet_py.node import modules
from kubelet_py.paths import NodePaths

_TRIES = {
    "veth": ("kpy-try0", "type", "veth", "peer", "name", "kpy-try1"),
    "bridge": ("kpy-try0", "type", "bridge"),
    "wireguard": ("kpy-try0", "type", "wireguard"),
    "vxlan": ("kpy-try0", "type", "vxlan", "id", "1", "dstport", "4789"),
}
PATIENCE = 20.0
CGROUPS = Path("/sys/fs/cgroup")


def kernel(paths: NodePaths) -> KernelFacts:
    known = settings.load(paths)
    return KernelFacts(
        uid=os.geteuid(),
        capabilities=_capabilities(),
        python=tuple(sys.version_info[:3]),
        release=platform.release(),
        namespaces=frozenset(name for name in NAMESPACES if _namespace(name)),
        overlay=_overlay(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=_apparmor(),
        links={kind: try_link(kind) for kind in LINKS},
        wireguard=try_link("wireguard"),
        encrypts=known is not None and known.pod_routes == "wireguard",
        pressure=frozenset(name for name in ("cpu", "io", "memory") if _readable(f"/proc/pressure/{name}")),
    )


def _apparmor() -> str:
    from kubelet_py.pods import app_armor

    if not app_armor.enabled():
        return "off"
    return app_armor.Profiles(enabled=True).lacking or "loads"


def _capabilities() -> frozenset[str]:
    from runtime.capabilities import NUMBERS

    status = Path("/proc/self/status").read_text()
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    return frozenset(name for name, number in NUMBERS.items() if mask >> number & 1)


def _namespace(name: str) -> bool:
    limit = Path(f"/proc/sys/user/max_{name}_namespaces")
    allowed = not limit.exists() or limit.read_text().strip() != "0"
    return os.path.exists(f"/proc/self/ns/{name}") and allowed


def _overlay() -> str:
    if modules.has_filesystem("overlay"):
        return "known"
    return "module" if modules.loadable("overlay") else ""


def _readable(path: str) -> bool:
    try:
        return bool(Path(path).read_bytes())
    except OSError:
        return False


def try_link(kind: str) -> str:
    """Why this kind of interface cannot be made; "" where it can."""
    if os.geteuid() != 0:
        return "not tried without root"
    argv = ["unshare", "--net", "ip", "link", "add", *_TRIES[kind]]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be tried: {error} (apt-get install iproute2 util-linux)"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "" if done.returncode == 0 else lines[0]


def cgroups() -> CgroupFacts:
    """On hybrid hosts the v1 trees are read with cgroupspy, which knows just those."""
    from runtime.cgroups import native
    from runtime.errors import CgroupError

    if (CGROUPS / "cgroup.controllers").exists():
        layout, tree = "v2", CGROUPS
        controllers = set((CGROUPS / "cgroup.controllers").read_text().split())
    else:
        from cgroupspy import trees

        controllers = {node.name.decode() for node in trees.Tree().root.children}
        layout, tree = "hybrid" if "unified" in controllers else "v1", CGROUPS / "unified"
        controllers -= {"unified"}
    try:
        manager = native()
    except CgroupError:
        manager = ""
    return CgroupFacts(
        layout=layout,
        controllers=frozenset(controllers),
        kill=_has_kill(tree),
        writable=os.access(tree, os.W_OK),
        manager=manager,
    )


def _has_kill(tree: Path) -> bool:
    """The root of a tree has no such file; any group below has. Without one the version tells."""
    if not tree.is_dir():
        return False
    group = next((each for each in tree.iterdir() if each.is_dir()), None)
    if group is not None:
        return (group / "cgroup.kill").exists()
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)) or 0)) >= (5, 14)
