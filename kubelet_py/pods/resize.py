"""PURE: in-place resize: what was asked, what the node gave, what the kernel has, and what the API shows.

Three states of a container's resources: *wanted* (the spec in the API), *allocated* (what the node has agreed
to, which everything else here works with), *actual* (the cgroup's). A resize the node cannot give at all is
Infeasible, one that it cannot give now is Deferred. Source: KEP-1287 as of upstream 1.33
(allocation manager, kuberuntime's computePodResizeAction, convertContainerStatusResources).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from kubeclient import quantity
from kubelet_py.pods import resources
from kubelet_py.pods.model import Object, containers, init_containers, is_restartable
from runtime.cgroups.files import CgroupLimits, weight_of_shares

Table = dict[str, Object]
"""By container: its `resources`, as the API writes them."""

DEFERRED, INFEASIBLE = "Deferred", "Infeasible"
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"


@dataclass(frozen=True, slots=True)
class Held:
    """Why a resize is not given: DEFERRED or INFEASIBLE, and the numbers."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What the pod's conditions say: a resize that waits, one under way, and what went wrong with it."""

    held: Held | None = None
    under_way: bool = False
    error: str = ""


def resizable(pod: Object) -> list[Object]:
    """The containers that run on: the main ones and the sidecars."""
    return containers(pod) + [c for c in init_containers(pod) if is_restartable(c)]


def table(pod: Object) -> Table:
    """What the containers of this spec ask for; {} where none asks for anything."""
    found = {c["name"]: dict(c.get("resources") or {}) for c in resizable(pod)}
    return found if any(found.values()) else {}


def told(pod: Object) -> Table:
    """What the containers have by the status that this node wrote last; the spec's where it says nothing."""
    known = {
        entry["name"]: entry
        for key in ("containerStatuses", "initContainerStatuses")
        for entry in (pod.get("status") or {}).get(key) or ()
        if entry.get("resources")
    }
    answer = table(pod)
    for name in answer:
        entry = known.get(name)
        if entry is not None:
            # A request is only asked for, and not in any file of the kernel: what was agreed to counts.
            requests = entry.get("allocatedResources")
            answer[name] = {**entry["resources"], **({"requests": requests} if requests else {})}
    return answer


def with_resources(pod: Object, allocated: Table) -> Object:
    """The same pod with the allocated resources in its containers."""
    spec = dict(pod["spec"])
    for group in ("containers", "initContainers"):
        if group in spec:
            spec[group] = [
                {**c, "resources": allocated[c["name"]]} if c["name"] in allocated else c for c in spec[group]
            ]
    return {**pod, "spec": spec}


def infeasible(pod: Object, allocatable: Mapping[str, str]) -> Held | None:
    """What the node could not even give to this pod alone."""
    wanted = resources.pod_requests(pod)
    for name in ("cpu", "memory"):
        capacity = resources.amount(name, allocatable.get(name, "0"))
        if wanted[name] > capacity:
            numbers = f"requested: {wanted[name]}, capacity: {capacity}"
            return Held(INFEASIBLE, f"Node didn't have enough capacity: {name}, {numbers}")
    return None


def cpus_of(actual: CgroupLimits) -> Fraction | None:
    """Processors that a cgroup may use, exactly; None without a limit."""
    return Fraction(actual.quota, actual.period) if actual.quota > 0 and actual.period else None


def differing(expected: Mapping[str, Any], actual: CgroupLimits) -> frozenset[str]:
    """ "cpu" and "memory": where a cgroup has other values than `expected` (OCI's linux.resources)."""
    found = set()
    cpu = expected.get("cpu") or {}
    if actual.shares and not _same_shares(int(cpu["shares"]), actual):
        found.add("cpu")
    share = Fraction(cpu["quota"], cpu["period"]) if "quota" in cpu else None
    if actual.shares and share != cpus_of(actual):
        found.add("cpu")
    limit = (expected.get("memory") or {}).get("limit")
    if actual.memory_known and _pages(limit) != _pages(actual.memory):
        found.add("memory")
    return frozenset(found)


