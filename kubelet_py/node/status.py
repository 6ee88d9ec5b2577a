"""What a Node object says: who it is, what it can give, how it is.

Sources: the setters of upstream's pkg/kubelet/nodestatus for field names, reasons and messages; /proc and
statvfs for the facts. Building the object is pure; only `read_machine` looks at the host.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kubeclient import quantity
from kubelet_py.config import Config
from kubelet_py.pods.model import Object, timestamp

KUBERNETES_VERSION = "v1.32.0"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Upstream's default hard eviction threshold for memory is kept back from pods as well.
EVICTION_MEMORY = 100 * 1024 * 1024
MOST_IMAGES = 50


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
    )


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


def capacity(machine: Machine, config: Config) -> dict[str, str]:
    return {
        "cpu": str(machine.cpus),
        "memory": f"{machine.memory // 1024}Ki",
        "ephemeral-storage": f"{machine.disk // 1024}Ki",
        "pods": str(config.max_pods),
    }


def allocatable(machine: Machine, config: Config) -> dict[str, str]:
    """Capacity less what is reserved for the system and the eviction threshold."""
    reserved: dict[str, int] = {"cpu": 0, "memory": EVICTION_MEMORY, "ephemeral-storage": machine.disk // 10}
    for table in (config.kube_reserved, config.system_reserved):
        for name, text in table.items():
            amount = quantity.milli(text) if name == "cpu" else quantity.value(text)
            reserved[name] = reserved.get(name, 0) + amount
    return {
        "cpu": quantity.format_milli(max(0, machine.cpus * 1000 - reserved["cpu"])),
        "memory": f"{max(0, machine.memory - reserved['memory']) // 1024}Ki",
        "ephemeral-storage": str(max(0, machine.disk - reserved["ephemeral-storage"])),
        "pods": str(config.max_pods),
    }


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
    own = f"kubelet-py://{version('kubelet-py')}"
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


def conditions(
    before: Sequence[Object], *, network_problem: str | None, degraded: Sequence[str], now: float
) -> list[Object]:
    """MemoryPressure, DiskPressure, PIDPressure, Ready; times of change are kept while the status stays.

    `network_problem` makes the node NotReady; `degraded` is what this host cannot enforce, said in Ready's
    message so that it is seen.
    """
    calm = (
        ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
    )
    wanted: list[Object] = [
        {"type": kind, "status": "False", "reason": reason, "message": message}
        for kind, reason, message in calm
    ]
    if network_problem is None:
        message = "kubelet is posting ready status"
        if degraded:
            message += f" (not enforced on this host: {'; '.join(degraded)})"
        wanted.append({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": message})
    else:
        message = (
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
            f"message:Network plugin returns error: {network_problem}"
        )
        wanted.append({"type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": message})
    old = {condition["type"]: condition for condition in before}
    answer = []
    for condition in wanted:
        known = old.get(condition["type"])
        same = known is not None and known["status"] == condition["status"]
        since = known["lastTransitionTime"] if known is not None and same else timestamp(now)
        answer.append({**condition, "lastHeartbeatTime": timestamp(now), "lastTransitionTime": since})
    return answer


def images(known: Sequence[Any]) -> list[Object]:
    """The node's largest images, as the API lists them."""
    ordered = sorted(known, key=lambda image: -int(image.size))[:MOST_IMAGES]
    return [
        {"names": [*image.repo_digests, *image.repo_tags], "sizeBytes": int(image.size)}
        for image in ordered
        if image.repo_digests or image.repo_tags
    ]


def same_report(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two statuses differ in nothing but heartbeat times."""

    def bare(status: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(status)
        kept["conditions"] = [
            {key: value for key, value in condition.items() if key != "lastHeartbeatTime"}
            for condition in status.get("conditions") or ()
        ]
        return kept

    names = set(new)
    return {k: v for k, v in bare(old).items() if k in names} == bare(new)
