"""A full container specification, as a pod's containers have it, for several tests."""

from __future__ import annotations

from typing import Any

from runtime.capabilities import DEFAULT
from runtime.seccomp.profile import runtime_default

MASKED = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"]
READONLY = ["/proc/bus", "/proc/sys"]


def container(**process: Any) -> dict[str, Any]:
    return {
        "ociVersion": "1.2.0",
        "root": {"path": "/bundle/rootfs", "readonly": True},
        "process": {
            "args": ["sh", "-c", "true"],
            "cwd": "/work",
            "env": ["PATH=/bin"],
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [7]},
            "noNewPrivileges": True,
            "oomScoreAdj": 500,
            "capabilities": {name: list(DEFAULT) for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
            **process,
        },
        "mounts": [
            {
                "destination": "/proc",
                "type": "proc",
                "source": "proc",
                "options": ["nosuid", "noexec", "nodev"],
            },
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/pod/hosts", "options": ["rbind", "ro"]},
        ],
        "hostname": "box",
        "linux": {
            "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network", "cgroup")],
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
            "sysctl": {"net.ipv4.ping_group_range": "0 0"},
            "seccomp": runtime_default(DEFAULT, "x86_64"),
        },
    }
