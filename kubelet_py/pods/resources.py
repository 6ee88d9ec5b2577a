"""From requests and limits to QoS class, cgroup values and oom_score_adj. Pure.

Sources: upstream's qos.GetPodQOS, component-helpers' PodRequests and PodLimits, cm.ResourceConfigForPod,
kuberuntime's generateLinuxContainerResources, qos.GetContainerOOMScoreAdjust. Values are OCI's
`linux.resources` (shares, quota, bytes); the cgroup driver turns them into v1 or v2 files, or units.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubeclient import quantity
from kubelet_py.pods.model import Object, containers, init_containers, is_mirror, is_restartable, is_static

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"
MIN_SHARES, MAX_SHARES = 2, 262144
MIN_QUOTA_US = 1000
SYSTEM_CRITICAL = 2_000_000_000
KUBEPODS = "kubepods"
COUNTED = ("cpu", "memory", "ephemeral-storage")
HUGE = "hugepages-"
PAGE = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class Rules:
    """How this node turns requests and limits into cgroup values.

    `throttling`: memoryThrottlingFactor where the MemoryQoS gate is on. `allocatable_memory` stands in for
    the limit of containers without one there. `huge_pages`: the sizes of the host's huge pages, in bytes.
    """

    cfs_quota: bool = True
    period_us: int = 100_000
    pids: int = 0
    throttling: float | None = None
    allocatable_memory: int = 0
    huge_pages: tuple[int, ...] = ()


def counted(name: str) -> bool:
    """Is this a resource that the node counts, be it one that only its Node object says it has?"""
    return name in COUNTED or name.startswith(HUGE) or is_extended(name)


def is_extended(name: str) -> bool:
    """Somebody's own resource, like example.com/dongle (upstream: IsExtendedResourceName)."""
    return "/" in name and "kubernetes.io/" not in name and not name.startswith("requests.")


def amount(name: str, text: str) -> int:
    """milli-cores of cpu, bytes of everything else."""
    return quantity.milli(text) if name == "cpu" else quantity.value(text)


