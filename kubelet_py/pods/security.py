"""securityContext of pod and container → what the OCI process and its confinement get. Pure but for files.

The container's own value wins over the pod's. Source: upstream's securitycontext package and CRI's rules.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kubeclient.app_armor import annotated
from kubelet_py.errors import ContainerConfigError, CreateContainerError, SandboxError
from kubelet_py.pods import app_armor
from kubelet_py.pods.model import Object, Waiting, every_container
from runtime import capabilities
from runtime.seccomp import profile as seccomp_profile
from runtime.users import User

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
    "/sys/devices/virtual/powercap", "/sys/firmware",
)  # fmt: skip
CPUS = "devices/system/cpu"
READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
# Settings of an IPC namespace; those that begin with net. are of a network namespace.
IPC_SYSCTLS = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")
SELINUX_DEFAULTS = (("user", "system_u"), ("role", "system_r"), ("type", "container_t"), ("level", "s0"))
LARGEST_PROFILE = 1 << 20
SETS = ("bounding", "effective", "permitted")
# What a pod may set without the node's leave: it reaches no other pod. Source: upstream's pkg/kubelet/sysctl.
SAFE_SYSCTLS = frozenset(
    ["kernel.shm_rmid_forced"]
    + [
        "net.ipv4." + name
        for name in (
            "ip_local_port_range", "ip_local_reserved_ports", "ip_unprivileged_port_start",
            "ping_group_range", "tcp_fin_timeout", "tcp_keepalive_intvl", "tcp_keepalive_probes",
            "tcp_keepalive_time", "tcp_rmem", "tcp_syncookies", "tcp_wmem",
        )
    ]
)  # fmt: skip


def effective(pod: Object, container: Object) -> dict[str, Any]:
    """The container's securityContext with the pod's values filled in where the container has none."""
    general = pod["spec"].get("securityContext") or {}
    inherited = (
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "seccompProfile",
        "seLinuxOptions",
        "appArmorProfile",
    )
    own = {key: value for key, value in (container.get("securityContext") or {}).items() if value is not None}
    # A static pod may have only the annotation; the API server makes a field of it.
    by_annotation = annotated(pod["metadata"].get("annotations") or {}, container["name"])
    if by_annotation:
        own.setdefault("appArmorProfile", by_annotation)
    return {key: general[key] for key in inherited if general.get(key) is not None} | own


def wanted_user(context: Mapping[str, Any], image_user: str) -> str:
    """The text that runtime.users resolves: "uid[:gid]" of the context, else the image's USER."""
    uid, gid = context.get("runAsUser"), context.get("runAsGroup")
    if uid is None:
        name = image_user.partition(":")[0]
        return f"{name or '0'}:{gid}" if gid is not None else image_user
    # Upstream: runAsUser without runAsGroup runs with group 0 unless the image's passwd says otherwise.
    return f"{uid}:{gid}" if gid is not None else str(uid)


def check_non_root(context: Mapping[str, Any], user: User, image_user: str, where: str) -> None:
    """runAsNonRoot: refuse uid 0, and an image user that is only a name (its number could be 0)."""
    if not context.get("runAsNonRoot"):
        return
    if context.get("runAsUser") is not None:
        if int(context["runAsUser"]) == 0:
            raise ContainerConfigError(f"container's runAsUser breaks non-root policy ({where})")
        return
    name = image_user.partition(":")[0]
    if name and not name.isdigit():
        raise ContainerConfigError(
            f"container has runAsNonRoot and image has non-numeric user ({name}), "
            f"cannot verify user is non-root ({where})"
        )
    if user.uid == 0:
        raise ContainerConfigError(f"container has runAsNonRoot and image will run as root ({where})")


def supplemental_groups(pod: Object, user: User) -> list[int]:
    """fsGroup, the pod's supplementalGroups, and the image's own unless the policy is Strict."""
    context = pod["spec"].get("securityContext") or {}
    groups: list[int] = []
    if context.get("supplementalGroupsPolicy") != "Strict":
        groups += user.groups
    groups += context.get("supplementalGroups") or []
    if context.get("fsGroup") is not None:
        groups.append(int(context["fsGroup"]))
    return sorted(set(groups))


def capability_names(context: Mapping[str, Any]) -> tuple[str, ...]:
    """The set the container gets; ContainerConfigError for an unknown name."""
    if context.get("privileged"):
        return tuple(capabilities.NAMES)
    wanted = context.get("capabilities") or {}
    try:
        return capabilities.select(wanted.get("add") or (), wanted.get("drop") or (), capabilities.DEFAULT)
    except capabilities.UnknownCapability as error:
        raise ContainerConfigError(f'unknown capability "{error.args[0]}"') from error


