"""What a StatefulSet does next, and what its pods are called and look like. Pure.

A pod's name is its identity: `web-0` has a host name, a DNS name and claims that outlive it. So there is
never a second `web-0` while the API has a first, not even one that is ending on a node that nobody hears of:
its processes may still run. In order (OrderedReady) a pod is made when all before it are available, and
removed when all others are well. Source: upstream's stateful_set_control.go, stateful_set_utils.go.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controlplane.controllers.base import Object
from controlplane.controllers.pod_ownership import pod_from_template
from controlplane.controllers.pod_readiness import available_in, is_ready
from kubeclient.resources import STATEFUL_SETS

POD_NAME, POD_INDEX = "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"
REVISION = "controller-revision-hash"
SHOWN_AS_ZERO = ("replicas", "availableReplicas")


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordinals to make pods for, and pods to delete; the rest waits for what these change."""

    create: tuple[int, ...] = ()
    delete: tuple[Object, ...] = ()


def ordinal_of(set_name: str, pod_name: str) -> int | None:
    """3 for web-3 of web; None for a name that is no identity of the set."""
    parent, dash, number = pod_name.rpartition("-")
    plain = number.isascii() and number.isdigit() and str(int(number)) == number
    return int(number) if dash and parent == set_name and plain else None


def ordinals(stateful_set: Object) -> range:
    spec = stateful_set["spec"]
    first = int((spec.get("ordinals") or {}).get("start", 0))
    return range(first, first + int(spec.get("replicas", 1)))


def plan(stateful_set: Object, pods: Mapping[int, Object], update_revision: str, now: float) -> Plan:
    """The next steps towards the set, its pods given by their ordinals."""
    ordered = stateful_set["spec"].get("podManagementPolicy", "OrderedReady") != "Parallel"
    grown, blocked = _grow(stateful_set, pods, ordered, now)
    if blocked:
        return grown
    shrunk, blocked = _shrink(stateful_set, pods, ordered)
    found = Plan(grown.create, grown.delete + shrunk.delete)
    if blocked or found.create:
        return found
    return Plan((), found.delete + _replace(stateful_set, pods, update_revision))


def _grow(stateful_set: Object, pods: Mapping[int, Object], ordered: bool, now: float) -> tuple[Plan, bool]:
    """What is missing or finished, and whether nothing else may happen before that is made good."""
    create, delete = [], []
    quiet = int(stateful_set["spec"].get("minReadySeconds", 0))
    for ordinal in ordinals(stateful_set):
        pod = pods.get(ordinal)
        if pod is None:
            create.append(ordinal)
        elif _phase(pod) in ("Failed", "Succeeded") and not ending(pod):
            delete.append(pod)
        elif not ordered or (healthy(pod) and available_in(pod, quiet, now) == 0.0):
            continue
        if ordered:
            return Plan(tuple(create), tuple(delete)), True
    return Plan(tuple(create), tuple(delete)), False


def _shrink(stateful_set: Object, pods: Mapping[int, Object], ordered: bool) -> tuple[Plan, bool]:
    """Pods that are not asked for any more, the highest ordinal first."""
    condemned = [n for n in sorted(pods, reverse=True) if n not in ordinals(stateful_set)]
    unwell = min((n for n in pods if not healthy(pods[n])), default=None)
    delete = []
    for ordinal in condemned:
        pod = pods[ordinal]
        if ending(pod) or (ordered and not healthy(pod) and ordinal != unwell):
            if ordered:
                return Plan(), True
            continue
        delete.append(pod)
        if ordered:
            return Plan((), tuple(delete)), True
    return Plan((), tuple(delete)), False


def _replace(stateful_set: Object, pods: Mapping[int, Object], update_revision: str) -> tuple[Object, ...]:
    """A rolling update: the highest pod of another revision, once all above it are well."""
    strategy = stateful_set["spec"].get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return ()
    for ordinal in reversed(ordinals(stateful_set)):
        if ordinal < _first_updated(stateful_set):
            break
        pod = pods[ordinal]
        if revision_of(pod) != update_revision and not ending(pod):
            return (pod,)
        if not healthy(pod):
            break
    return ()


