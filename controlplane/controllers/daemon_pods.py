"""On which nodes a DaemonSet has a pod, which pods go, and what a pod looks like. Pure.

A daemon's pod is pinned to its node by affinity to the node's name, and the scheduler binds it like any
other. It tolerates what daemons are there to mend: nodes that are silent, under pressure or cordoned. A pod
that is ending keeps its place until it is gone. Source: upstream's pkg/controller/daemon
(daemon_controller.go, update.go, util/daemonset_util.go).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.controllers.base import Object
from controlplane.controllers.pod_ownership import pod_from_template
from controlplane.controllers.pod_readiness import available_in, is_ready
from controlplane.controllers.rollout import scaled
from controlplane.scheduler import filters
from kubeclient.resources import DAEMON_SETS

HASH = "controller-revision-hash"
TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
NETWORK_TAINT = ("node.kubernetes.io/network-unavailable", "NoSchedule")


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes to make a pod for, pods to delete, and pods that ended and are deleted to be made anew."""

    create: tuple[str, ...] = ()
    delete: tuple[Object, ...] = ()
    ended: tuple[Object, ...] = ()


def make_pod(daemon_set: Object, node: str, revision: str) -> Object:
    """The pod for that node; only the node's affinity of the template that is required gives way."""
    made = pod_from_template(daemon_set["spec"]["template"], daemon_set, DAEMON_SETS)
    metadata, spec = made["metadata"], made["spec"]
    metadata["labels"] = {**(metadata.get("labels") or {}), HASH: revision}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    pinned = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": [pinned]}
    spec["tolerations"] = tolerations(spec)
    return made


def tolerations(spec: Object) -> list[Object]:
    """The template's tolerations, and those of every daemon where they are not there already."""
    present: list[Object] = list(spec.get("tolerations") or [])
    for key, effect in (*TOLERATED, *([NETWORK_TAINT] if spec.get("hostNetwork") else [])):
        own = {"key": key, "operator": "Exists", "effect": effect}
        present = [t for t in present if (t.get("key"), t.get("effect")) != (key, effect)]
        present.append(own)
    return present


def place_of(pod: Object) -> str:
    """The node that a pod runs on or is pinned to; "" for neither."""
    spec = pod["spec"]
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field["key"] == "metadata.name" and field["operator"] == "In" and len(field["values"]) == 1:
                return str(field["values"][0])
    return ""


def belongs(daemon_set: Object, node: Object) -> tuple[bool, bool]:
    """(a pod should run there, one that runs may stay): taints without NoExecute spare those that run."""
    template = daemon_set["spec"]["template"]["spec"]
    pod = {"spec": {**template, "tolerations": tolerations(template)}}
    view, nothing = filters.node_view(node, ()), filters.Requests({}, frozenset())
    if filters.node_name(pod, nothing, view) or filters.node_affinity(pod, nothing, view):
        return False, False
    untolerated = [
        taint["effect"]
        for taint in node["spec"].get("taints") or []
        if taint["effect"] in ("NoSchedule", "NoExecute")
        and not filters.tolerated(taint, pod["spec"]["tolerations"])
    ]
    return not untolerated, "NoExecute" not in untolerated


def plan(
    daemon_set: Object, nodes: Mapping[str, Object], pods: Sequence[Object], revision: str, now: float
) -> Plan:
    """What is missing and what is too much; updating is `update`'s."""
    create: list[str] = []
    delete: list[Object] = []
    ended: list[Object] = []
    placed = by_node(pods)
    for name, node in nodes.items():
        should, may_stay = belongs(daemon_set, node)
        here = placed.get(name, [])
        if should and not here:
            create.append(name)
        elif not may_stay:
            delete += [pod for pod in here if not ending(pod)]
        else:
            over = [pod for pod in here if not ending(pod) and finished(pod)]
            ended += over
            running = [pod for pod in here if not ending(pod) and pod not in over]
            delete += _too_many(daemon_set, running, revision, now)
    homeless = [pod for name, here in placed.items() if name not in nodes for pod in here]
    delete += [pod for pod in homeless if not pod["spec"].get("nodeName") and not ending(pod)]
    return Plan(tuple(create), tuple(delete), tuple(ended))


def _too_many(daemon_set: Object, running: Sequence[Object], revision: str, now: float) -> Sequence[Object]:
    """All but the oldest; with a surge the oldest of each template, of the old until the new serves."""
    if not surge(daemon_set, 1):
        return running[1:]
    new = [pod for pod in running if revision_of(pod) == revision]
    old = [pod for pod in running if revision_of(pod) != revision]
    served = bool(new) and _available(daemon_set, new[0], now)
    return [*new[1:], *(old if served else old[1:])]