def localhost_profile(folder: Path, context: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The seccomp profile below `folder` that the context names; None where it names none of the node's.

    A file that is missing or is no profile fails the container's creation, as it does in containerd; one that
    is privileged has no filter, so that nothing is read for it.
    """
    profile = context.get("seccompProfile") or {}
    if profile.get("type") != "Localhost" or context.get("privileged"):
        return None
    name = profile.get("localhostProfile") or ""
    if name.startswith("/") or ".." in name.split("/"):
        raise ContainerConfigError(f"localhost seccomp profile {name!r} must be a relative path without '..'")
    file = folder / name
    try:
        parsed: Any = json.loads(file.read_bytes()[:LARGEST_PROFILE])
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else error
        raise CreateContainerError(f'cannot load seccomp profile "{file}": open {file}: {why}') from error
    except ValueError as error:
        raise CreateContainerError(f'cannot decode seccomp profile "{file}": {error}') from error
    if not isinstance(parsed, dict):
        raise CreateContainerError(f'cannot decode seccomp profile "{file}": it is no JSON object')
    return parsed


def oci_capabilities(names: Sequence[str], uid: int, context: Mapping[str, Any]) -> dict[str, list[str]]:
    """Bounding is the whole set; another user than root starts with none, as after execve of a plain file."""
    chosen = list(names)
    held = chosen if uid == 0 else []
    return {"bounding": chosen, "effective": held, "permitted": held, "inheritable": [], "ambient": []}


def seccomp(
    context: Mapping[str, Any], names: Sequence[str], *, default: bool, localhost: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """`linux.seccomp` or None. `localhost` is the parsed file of a Localhost profile."""
    if context.get("privileged"):
        return None
    kind = (context.get("seccompProfile") or {}).get("type") or (
        "RuntimeDefault" if default else "Unconfined"
    )
    if kind == "Unconfined":
        return None
    if kind == "Localhost":
        if localhost is None:
            raise ContainerConfigError("localhost seccomp profile is missing")
        return dict(localhost)
    return dict(_runtime_default(tuple(names)))


@lru_cache(maxsize=64)
def _runtime_default(names: tuple[str, ...]) -> dict[str, Any]:
    """Three hundred names of system calls, sorted: most containers have the same capabilities."""
    return seccomp_profile.runtime_default(names, platform.machine())


def sysctls(pod: Object, unsafe: Sequence[str] = ()) -> dict[str, str]:
    """The pod's kernel settings; SandboxError for one that is not allowed here, or is the host's."""
    problem = sysctl_problem(pod, unsafe)
    if problem:
        raise SandboxError(problem)
    return _sysctls(pod)


def _sysctls(pod: Object) -> dict[str, str]:
    entries = (pod["spec"].get("securityContext") or {}).get("sysctls") or ()
    return {str(entry["name"]).replace("/", "."): str(entry["value"]) for entry in entries}


def sysctl_problem(pod: Object, unsafe: Sequence[str]) -> str:
    """Why a sysctl of the pod is forbidden, or "". `unsafe`: names, and prefixes that end with "*", which the
    node allows besides the safe ones."""
    for name in _sysctls(pod):
        if name not in SAFE_SYSCTLS and not any(_covers(pattern, name) for pattern in unsafe):
            return f'forbidden sysctl: "{name}" not allowlisted'
        if name.startswith("net.") and pod["spec"].get("hostNetwork"):
            return f'forbidden sysctl: "{name}" not allowed with host net enabled'
        if name.startswith(IPC_SYSCTLS) and pod["spec"].get("hostIPC"):
            return f'forbidden sysctl: "{name}" not allowed with host ipc enabled'
    return ""


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def refusal(pod: Object, *, unsafe_sysctls: Sequence[str], apparmor: bool) -> Waiting | None:
    """What this node cannot give the pod, or must not. `apparmor`: whether the host's kernel has it on."""
    problem = sysctl_problem(pod, unsafe_sysctls)
    if problem:
        return Waiting("SysctlForbidden", problem)
    for container in every_container(pod):
        problem = app_armor.problem(effective(pod, container), apparmor)
        if problem:
            return Waiting("AppArmor", problem)
    return None


def selinux_label(context: Mapping[str, Any], enabled: bool) -> str:
    """process.selinuxLabel; "" where the host's kernel has no SELinux, as other runtimes do."""
    options = context.get("seLinuxOptions") or {}
    if not enabled or not options:
        return ""
    return ":".join(options.get(part) or default for part, default in SELINUX_DEFAULTS)


def no_new_privileges(context: Mapping[str, Any]) -> bool:
    return context.get("allowPrivilegeEscalation") is False


def selinux_enabled(file: Path = Path("/sys/fs/selinux/enforce")) -> bool:
    return file.exists()


def paths(context: Mapping[str, Any], sys: Path = Path("/sys")) -> tuple[list[str], list[str]]:
    """(masked, read-only) paths; none when privileged or with procMount Unmasked. `sys`: the host's."""
    if context.get("privileged") or context.get("procMount") == "Unmasked":
        return [], []
    # Anew for each container, as processors come and go; pathlib's glob takes many times as long.
    names = sorted(f"{CPUS}/{name}/thermal_throttle" for name in _names(sys / CPUS) if name.startswith("cpu"))
    thermal = [f"/sys/{name}" for name in names if os.path.exists(sys / name)]
    return [*MASKED, *thermal], list(READONLY)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
