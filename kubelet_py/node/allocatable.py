"""What a node has, what it keeps back, and what is left for pods. Pure.

capacity − kubeReserved − systemReserved − the hard eviction thresholds = allocatable, which the scheduler and
the node's own admission count with. What is *enforced* on all pods together (the limit of the kubepods
cgroup) leaves the eviction thresholds out: the kubelet wants to evict before the kernel kills. Source:
upstream's pkg/kubelet/cm/node_container_manager_linux.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kubeclient import quantity
from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from kubelet_py.node import thresholds

if TYPE_CHECKING:
    from kubelet_py.node.status import Machine

RESERVABLE = ("cpu", "memory", "ephemeral-storage", "pid")
ENFORCEABLE = ("pods", "kube-reserved", "system-reserved", "none")
FULL_CORES = "full-pcpus-only"
HUGE = "hugepages-"


def check(config: Config) -> None:
    """Raises ConfigError naming the key that means nothing here."""
    for key, table in (("kubeReserved", config.kube_reserved), ("systemReserved", config.system_reserved)):
        for name, text in table.items():
            if name not in RESERVABLE and not name.startswith(HUGE):
                raise ConfigError(f"Could not use configuration: {key} of {name!r}: only {RESERVABLE}")
            try:
                negative = quantity.parse(text) < 0
            except quantity.QuantityError as error:
                raise ConfigError(f"Could not use configuration: {key}.{name} {text!r}: {error}") from error
            if negative:
                raise ConfigError(f"Could not use configuration: {key}.{name} {text!r} must not be negative")
    cpus_of(config.reserved_system_cpus)
    policy = config.cpu_manager_policy
    if policy not in ("none", "static"):
        text = f"cpuManagerPolicy {policy!r}: it must be none or static"
        raise ConfigError(f"Could not use configuration: {text}")
    if policy == "static" and not reserved(None, config).get("cpu"):
        text = "needs cpu reserved by reservedSystemCPUs, kubeReserved or systemReserved"
        raise ConfigError(f"Could not use configuration: cpuManagerPolicy static {text}")
    whole_cores(config)
    enforced = config.enforce_node_allocatable
    for name in enforced:
        if name not in ENFORCEABLE:
            raise ConfigError(
                f"Could not use configuration: enforceNodeAllocatable of {name!r}: only {ENFORCEABLE}"
            )
    if "none" in enforced and len(enforced) > 1:
        raise ConfigError("Could not use configuration: enforceNodeAllocatable of 'none' must stand alone")
    cgroups = {"kube-reserved": config.kube_reserved_cgroup, "system-reserved": config.system_reserved_cgroup}
    for name, cgroup in cgroups.items():
        if name in enforced and not cgroup:
            key = "kubeReservedCgroup" if name == "kube-reserved" else "systemReservedCgroup"
            raise ConfigError(f"Could not use configuration: enforceNodeAllocatable of {name!r} needs {key}")


def whole_cores(config: Config) -> bool:
    """Whether the static CPU policy gives away whole cores only: its option full-pcpus-only, the one that is
    known here. Raises ConfigError."""
    options = config.cpu_manager_policy_options
    if options and config.cpu_manager_policy != "static":
        text = f"cpuManagerPolicyOptions need cpuManagerPolicy static, not {config.cpu_manager_policy}"
        raise ConfigError(f"Could not use configuration: {text}")
    for name, value in options.items():
        if name != FULL_CORES:
            text = f"cpuManagerPolicyOptions: unsupported option {name!r} (known: {FULL_CORES})"
            raise ConfigError(f"Could not use configuration: {text}")
        if not isinstance(value, str) or value.lower() not in ("true", "false"):
            text = f'cpuManagerPolicyOptions: {name} {value!r}: it must be "true" or "false"'
            raise ConfigError(f"Could not use configuration: {text}")
    return options.get(FULL_CORES, "false").lower() == "true"


def cpus_of(text: str) -> frozenset[int]:
    """ "0,2-4" → {0, 2, 3, 4}. Raises ConfigError."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(
                f"Could not use configuration: reservedSystemCPUs {text!r}: write it like 0,2-3"
            )
        found |= set(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def huge_name(size: int) -> str:
    """The resource of pages of `size` bytes: hugepages-2Mi."""
    return HUGE + quantity.canonical(f"{size // 1024}Ki")


def pods(machine: Machine, config: Config) -> int:
    """How many pods the node takes: maxPods, or fewer where podsPerCore says so."""
    if config.pods_per_core:
        return min(config.max_pods, config.pods_per_core * machine.cpus)
    return config.max_pods


def reserved(table: dict[str, int] | None, config: Config) -> dict[str, int]:
    """milli-cores, bytes and pids that the configuration keeps back, added to `table`."""
    answer = dict(table or {})
    for source in (config.kube_reserved, config.system_reserved):
        for name, text in source.items():
            if name == "cpu" and config.reserved_system_cpus:
                continue  # upstream: the list of processors takes the place of both numbers
            amount = quantity.milli(text) if name == "cpu" else quantity.value(text)
            answer[name] = answer.get(name, 0) + amount
    if config.reserved_system_cpus:
        answer["cpu"] = answer.get("cpu", 0) + 1000 * len(cpus_of(config.reserved_system_cpus))
    return answer


def capacity(machine: Machine, config: Config) -> dict[str, str]:
    """status.capacity of the Node."""
    return {
        "cpu": str(machine.cpus),
        "memory": f"{machine.memory // 1024}Ki",
        "ephemeral-storage": f"{machine.disk // 1024}Ki",
        "pods": str(pods(machine, config)),
        **{huge_name(size): _bytes(total) for size, total in machine.huge_pages},
    }


def allocatable(machine: Machine, config: Config) -> dict[str, str]:
    """status.allocatable of the Node."""
    evicted = {"memory": 0, "ephemeral-storage": 0}
    whole = {"memory": machine.memory, "ephemeral-storage": machine.disk}
    names = {thresholds.MEMORY: "memory", thresholds.NODE_FS: "ephemeral-storage"}
    for threshold in thresholds.parse(config):
        if threshold.hard and threshold.signal in names:
            name = names[threshold.signal]
            evicted[name] += threshold.least.of(whole[name])
    kept = reserved(evicted, config)
    huge = sum(total for _, total in machine.huge_pages)
    return {
        "cpu": quantity.format_milli(max(0, machine.cpus * 1000 - kept.get("cpu", 0))),
        "memory": f"{max(0, machine.memory - huge - kept['memory']) // 1024}Ki",
        "ephemeral-storage": str(max(0, machine.disk - kept["ephemeral-storage"])),
        "pods": str(pods(machine, config)),
        **{
            huge_name(size): _bytes(max(0, total - kept.get(huge_name(size), 0)))
            for size, total in machine.huge_pages
        },
    }


def pods_limits(machine: Machine, config: Config) -> dict[str, Any]:
    """OCI's linux.resources of the cgroup that all pods are in, where enforceNodeAllocatable says "pods"."""
    from kubelet_py.pods.resources import shares

    kept = reserved(None, config)
    limits: dict[str, Any] = {
        "cpu": {"shares": shares(max(0, machine.cpus * 1000 - kept.get("cpu", 0)))},
        "memory": {"limit": max(0, machine.memory - kept.get("memory", 0))},
    }
    if kept.get("pid"):
        limits["pids"] = {"limit": max(1, machine.max_pids - kept["pid"])}
    return limits


def reserved_limits(table: dict[str, str], cpus: str = "") -> dict[str, Any]:
    """linux.resources of the cgroup that kubeReserved or systemReserved is about."""
    from kubelet_py.pods.resources import shares

    limits: dict[str, Any] = {}
    if "cpu" in table or cpus:
        milli = 1000 * len(cpus_of(cpus)) if cpus else quantity.milli(table["cpu"])
        limits["cpu"] = {"shares": shares(milli)}
    if "memory" in table:
        limits["memory"] = {"limit": quantity.value(table["memory"])}
    if "pid" in table:
        limits["pids"] = {"limit": quantity.value(table["pid"])}
    return limits


def _bytes(number: int) -> str:
    return quantity.canonical(f"{number // 1024}Ki")