def _same_shares(wanted: int, actual: CgroupLimits) -> bool:
    if actual.by_weight:  # cgroup v2: several shares are one weight
        return weight_of_shares(wanted) == weight_of_shares(actual.shares)
    return wanted == actual.shares


def _pages(number: int | None) -> int | None:
    """The kernel counts memory limits in whole pages."""
    return None if number is None else number // resources.PAGE


def restarts(container: Object, changed: frozenset[str]) -> bool:
    """Whether the container has to be started anew for a change of these resources."""
    return any(
        entry.get("resourceName") in changed and entry.get("restartPolicy") == "RestartContainer"
        for entry in container.get("resizePolicy") or ()
    )


def grows(expected: Mapping[str, Any], actual: CgroupLimits) -> dict[str, Any]:
    """The part of a pod's own new limits to set before its containers': what becomes more, or unlimited."""
    first: dict[str, Any] = {}
    cpu = expected.get("cpu") or {}
    cpus = cpus_of(actual)
    if cpus is not None:
        if "quota" not in cpu:
            first["cpu"] = {"quota": -1}
        elif Fraction(cpu["quota"], cpu["period"]) > cpus:
            first["cpu"] = {"quota": cpu["quota"], "period": cpu["period"]}
    limit = (expected.get("memory") or {}).get("limit")
    if actual.memory is not None and (limit is None or limit > actual.memory):
        first["memory"] = {"limit": -1 if limit is None else limit}
    return first


def whole(expected: Mapping[str, Any], *, protected: bool = False) -> dict[str, Any]:
    """cpu and memory of `expected`, with "no limit" said; `protected`: what MemoryQoS sets as well."""
    cpu = {"quota": -1, **expected["cpu"]}
    answer = {"cpu": cpu, "memory": {"limit": -1, **(expected.get("memory") or {})}}
    if protected:
        answer["unified"] = {"memory.min": "0", "memory.high": "max", **(expected.get("unified") or {})}
    return answer


def shown(allocated: Object, actual: CgroupLimits | None) -> Object:
    """`allocatedResources` and `resources` of a container's status; actual None: it does not run."""
    answer: Object = {}
    if allocated.get("requests"):
        answer["allocatedResources"] = dict(allocated["requests"])
    if allocated:
        answer["resources"] = {
            key: dict(allocated[key]) for key in ("limits", "requests") if allocated.get(key)
        }
    if actual is not None and allocated:
        _correct(answer["resources"], allocated, actual)
    return answer


def _correct(seen: Object, allocated: Object, actual: CgroupLimits) -> None:
    """Replace what the kernel has otherwise; what only differs by rounding keeps its text."""
    limits, requests = dict(seen.get("limits") or {}), dict(seen.get("requests") or {})
    container = {"resources": allocated}
    wanted, asked = resources.limits_of(container), resources.requests_of(container)
    cpus = cpus_of(actual)
    if cpus is not None:
        milli = int(cpus * 1000)
        if max(wanted["cpu"], 10) != milli:
            limits["cpu"] = quantity.format_milli(milli)
    elif actual.shares:
        limits.pop("cpu", None)
    if actual.memory is not None:
        if _pages(wanted["memory"]) != _pages(actual.memory):
            limits["memory"] = quantity.written(Fraction(actual.memory), like="1Ki")
    elif actual.memory_known:
        limits.pop("memory", None)
    if requests.get("cpu") and actual.shares and not _same_shares(resources.shares(asked["cpu"]), actual):
        requests["cpu"] = quantity.format_milli(-(-actual.shares * 1000 // 1024))
    for key, found in (("limits", limits), ("requests", requests)):
        if found:
            seen[key] = found
        else:
            seen.pop(key, None)


def conditions(progress: Progress) -> dict[str, Object]:
    """PodResizePending and PodResizeInProgress, as far as they are True (they are absent else)."""
    found: dict[str, Object] = {}
    if progress.held is not None:
        held = progress.held
        found[PENDING] = {"status": "True", "reason": held.reason, "message": held.message}
    if progress.under_way:
        found[IN_PROGRESS] = {"status": "True"}
    if progress.error:
        found[IN_PROGRESS] = {"status": "True", "reason": "Error", "message": progress.error}
    return found
