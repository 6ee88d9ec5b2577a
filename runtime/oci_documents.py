"""The two documents that the OCI command line writes: an example config.json and the features.

Apart from the commands, because neither is needed to run a container and both pull in tables.
"""

from __future__ import annotations

import errno
import subprocess

from runtime import cgroups, clibrary
from runtime.capabilities import DEFAULT, NAMES
from runtime.errors import StateError
from runtime.machine import this_machine
from runtime.mounting import KNOWN_OPTIONS
from runtime.namespaces import FLAGS
from runtime.seccomp import filter as seccomp
from runtime.seccomp.listener import NEW_LISTENER
from runtime.seccomp.profile import ARCHITECTURES, runtime_default
from runtime.spec import HOOKS
from runtime.spec_extras import MEMORY_FLAGS, MEMORY_MODES
from runtime.systemd.annotations import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPEC_VERSION = "1.2.0"
SET_MODE_FILTER = 1  # seccomp(2)


def example_config() -> dict[str, Any]:
    """A config.json with the defaults a pod's container gets, running `sh` on a terminal."""
    hardened = ["nosuid", "noexec", "nodev"]
    sets = {name: list(DEFAULT) for name in ("bounding", "effective", "permitted")}
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": sets,
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "container",
        "mounts": [
            _mount("/proc", "proc", "proc", []),
            _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
            _mount("/dev/pts", "devpts", "devpts",
                   ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            _mount("/dev/shm", "tmpfs", "shm", [*hardened, "mode=1777", "size=65536k"]),
            _mount("/dev/mqueue", "mqueue", "mqueue", hardened),
            _mount("/sys", "sysfs", "sysfs", [*hardened, "ro"]),
            _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*hardened, "relatime", "ro"]),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                            "/proc/interrupts", "/sys/firmware", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": runtime_default(DEFAULT, this_machine().name),
        },
    }  # fmt: skip


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def features() -> dict[str, Any]:
    """What this runtime can do (runtime-spec 1.2, features.md and features-linux.md): what was built, whether
    or not this host has the kernel feature, as the document is defined; but for `supportedFlags`."""
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": list(HOOKS),
        "mountOptions": sorted(KNOWN_OPTIONS),
        "linux": {
            "namespaces": sorted(FLAGS),
            "capabilities": list(NAMES),
            "cgroup": {
                "v1": True, "v2": True, "systemd": cgroups.native() == cgroups.SYSTEMD,
                "systemdUser": False, "rdma": True,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(seccomp.ACTIONS),
                "operators": [f"SCMP_CMP_{name}" for name in seccomp.OPERATORS],
                "archs": [ARCHITECTURES[this_machine().name]],
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(_supported_flags()),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "netDevices": {"enabled": False},
            "memoryPolicy": {"modes": sorted(MEMORY_MODES), "flags": sorted(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": {},
        "potentiallyUnsafeConfigAnnotations": [PREFIX],
    }  # fmt: skip


def _supported_flags() -> list[str]:
    """Those that this kernel has, too: it says ENOSYS or EFAULT of a flag it knows and no filter, EINVAL of
    one it does not know."""
    call = clibrary.libc("syscall", "lllPP")
    supported = []
    for name, flag in seccomp.FLAGS.items():
        # A flag of listeners is one together with theirs alone.
        bits = flag | (NEW_LISTENER if name == seccomp.KILLABLE else 0)
        if call(this_machine().numbers["seccomp"], SET_MODE_FILTER, bits, None) >= 0:
            raise StateError("Could not ask for seccomp flags: a filter was taken where none was given")
        if clibrary.errno() != errno.EINVAL:
            supported.append(name)
    return supported


def process_table(pids: list[int], options: list[str]) -> list[str]:
    """The container's lines of ps(1), with its heading, as runc prints them. Raises StateError."""
    try:
        done = subprocess.run(["ps", *(options or ["-ef"])], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise StateError("Could not list processes: ps is not installed (use --format json)") from None
    if done.returncode:
        raise StateError(f"Could not list processes: {done.stderr.strip()}")
    heading, *lines = done.stdout.splitlines()
    titles = heading.split()
    if "PID" not in titles:
        raise StateError("Could not list processes: ps prints no PID column with these options")
    column = titles.index("PID")
    return [heading, *(line for line in lines if line.split()[column] in {str(pid) for pid in pids})]
