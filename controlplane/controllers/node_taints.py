"""Which taints a node carries for its state, and how long a pod may stay on a tainted node. Pure.

NoSchedule keeps new pods away, NoExecute also sends away those that are there. Source: upstream's
node_lifecycle_controller.go (nodeConditionToTaintKeyStatusMap), taint_eviction.go (getMinTolerationTime).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controlplane.controllers.base import Object
from controlplane.scheduler.filters import UNSCHEDULABLE_TAINT, tolerated

NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"  # set by a person who knows that the machine is off
TAINTS = {"False": NOT_READY, "Unknown": UNREACHABLE}
# Condition, status, and the NoSchedule taint that follows.
NO_SCHEDULE = (
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
)
OURS = frozenset(
    [(key, "NoSchedule") for _, _, key in NO_SCHEDULE]
    + [(key, "NoExecute") for key in TAINTS.values()]
    + [(UNSCHEDULABLE_TAINT, "NoSchedule")]
)


def wanted_taints(statuses: Mapping[str, str], unschedulable: bool, *, evict: bool = True) -> list[Object]:
    """The taints a node carries for its conditions (type → status) and its cordon, in upstream's order;
    without `evict` none that sends pods away."""
    keys = [key for kind, status, key in NO_SCHEDULE if statuses.get(kind) == status]
    taints = [{"key": key, "effect": "NoSchedule"} for key in keys]
    if unschedulable:
        taints.append({"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"})
    silent = TAINTS.get(statuses.get("Ready", "False"))
    return [*taints, {"key": silent, "effect": "NoExecute"}] if silent and evict else taints


def change_taints(
    present: Sequence[Object],
    statuses: Mapping[str, str],
    now: str,
    *,
    unschedulable: bool = False,
    evict: bool = True,
) -> list[Object] | None:
    """The node's taints with ours corrected, or None where they are right already."""
    wanted = wanted_taints(statuses, unschedulable, evict=evict)
    have = {(t["key"], t["effect"]): t for t in present if (t["key"], t["effect"]) in OURS}
    if set(have) == {(t["key"], t["effect"]) for t in wanted}:
        return None
    stamped = [have.get((t["key"], t["effect"]), {**t, "timeAdded": now}) for t in wanted]
    return [t for t in present if (t["key"], t["effect"]) not in OURS] + stamped


def sends_away(node: Object) -> bool:
    """Whether the node carries one of our NoExecute taints."""
    return any(taint["key"] in TAINTS.values() for taint in no_execute(node))


def no_execute(node: Object) -> list[Object]:
    return [t for t in node["spec"].get("taints") or [] if t["effect"] == "NoExecute"]


def eviction_delay(pod: Object, taints: Sequence[Object]) -> float | None:
    """Seconds from the taint's start to the pod's end: 0 without a toleration, None for ever."""
    delays: list[float] = []
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        matching = [t for t in pod["spec"].get("tolerations") or [] if tolerated(taint, [t])]
        if not matching:
            return 0.0
        limits = [float(t["tolerationSeconds"]) for t in matching if t.get("tolerationSeconds") is not None]
        if limits:
            delays.append(max(0.0, min(limits)))
    return min(delays) if delays else None


def statuses_of(node: Object) -> dict[str, str]:
    """The node's conditions: type → status."""
    return {c["type"]: str(c["status"]) for c in (node.get("status") or {}).get("conditions") or []}
