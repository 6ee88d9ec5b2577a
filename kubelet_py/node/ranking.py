"""PURE: which pod goes first when the node runs out of something, and what is said of it.

Source: pkg/kubelet/eviction/helpers.go upstream: orderedBy(exceeds its request, priority, by how much).
A pod of which nothing is known goes before all others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from kubeclient import quantity
from kubelet_py.node.pressure import Observation
from kubelet_py.node.thresholds import COUNTED, Threshold
from kubelet_py.pods import resources
from kubelet_py.pods.model import Object, containers, init_containers, is_restartable

# Upstream's words (pkg/kubelet/eviction/helpers.go).
REASON = "Evicted"
# And its names for limits of a pod's own, where its signals are the node's.
EMPTY_DIR_LIMIT, POD_LIMIT = "emptydirfs.limit", "ephemeralpodfs.limit"
CONTAINER_LIMIT = "ephemeralcontainerfs.limit"


@dataclass(frozen=True, slots=True)
class ContainerUsage:
    """`memory`: the working set in bytes; `disk`: the writable layer and the logs, in bytes."""

    memory: int | None = None
    disk: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What one pod uses now; None: not known. `disk` and `inodes` include volumes and logs, as far as they
    are on the disk in question."""

    memory: int | None = None
    disk: int | None = None
    inodes: int | None = None
    pids: int | None = None
    containers: Mapping[str, ContainerUsage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    uid: str
    pod: Object
    usage: Usage


def rank(resource: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Who is evicted first, stands first. `resource`: memory, ephemeral-storage, inodes or pids."""
    return sorted(candidates, key=lambda candidate: _key(resource, candidate))


def _key(resource: str, candidate: Candidate) -> tuple[bool, bool, int, int]:
    usage, priority = candidate.usage, resources.priority(candidate.pod)
    if resource == "pids":  # nobody can request processes
        return False, False, priority, -(usage.pids or 0)
    amount = {"memory": usage.memory, "ephemeral-storage": usage.disk, "inodes": usage.inodes}[resource]
    if amount is None:
        return False, False, priority, 0
    over = amount - resources.pod_requests(candidate.pod)[resource]
    return True, over <= 0, priority, -over


def message(threshold: Threshold, seen: Mapping[str, Observation], pod: Object, usage: Usage) -> str:
    """Why the pod is evicted."""
    resource = threshold.resource
    text = f"The node was low on resource: {resource}. "
    observation = seen.get(threshold.signal)
    if observation is not None:
        least, left = _least(threshold, observation), _number(threshold.signal, observation.available)
        text += f"Threshold quantity: {least}, available: {left}. "
    sidecars = [c for c in init_containers(pod) if is_restartable(c)]
    for container in containers(pod) + sidecars:
        own = usage.containers.get(container["name"], ContainerUsage())
        amount = {"memory": own.memory, "ephemeral-storage": own.disk}.get(resource)
        request = str(((container.get("resources") or {}).get("requests") or {}).get(resource, "0"))
        if amount is None or amount <= quantity.value(request):
            continue
        text += (
            f"Container {container['name']} was using {binary(amount)}, request is {request}, "
            f"has larger consumption of {resource}. "
        )
    return text


@dataclass(frozen=True, slots=True)
class Overuse:
    """A limit of its own that a pod exceeds: upstream's name for its kind, and its words."""

    signal: str
    message: str


def overused(pod: Object, usage: Usage, volumes: Mapping[str, int]) -> Overuse | None:
    """The first limit of its own on local storage that the pod exceeds.

    `volumes`: bytes in each emptyDir volume, by its name.
    """
    for volume in pod["spec"].get("volumes") or ():
        limit = (volume.get("emptyDir") or {}).get("sizeLimit")
        used = volumes.get(volume["name"])
        if limit and used is not None and used > quantity.value(str(limit)) > 0:
            shown = quantity.canonical(str(limit))
            text = f'Usage of EmptyDir volume "{volume["name"]}" exceeds the limit "{shown}". '
            return Overuse(EMPTY_DIR_LIMIT, text)
    whole = resources.pod_limits(pod)["ephemeral-storage"]
    if whole and usage.disk is not None and usage.disk > whole:
        text = "Pod ephemeral local storage usage exceeds the total limit of containers"
        return Overuse(POD_LIMIT, f"{text} {binary(whole)}. ")
    for container in containers(pod):
        limit = ((container.get("resources") or {}).get("limits") or {}).get("ephemeral-storage")
        own = usage.containers.get(container["name"], ContainerUsage()).disk
        if limit and own is not None and own > quantity.value(str(limit)):
            shown = quantity.canonical(str(limit))
            text = f'Container {container["name"]} exceeded its local ephemeral storage limit "{shown}". '
            return Overuse(CONTAINER_LIMIT, text)
    return None


def bounded(pod: Object) -> bool:
    """Whether the pod has a limit that `overused` would look at."""
    if any((v.get("emptyDir") or {}).get("sizeLimit") for v in pod["spec"].get("volumes") or ()):
        return True
    return any("ephemeral-storage" in resources.limits_of(c) for c in containers(pod) + init_containers(pod))


def binary(number: int) -> str:
    """Bytes as upstream prints them: 104857600 → 100Mi."""
    return quantity.written(Fraction(number), like="1Ki")


def _number(signal: str, number: int) -> str:
    return quantity.written(Fraction(number), like="1") if signal in COUNTED else binary(number)


def _least(threshold: Threshold, observation: Observation) -> str:
    return _number(threshold.signal, threshold.least.of(observation.capacity))