def update(
    daemon_set: Object, nodes: Mapping[str, Object], pods: Sequence[Object], revision: str, now: float
) -> Plan:
    """The next step of a rolling update: old pods to delete, or with a surge nodes that get a second pod."""
    if (daemon_set["spec"].get("updateStrategy") or {}).get("type") == "OnDelete":
        return Plan()
    placed = by_node(pods)
    desired = [name for name, node in nodes.items() if belongs(daemon_set, node)[0]]
    if room := surge(daemon_set, len(desired)):
        return _surging(daemon_set, desired, placed, revision, room, now)
    return _replacing(daemon_set, desired, placed, revision, now)


def _replacing(
    daemon_set: Object,
    desired: Sequence[str],
    placed: Mapping[str, Sequence[Object]],
    revision: str,
    now: float,
) -> Plan:
    """Old pods that do not serve go at once; of those that do only so many that few enough are missing."""
    rolling = (daemon_set["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    missing, at_once, candidates = 0, [], []
    for name in desired:
        here = placed.get(name, ())
        staying = [pod for pod in here if not ending(pod)]
        if len(here) != 1 or not staying:
            missing += 1
        elif revision_of(staying[0]) == revision:
            missing += not _available(daemon_set, staying[0], now)
        elif _available(daemon_set, staying[0], now):
            candidates.append(staying[0])
        else:
            missing += 1
            at_once.append(staying[0])
    most = scaled(rolling.get("maxUnavailable", 1), len(desired), up=True)
    return Plan(delete=(*at_once, *candidates[: max(0, most - missing)]))


def _surging(
    daemon_set: Object,
    desired: Sequence[str],
    placed: Mapping[str, Sequence[Object]],
    revision: str,
    room: int,
    now: float,
) -> Plan:
    extra, at_once, candidates = 0, [], []
    for name in desired:
        here = placed.get(name, ())
        new = [pod for pod in here if revision_of(pod) == revision]
        old = [pod for pod in here if revision_of(pod) != revision and not ending(pod)]
        if new:
            extra += not _available(daemon_set, new[0], now)
        elif old and _available(daemon_set, old[0], now):
            candidates.append(name)
        elif here:
            at_once.append(name)  # nothing there serves
    return Plan(create=(*at_once, *candidates[: max(0, room - extra)]))


def surge(daemon_set: Object, desired: int) -> int:
    """How many nodes may have a second pod during an update; 0 where pods are deleted first."""
    strategy = daemon_set["spec"].get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return 0
    return scaled((strategy.get("rollingUpdate") or {}).get("maxSurge", 0), desired, up=True)


def by_node(pods: Sequence[Object]) -> dict[str, list[Object]]:
    """Pods by their place; bound ones first, then the oldest."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        if place := place_of(pod):
            found.setdefault(place, []).append(pod)
    for here in found.values():
        here.sort(key=lambda p: (not p["spec"].get("nodeName"), p["metadata"].get("creationTimestamp", "")))
    return found


def revision_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(HASH, ""))


def ending(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def _available(daemon_set: Object, pod: Object, now: float) -> bool:
    quiet = int(daemon_set["spec"].get("minReadySeconds", 0))
    return not ending(pod) and available_in(pod, quiet, now) == 0.0


def status(
    daemon_set: Object, nodes: Mapping[str, Object], pods: Sequence[Object], revision: str, now: float
) -> Object:
    """The status that the DaemonSet should show; of a node's pods the one of the new template counts."""
    placed = by_node(pods)
    counts = dict.fromkeys(("desired", "current", "mis", "ready", "updated", "available"), 0)
    for name, node in nodes.items():
        should, _ = belongs(daemon_set, node)
        here = [pod for pod in placed.get(name, []) if not finished(pod)]
        counts["mis"] += bool(here) and not should
        if not should:
            continue
        counts["desired"] += 1
        counts["current"] += bool(here)
        staying = [pod for pod in here if not ending(pod)]
        counts["ready"] += any(is_ready(pod) for pod in staying)
        counts["available"] += any(_available(daemon_set, pod, now) for pod in staying)
        counts["updated"] += any(revision_of(pod) == revision for pod in staying)
    shown = {
        "currentNumberScheduled": counts["current"],
        "desiredNumberScheduled": counts["desired"],
        "numberMisscheduled": counts["mis"],
        "numberReady": counts["ready"],
        "observedGeneration": daemon_set["metadata"].get("generation", 0),
    }
    optional = {
        "updatedNumberScheduled": counts["updated"],
        "numberAvailable": counts["available"],
        "numberUnavailable": counts["desired"] - counts["available"],
        "collisionCount": int((daemon_set.get("status") or {}).get("collisionCount", 0)),
    }
    return shown | {name: count for name, count in optional.items() if count}