def priority(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def is_critical(pod: Object) -> bool:
    """May the node not do without it? (upstream: IsCriticalPod)"""
    return is_static(pod) or is_mirror(pod) or priority(pod) >= SYSTEM_CRITICAL


def pod_level(pod: Object, kind: str) -> dict[str, str]:
    """Requests or limits that the pod's own `resources` give for all its containers together."""
    return dict((pod["spec"].get("resources") or {}).get(kind) or {})


def requests_of(container: Object) -> Counter[str]:
    """What one container asks for; a limit stands in where there is no request."""
    table = container.get("resources") or {}
    texts = {**(table.get("limits") or {}), **(table.get("requests") or {})}
    return Counter({name: amount(name, str(text)) for name, text in texts.items() if counted(name)})


def limits_of(container: Object) -> Counter[str]:
    table = (container.get("resources") or {}).get("limits") or {}
    return Counter({name: amount(name, str(text)) for name, text in table.items() if counted(name)})


def pod_requests(pod: Object) -> Counter[str]:
    """The sum of the containers or the largest init container, with the sidecars, plus the overhead."""
    total = _summed(pod, requests_of)
    own = {**pod_level(pod, "limits"), **pod_level(pod, "requests")}
    for name, text in own.items():
        if counted(name):
            total[name] = amount(name, str(text))
    for name, text in (pod["spec"].get("overhead") or {}).items():
        if counted(name):
            total[name] += amount(name, str(text))
    return total


def pod_limits(pod: Object) -> Counter[str]:
    """The same of the limits; the overhead counts where something is limited at all."""
    total = _summed(pod, limits_of)
    for name, text in pod_level(pod, "limits").items():
        if counted(name):
            total[name] = amount(name, str(text))
    for name, text in (pod["spec"].get("overhead") or {}).items():
        if total[name]:
            total[name] += amount(name, str(text))
    return +total


def _summed(pod: Object, own: Any) -> Counter[str]:
    main: Counter[str] = Counter()
    sidecars: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in containers(pod):
        main.update(own(container))
    for container in init_containers(pod):
        if is_restartable(container):
            sidecars.update(own(container))
            peak |= sidecars
        else:
            peak |= own(container) + sidecars
    return (main + sidecars) | peak


def qos_class(pod: Object) -> str:
    """Guaranteed when every container has equal cpu and memory limits and requests; BestEffort with none."""
    requests: Counter[str] = Counter()
    limits: Counter[str] = Counter()
    all_limited = True
    whole = pod["spec"].get("resources") or {}
    each = [{"resources": whole}] if whole.get("requests") or whole.get("limits") else None
    for container in each or containers(pod) + init_containers(pod):
        resources = container.get("resources") or {}
        for table, total in ((resources.get("requests"), requests), (resources.get("limits"), limits)):
            for name in ("cpu", "memory"):
                total[name] += quantity.milli((table or {}).get(name, "0"))
        own = resources.get("limits") or {}
        if not all(quantity.milli(own.get(name, "0")) for name in ("cpu", "memory")):
            all_limited = False
    if not any(requests.values()) and not any(limits.values()):
        return BEST_EFFORT
    same = all(requests[name] == limits[name] for name in ("cpu", "memory"))
    return GUARANTEED if all_limited and same else BURSTABLE


def shares(milli_cpu: int) -> int:
    """cpu.shares of a request: 1024 a core, at least 2."""
    return max(MIN_SHARES, min(MAX_SHARES, milli_cpu * 1024 // 1000))


def quota(milli_cpu: int, period_us: int) -> int:
    """cpu.cfs_quota_us of a limit; the kernel takes no less than a millisecond."""
    return max(MIN_QUOTA_US, milli_cpu * period_us // 1000)


def container_resources(container: Object, rules: Rules) -> dict[str, Any]:
    """One container's `linux.resources`."""
    requests, limits = requests_of(container), limits_of(container)
    cpu: dict[str, Any] = {"shares": shares(requests["cpu"])}
    if limits["cpu"] and rules.cfs_quota:
        cpu |= {"quota": quota(limits["cpu"], rules.period_us), "period": rules.period_us}
    answer: dict[str, Any] = {"cpu": cpu}
    if limits["memory"]:
        # OCI's swap is memory plus swap: the same number leaves no swap to evade the limit into.
        answer["memory"] = {"limit": limits["memory"], "swap": limits["memory"]}
    if rules.pids > 0:
        answer["pids"] = {"limit": rules.pids}
    if rules.huge_pages:
        answer["hugepageLimits"] = _huge_limits(limits, rules)
    protected = _memory_qos(requests["memory"], limits["memory"], rules)
    if protected:
        answer["unified"] = protected
    return answer


def _huge_limits(limits: Mapping[str, int], rules: Rules) -> list[dict[str, Any]]:
    """Of every size that the host has: nothing, unless the container has a limit."""
    given = {
        quantity.value(name.removeprefix(HUGE)): limits[name] for name in limits if name.startswith(HUGE)
    }
    return [{"pageSize": page_size(size), "limit": given.get(size, 0)} for size in rules.huge_pages]


def page_size(size: int) -> str:
    """As the kernel names it in its files: 2MB, 1GB, 64KB."""
    for unit, name in ((1 << 30, "GB"), (1 << 20, "MB")):
        if size >= unit:
            return f"{size // unit}{name}"
    return f"{size >> 10}KB"


def _memory_qos(request: int, limit: int, rules: Rules) -> dict[str, str]:
    """memory.min and memory.high of the MemoryQoS feature (KEP-2570); only cgroup v2 has the files."""
    if rules.throttling is None:
        return {}
    answer = {"memory.min": str(request)} if request else {}
    bound = limit or rules.allocatable_memory
    if request != limit and bound:
        high = int(request + (bound - request) * rules.throttling) // PAGE * PAGE
        if high > request:
            answer["memory.high"] = str(high)
    return answer


def pod_resources(pod: Object, rules: Rules) -> dict[str, Any]:
    """The pod's own cgroup: sums of its containers; a limit only where every container has one."""
    requests, limits = pod_requests(pod), pod_limits(pod)
    everyone = containers(pod) + init_containers(pod)
    own = pod_level(pod, "limits")
    bounded = {
        name: name in own or all(limits_of(container)[name] for container in everyone)
        for name in ("cpu", "memory")
    }
    answer: dict[str, Any] = {"cpu": {"shares": shares(requests["cpu"])}}
    if bounded["cpu"] and limits["cpu"] and rules.cfs_quota:
        answer["cpu"] |= {"quota": quota(limits["cpu"], rules.period_us), "period": rules.period_us}
    if bounded["memory"] and limits["memory"]:
        answer["memory"] = {"limit": limits["memory"]}
    if rules.pids > 0:
        answer["pids"] = {"limit": rules.pids}
    if rules.huge_pages:
        answer["hugepageLimits"] = _huge_limits(limits, rules)
    if rules.throttling is not None and requests["memory"]:
        answer["unified"] = {"memory.min": str(requests["memory"])}
    return answer


def oom_score_adj(pod: Object, container: Object, capacity_bytes: int) -> int:
    """-997 Guaranteed, 1000 BestEffort, between 3 and 999 Burstable: less for a larger memory request. What
    the pod asks for beyond its containers counts for each of them in equal parts (KEP-2837)."""
    if is_critical(pod) and pod["spec"].get("priorityClassName") == "system-node-critical":
        return -997
    kind = qos_class(pod)
    if kind == GUARANTEED:
        return -997
    if kind == BEST_EFFORT:
        return 1000
    request = _stated_memory(container)
    if is_restartable(container) and any(c["name"] == container["name"] for c in init_containers(pod)):
        # A sidecar does not go before every container that it serves.
        request = max(request, min(_stated_memory(c) for c in containers(pod)))
    score = 1000 - 1000 * (request + _memory_share(pod)) // max(1, capacity_bytes)
    return max(3, min(999, score))


def _stated_memory(container: Object) -> int:
    return quantity.value(((container.get("resources") or {}).get("requests") or {}).get("memory", "0"))


def _memory_share(pod: Object) -> int:
    """Each container's part of the memory that only the pod as a whole asks for."""
    whole = pod_level(pod, "requests").get("memory")
    if not whole:
        return 0
    left = quantity.value(whole) - _summed(pod, requests_of)["memory"]
    return max(0, left) // len(containers(pod) + init_containers(pod))


def pod_cgroup(root: str, pod: Object) -> tuple[str, ...]:
    """The names of the pod's cgroup and of those around it, as upstream. Guaranteed pods have no level."""
    kind = qos_class(pod)
    levels = () if kind == GUARANTEED else (kind.lower(),)
    return (root, KUBEPODS, *levels, f"pod{pod['metadata']['uid']}")


def merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Two `linux.resources`, the second winning key by key one level deep."""
    answer: dict[str, Any] = dict(defaults)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(answer.get(key), Mapping)
        answer[key] = {**answer[key], **value} if both else value
    return answer
