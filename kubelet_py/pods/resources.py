"""From requests and limits to QoS class, cgroup values and oom_score_adj. Pure.

Sources: upstream's qos.GetPodQOS, cm.ResourceConfigForPod, qos.GetContainerOOMScoreAdjust. Values are OCI's
`linux.resources` (shares, quota, bytes); the cgroup driver turns them into v1 or v2 files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from kubeclient import quantity
from kubelet_py.pods.model import Object, containers, init_containers, is_restartable

GUARANTEED, BURSTABLE, BEST_EFFORT = "Guaranteed", "Burstable", "BestEffort"
MIN_SHARES, MAX_SHARES = 2, 262144
MIN_QUOTA_US = 1000
SYSTEM_CRITICAL = 2_000_000_000


def qos_class(pod: Object) -> str:
    """Guaranteed when every container has equal cpu and memory limits and requests; BestEffort with none."""
    requests: Counter[str] = Counter()
    limits: Counter[str] = Counter()
    all_limited = True
    for container in containers(pod) + init_containers(pod):
        resources = container.get("resources") or {}
        for table, total in ((resources.get("requests"), requests), (resources.get("limits"), limits)):
            for name in ("cpu", "memory"):
                amount = quantity.milli((table or {}).get(name, "0"))
                total[name] += amount
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


def container_resources(container: Object, *, cfs_quota: bool, period_us: int, pids: int) -> dict[str, Any]:
    """One container's `linux.resources`."""
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    cpu: dict[str, Any] = {"shares": shares(quantity.milli(requests.get("cpu", limits.get("cpu", "0"))))}
    limit = quantity.milli(limits.get("cpu", "0"))
    if limit and cfs_quota:
        cpu |= {"quota": max(MIN_QUOTA_US, limit * period_us // 1000), "period": period_us}
    answer: dict[str, Any] = {"cpu": cpu}
    memory = quantity.value(limits.get("memory", "0"))
    if memory:
        # OCI's swap is memory plus swap: the same number leaves no swap to evade the limit into.
        answer["memory"] = {"limit": memory, "swap": memory}
    if pids > 0:
        answer["pids"] = {"limit": pids}
    return answer


def pod_resources(pod: Object, *, cfs_quota: bool, period_us: int, pids: int) -> dict[str, Any]:
    """The pod's own cgroup: sums of its containers; a limit only where every container has one."""
    total_shares, cpu_limit, memory_limit = 0, 0, 0
    cpu_bounded = memory_bounded = True
    running = containers(pod) + [c for c in init_containers(pod) if is_restartable(c)]
    for container in running:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        total_shares += quantity.milli(requests.get("cpu", limits.get("cpu", "0")))
        cpu, memory = quantity.milli(limits.get("cpu", "0")), quantity.value(limits.get("memory", "0"))
        cpu_bounded &= bool(cpu)
        memory_bounded &= bool(memory)
        cpu_limit, memory_limit = cpu_limit + cpu, memory_limit + memory
    for container in init_containers(pod):
        limits = (container.get("resources") or {}).get("limits") or {}
        cpu_limit = max(cpu_limit, quantity.milli(limits.get("cpu", "0")))
        memory_limit = max(memory_limit, quantity.value(limits.get("memory", "0")))
    answer: dict[str, Any] = {"cpu": {"shares": shares(total_shares)}}
    if cpu_bounded and cfs_quota:
        answer["cpu"] |= {"quota": max(MIN_QUOTA_US, cpu_limit * period_us // 1000), "period": period_us}
    if memory_bounded:
        answer["memory"] = {"limit": memory_limit}
    if pids > 0:
        answer["pids"] = {"limit": pids}
    return answer


def oom_score_adj(pod: Object, container: Object, capacity_bytes: int) -> int:
    """-997 Guaranteed, 1000 BestEffort, between 3 and 999 Burstable: less for a larger memory request."""
    if int(pod["spec"].get("priority") or 0) >= SYSTEM_CRITICAL:
        return -997
    kind = qos_class(pod)
    if kind == GUARANTEED:
        return -997
    if kind == BEST_EFFORT:
        return 1000
    request = quantity.value(((container.get("resources") or {}).get("requests") or {}).get("memory", "0"))
    score = 1000 - 1000 * request // max(1, capacity_bytes)
    return max(3, min(999, score))


def pod_cgroup(root: str, pod: Object) -> str:
    """Path below the hierarchies' roots, as upstream's cgroupfs driver; Guaranteed pods have no QoS level."""
    kind = qos_class(pod)
    level = "" if kind == GUARANTEED else f"/{kind.lower()}"
    return f"{root}/kubepods{level}/pod{pod['metadata']['uid']}"


def merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Two `linux.resources`, the second winning key by key one level deep."""
    answer: dict[str, Any] = dict(defaults)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(answer.get(key), Mapping)
        answer[key] = {**answer[key], **value} if both else value
    return answer
