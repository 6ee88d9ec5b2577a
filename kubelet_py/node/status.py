"""What a Node object says: who it is, what it can give, how it is.

Sources: the setters of upstream's pkg/kubelet/nodestatus for field names, reasons and messages; /proc and
statvfs for the facts. Building the object is pure; only `read_machine` looks at the host.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubelet_py.config import Config
from kubelet_py.pods.model import Object, timestamp
from kubelet_py.release import release

KUBERNETES_VERSION = "v1.32.0"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that do not change while the node runs; sizes in bytes."""

    cpus: int
    memory: int
    disk: int
    hostname: str
    machine_id: str
    system_uuid: str
    boot_id: str
    kernel: str
    os_image: str
    architecture: str
    max_pids: int = 32768
    huge_pages: tuple[tuple[int, int], ...] = ()  # size of a page, bytes of all pages of that size


def read_machine(state: Path) -> Machine:
    """Look at the host; `state` tells which disk counts as ephemeral storage."""
    place = state
    while not place.exists():
        place = place.parent
    disk = os.statvfs(place)
    return Machine(
        cpus=len(os.sched_getaffinity(0)),
        memory=_memory_total(),
        disk=disk.f_blocks * disk.f_frsize,
        hostname=platform.node(),
        machine_id=_text("/etc/machine-id"),
        system_uuid=_text("/sys/class/dmi/id/product_uuid") or _text("/etc/machine-id"),
        boot_id=_text("/proc/sys/kernel/random/boot_id"),
        kernel=platform.release(),
        os_image=_os_image(),
        architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
        max_pids=max_pids(),
        huge_pages=_huge_pages(),
    )


def max_pids(proc: Path = Path("/proc/sys/kernel")) -> int:
    """How many processes there can be: the lower of the kernel's two bounds (upstream: stats/pidlimit)."""
    return min(int((proc / name).read_text()) for name in ("pid_max", "threads-max"))


def _huge_pages() -> tuple[tuple[int, int], ...]:
    found = []
    for folder in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        found.append((size, int(_text(str(folder / "nr_hugepages")) or 0) * size))
    return tuple(sorted(found))


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _memory_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _os_image() -> str:
    for line in _text("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"


def labels(machine: Machine, node_name: str, config: Config) -> dict[str, str]:
    """What a kubelet puts on its own Node."""
    return {
        "kubernetes.io/hostname": node_name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": machine.architecture,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": machine.architecture,
        **config.node_labels,
    }


def node_info(machine: Machine) -> dict[str, str]:
    own = f"kubelet-py://{release() or '0.0.0'}"
    return {
        "machineID": machine.machine_id,
        "systemUUID": machine.system_uuid,
        "bootID": machine.boot_id,
        "kernelVersion": machine.kernel,
        "osImage": machine.os_image,
        "containerRuntimeVersion": own,
        "kubeletVersion": KUBERNETES_VERSION,
        "kubeProxyVersion": KUBERNETES_VERSION,
        "operatingSystem": "linux",
        "architecture": machine.architecture,
    }


CONDITIONS = {
    "MemoryPressure": (
        ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    ),
    "DiskPressure": (
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    ),
    "PIDPressure": (
        ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    ),
}
SHUTTING_DOWN = "node is shutting down"


@dataclass(frozen=True, slots=True)
class Health:
    """What the conditions are made of.

    `network`: why pods cannot be attached, None when they can. `routed`: the pods' network is ours, so that
    nobody else says NetworkUnavailable. `degraded`: what this host cannot enforce, said in Ready's message so
    that it is seen. `pressures`: types of conditions that are True.
    """

    network: str | None = None
    routed: bool = False
    degraded: Sequence[str] = ()
    pressures: Collection[str] = ()
    shutting_down: bool = False


def conditions(before: Sequence[Object], health: Health, now: float) -> list[Object]:
    """NetworkUnavailable, the pressures, Ready; times of change are kept while the status stays."""
    wanted: list[Object] = []
    if health.routed and health.network is None:
        # The words of upstream's route controller.
        words = ("RouteCreated", "RouteController created a route")
        wanted.append(_condition("NetworkUnavailable", False, *words))
    elif health.routed:
        words = ("NoRouteCreated", f"RouteController failed to create a route: {health.network}")
        wanted.append(_condition("NetworkUnavailable", True, *words))
    for kind, words_of in CONDITIONS.items():
        pressed = kind in health.pressures
        wanted.append(_condition(kind, pressed, *words_of[pressed]))
    wanted.append(_ready(health))
    old = {condition["type"]: condition for condition in before}
    answer = []
    for condition in wanted:
        known = old.get(condition["type"])
        same = known is not None and known["status"] == condition["status"]
        since = known["lastTransitionTime"] if known is not None and same else timestamp(now)
        answer.append({**condition, "lastHeartbeatTime": timestamp(now), "lastTransitionTime": since})
    return answer


def _condition(kind: str, status: bool, reason: str, message: str) -> Object:
    return {"type": kind, "status": str(status), "reason": reason, "message": message}


def _ready(health: Health) -> Object:
    problems = []
    if health.network is not None:
        problems.append(
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
            f"message:Network plugin returns error: {health.network}"
        )
    if health.shutting_down:
        problems.append(SHUTTING_DOWN)
    if problems:
        message = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        return _condition("Ready", False, "KubeletNotReady", message)
    message = "kubelet is posting ready status"
    if health.degraded:
        message += f" (not enforced on this host: {'; '.join(health.degraded)})"
    return _condition("Ready", True, "KubeletReady", message)


def condition_events(before: Sequence[Object], after: Sequence[Object]) -> list[str]:
    """Reasons of the Node's events for what has changed between two reports (upstream: setters.go)."""
    old = {condition["type"]: condition["status"] for condition in before}
    told = []
    for condition in after:
        kind, status = condition["type"], condition["status"]
        if old.get(kind) == status:
            continue
        if kind in CONDITIONS:
            told.append(CONDITIONS[kind][status == "True"][0].replace("Kubelet", "Node", 1))
        elif kind == "Ready":
            told.append("NodeReady" if status == "True" else "NodeNotReady")
    return told


def runtime_handlers(names: Sequence[str], user_namespaces: bool) -> list[Object]:
    """The handlers that a RuntimeClass may name here, "" (the default) first; what a foreign one is capable
    of is not known."""
    own = {"recursiveReadOnlyMounts": True, "userNamespaces": user_namespaces}
    return [{"name": name, **({} if name else {"features": own})} for name in names]


def images(known: Sequence[Any], most: int) -> list[Object]:
    """The node's largest images, as the API lists them; `most` of them (nodeStatusMaxImages), -1 for all."""
    ordered = sorted(known, key=lambda image: -int(image.size))[: most if most >= 0 else None]
    return [
        {"names": [*image.repo_digests, *image.repo_tags], "sizeBytes": int(image.size)}
        for image in ordered
        if image.repo_digests or image.repo_tags
    ]


def same_report(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether what `new` says is in `old` already, but for heartbeat times.

    The API keeps conditions as a set by type: in the order in which it heard of them, and with those that
    others put there (a node problem detector), which are no change of ours.
    """
    theirs, ours = _by_type(old), _by_type(new)
    rest = [key for key in new if key != "conditions"]
    return all((old.get(key) or None) == (new[key] or None) for key in rest) and all(
        theirs.get(kind) == condition for kind, condition in ours.items()
    )


def _by_type(status: Mapping[str, Any]) -> dict[str, Object]:
    return {
        condition["type"]: {key: value for key, value in condition.items() if key != "lastHeartbeatTime"}
        for condition in status.get("conditions") or ()
    }