def _first_updated(stateful_set: Object) -> int:
    rolling = (stateful_set["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    return ordinals(stateful_set).start + int(rolling.get("partition") or 0)


def revision_for(stateful_set: Object, ordinal: int, current: str, update: str) -> str:
    """Which revision a new pod gets: those below the partition keep the current one."""
    rolls = (stateful_set["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
    return current if rolls and ordinal < _first_updated(stateful_set) else update


def revision_of(pod: Object) -> str:
    return str((pod["metadata"].get("labels") or {}).get(REVISION, ""))


def ending(pod: Object) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def healthy(pod: Object) -> bool:
    return _phase(pod) == "Running" and is_ready(pod) and not ending(pod)


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def make_pod(stateful_set: Object, template: Object, ordinal: int, revision: str) -> Object:
    """The pod of that identity: named, labelled, with a host name and its own claims."""
    made = pod_from_template(template, stateful_set, STATEFUL_SETS)
    name = f"{stateful_set['metadata']['name']}-{ordinal}"
    metadata, spec = made["metadata"], made["spec"]
    del metadata["generateName"]
    metadata["name"] = name
    identity = {POD_NAME: name, POD_INDEX: str(ordinal), REVISION: revision}
    metadata["labels"] = {**(metadata.get("labels") or {}), **identity}
    spec["hostname"] = name
    if stateful_set["spec"].get("serviceName"):
        spec["subdomain"] = stateful_set["spec"]["serviceName"]
    names = (template["metadata"]["name"] for template in _claim_templates(stateful_set))
    claims = (claim["metadata"]["name"] for claim in make_claims(stateful_set, ordinal))
    own = dict(zip(names, claims, strict=True))
    others = [volume for volume in spec.get("volumes") or [] if volume["name"] not in own]
    ours = [{"name": volume, "persistentVolumeClaim": {"claimName": claim}} for volume, claim in own.items()]
    if others or ours:
        spec["volumes"] = others + ours
    return made


def make_claims(stateful_set: Object, ordinal: int) -> list[Object]:
    """The claims of an identity, named after template, set and ordinal."""
    name = stateful_set["metadata"]["name"]
    found = []
    for template in _claim_templates(stateful_set):
        claim = copy.deepcopy(template)
        claim.pop("status", None)
        metadata = claim["metadata"]
        metadata["name"] = f"{metadata['name']}-{name}-{ordinal}"
        chosen = stateful_set["spec"]["selector"].get("matchLabels") or {}
        metadata["labels"] = {**(metadata.get("labels") or {}), **chosen}
        found.append(claim)
    return found


def _claim_templates(stateful_set: Object) -> Sequence[Object]:
    return stateful_set["spec"].get("volumeClaimTemplates") or ()


def claim_owner(stateful_set: Object, ordinal: int, pod: Object | None) -> Object | None:
    """Who takes the claims along when it goes (persistentVolumeClaimRetentionPolicy); None: nobody."""
    policy = stateful_set["spec"].get("persistentVolumeClaimRetentionPolicy") or {}
    owner: Object | None = None
    if policy.get("whenScaled") == "Delete" and ordinal not in ordinals(stateful_set):
        owner = {"apiVersion": "v1", "kind": "Pod", **_named(pod)} if pod is not None else None
    elif policy.get("whenDeleted") == "Delete":
        owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", **_named(stateful_set)}
    return owner


def _named(obj: Object) -> Object:
    return {"name": obj["metadata"]["name"], "uid": obj["metadata"]["uid"]}


def status(stateful_set: Object, pods: Sequence[Object], current: str, update: str, now: float) -> Object:
    """The status that the set should show."""
    spec = stateful_set["spec"]
    quiet, wanted = int(spec.get("minReadySeconds", 0)), int(spec.get("replicas", 1))
    running = [pod for pod in pods if _phase(pod) == "Running" and is_ready(pod)]
    staying = [pod for pod in pods if not ending(pod)]
    counts = {
        "replicas": len(pods),
        "readyReplicas": len(running),
        "availableReplicas": sum(available_in(pod, quiet, now) == 0.0 for pod in running),
        "currentReplicas": sum(revision_of(pod) == current for pod in staying),
        "updatedReplicas": sum(revision_of(pod) == update for pod in staying),
    }
    rolls = (spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
    if rolls and counts["updatedReplicas"] == counts["readyReplicas"] == counts["replicas"] == wanted:
        current, counts["currentReplicas"] = update, counts["updatedReplicas"]
    return {
        "observedGeneration": stateful_set["metadata"].get("generation", 0),
        "collisionCount": int((stateful_set.get("status") or {}).get("collisionCount", 0)),
        "currentRevision": current,
        "updateRevision": update,
        **{name: count for name, count in counts.items() if count or name in SHOWN_AS_ZERO},
    }
