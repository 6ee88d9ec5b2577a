"""From a container of a pod to an OCI `config.json`: the last pure step before the runtime. Pure.

Everything that had to be looked up (environment, user, image, volumes' host paths) comes in as values. The
document has no namespace paths: the runtime's service knows the sandbox and fills them in.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubelet_py.errors import ContainerConfigError
from kubelet_py.pods import security
from kubelet_py.pods.model import Object
from kubelet_py.pods.user_namespaces import host_users
from runtime.users import User

OCI_VERSION = "1.2.0"
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHM_BYTES = 64 * 1024 * 1024
PROPAGATION = {"HostToContainer": "rslave", "Bidirectional": "rshared", "None": "rprivate"}

# What a container may open: pseudo terminals and the harmless memory devices; making nodes is no use without.
DEVICES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *({"allow": True, "type": "c", "major": 1, "minor": minor, "access": "rwm"} for minor in (3, 5, 7, 8, 9)),
    {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 1, "access": "rwm"},
    {"allow": True, "type": "c", "major": 5, "minor": 2, "access": "rwm"},
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)
ALL_DEVICES: tuple[dict[str, Any], ...] = ({"allow": True, "access": "rwm"},)


@dataclass(frozen=True, slots=True)
class Mount:
    """A prepared mount of the pod: a path on the host to a path in the container."""

    source: str
    destination: str
    read_only: bool = False
    propagation: str = "rprivate"
    recursive: bool = True
    recursive_read_only: bool = False  # what is mounted below it, too
    mapped: bool = False  # its owners are the pod's users already


@dataclass(frozen=True, slots=True)
class Facts:
    """What the decisions behind a container came to."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    user: User
    image_config: Mapping[str, Any]
    mounts: Sequence[Mount]
    resources: Mapping[str, Any]
    oom_score_adj: int
    hostname: str
    shm: str  # the folder behind /dev/shm: the pod's, or the host's with hostIPC
    seccomp_default: bool = True
    localhost_seccomp: Mapping[str, Any] | None = None
    devices: Sequence[Mapping[str, Any]] = field(default_factory=tuple)  # besides those that all have
    app_armor: str = ""  # the profile, which the kernel has
    selinux: bool = False


def oci_spec(pod: Object, container: Object, facts: Facts) -> dict[str, Any]:
    """The whole document; ContainerConfigError for what cannot be run as written."""
    if not facts.argv:
        raise ContainerConfigError("no command specified")
    context = security.effective(pod, container)
    names = security.capability_names(context)
    masked, read_only = security.paths(context)
    privileged = bool(context.get("privileged"))
    mapped = not host_users(pod)
    process: dict[str, Any] = {
        "terminal": bool(container.get("tty")),
        "user": {
            "uid": facts.user.uid,
            "gid": facts.user.gid,
            "additionalGids": security.supplemental_groups(pod, facts.user),
        },
        "args": list(facts.argv),
        "env": _environment(container, facts),
        "cwd": container.get("workingDir") or facts.image_config.get("WorkingDir") or "/",
        "capabilities": security.oci_capabilities(names, facts.user.uid, context),
        "noNewPrivileges": security.no_new_privileges(context),
        "oomScoreAdj": facts.oom_score_adj,
    }
    label = security.selinux_label(context, facts.selinux)
    process |= {"apparmorProfile": facts.app_armor} if facts.app_armor else {}
    process |= {"selinuxLabel": label} if label else {}
    linux: dict[str, Any] = {
        "resources": {**facts.resources, "devices": list(ALL_DEVICES if privileged else DEVICES)},
        "maskedPaths": masked,
        "readonlyPaths": read_only,
        "rootfsPropagation": _root_propagation(facts.mounts),
    }
    devices = [dict(device) for device in facts.devices if not _covered(device["path"], facts.mounts)]
    linux |= {"devices": devices} if devices else {}
    seccomp = security.seccomp(
        context, names, default=facts.seccomp_default, localhost=facts.localhost_seccomp
    )
    if seccomp is not None:
        linux["seccomp"] = seccomp
    return {
        "ociVersion": OCI_VERSION,
        "root": {"path": "rootfs", "readonly": bool(context.get("readOnlyRootFilesystem"))},
        "process": process,
        "mounts": [
            *_system_mounts(privileged, facts.shm),
            *(_bind(mount, mapped) for mount in _ordered(facts.mounts)),
        ],
        "linux": linux,
    }


def _environment(container: Object, facts: Facts) -> list[str]:
    """The image's variables, then the pod's; PATH and HOSTNAME always exist."""
    values = {"HOSTNAME": facts.hostname}
    for text in (DEFAULT_PATH, *(facts.image_config.get("Env") or ())):
        name, _, value = text.partition("=")
        values[name] = value
    if container.get("tty"):
        values["TERM"] = "xterm"
    values.setdefault("HOME", facts.user.home or "/")
    values |= facts.environment
    return [f"{name}={value}" for name, value in values.items()]


def _system_mounts(privileged: bool, shm: str) -> list[dict[str, Any]]:
    sys_options = ["nosuid", "noexec", "nodev", "rw" if privileged else "ro"]
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _mount("/dev/shm", "bind", shm, "bind", "nosuid", "noexec", "nodev", "rw"),
    ]
    # The sysfs shows the network namespace of the thread that mounts it: the pod's, or the host's with
    # hostNetwork. Never the host's own tree: its cgroups are mounts below it, which no option of the upper
    # one makes read-only (CVE-2022-0492).
    mounts.append(_mount("/sys", "sysfs", "sysfs", *sys_options))
    mounts.append(_mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"))
    return mounts


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _bind(mount: Mount, mapped: bool) -> dict[str, Any]:
    options = ["rbind" if mount.recursive else "bind", mount.propagation, "ro" if mount.read_only else "rw"]
    if mount.recursive_read_only:
        options.append("rro")
    if mapped and not mount.mapped:
        # The file's owner 0 is the pod's 0, and what the pod writes as 0 is 0 on the disk.
        options.append("idmap")
    return _mount(mount.destination, "bind", mount.source, *options)


def _covered(path: str, mounts: Sequence[Mount]) -> bool:
    """Whether a volume lies there: its files are the pod's business, and no node is made among them."""
    places = [posixpath.normpath(f"/{mount.destination.strip('/')}") for mount in mounts]
    return any(path == place or path.startswith(f"{place}/") for place in places)


def _ordered(mounts: Sequence[Mount]) -> list[Mount]:
    """Parents before children, so that a mount inside another is not hidden by it."""
    return sorted(mounts, key=lambda mount: mount.destination.rstrip("/").count("/"))


def _root_propagation(mounts: Sequence[Mount]) -> str:
    kinds = {mount.propagation for mount in mounts}
    return "rshared" if "rshared" in kinds else "rslave" if "rslave" in kinds else "rprivate"
