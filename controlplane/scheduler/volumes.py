"""What a pod's claims say about where it can run. Pure.

A claim that is bound already can only be used where its volume is; one that waits for its first consumer goes
to a free volume that the chosen node can reach, or to its class's provisioner. Messages are those of
upstream's VolumeBinding plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane import claims
from controlplane.scheduler.filters import matches_term
from controlplane.scheduler.pod_affinity import Placed

Object = dict[str, Any]

UNBOUND = "pod has unbound immediate PersistentVolumeClaims"
CONFLICT = "node(s) had volume node affinity conflict"
NOTHING_FREE = "node(s) didn't find available persistent volumes to bind"
ONE_POD = "ReadWriteOncePod"
IN_USE = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"


@dataclass(frozen=True, slots=True)
class Storage:
    """Claims by (namespace, name), volumes and classes by name, and volumes that were promised a moment ago
    (by name, to the uid of a claim)."""

    claims: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    volumes: Mapping[str, Object] = field(default_factory=dict)
    classes: Mapping[str, Object] = field(default_factory=dict)
    promised: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """A claim to be bound before the pod is: to a volume, or (None) by its class's provisioner."""

    claim: Object
    volume: Object | None


def before_nodes(pod: Object, storage: Storage) -> str:
    """What forbids every node, or ""."""
    namespace = pod["metadata"].get("namespace", "")
    for name in claims.claim_names(pod):
        claim = storage.claims.get((namespace, name))
        if claim is None:
            return f'persistentvolumeclaim "{name}" not found'
        if claim["metadata"].get("deletionTimestamp"):
            return f'persistentvolumeclaim "{name}" is being deleted'
        if (claim.get("status") or {}).get("phase") == "Lost":
            return f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume ' \
                   f'"{claim["spec"].get("volumeName", "")}"'
    for claim in _claims(pod, storage):
        if not claims.is_bound(claim) and not _waited_for(claim, storage):
            return UNBOUND
    return ""


def _claims(pod: Object, storage: Storage) -> list[Object]:
    namespace = pod["metadata"].get("namespace", "")
    found = (storage.claims.get((namespace, name)) for name in claims.claim_names(pod))
    return [claim for claim in found if claim is not None]


def _waited_for(claim: Object, storage: Storage) -> bool:
    storage_class = storage.classes.get(claims.class_name(claim)) or {}
    return storage_class.get("volumeBindingMode") == claims.WAITS


def on_node(pod: Object, node: Object, storage: Storage) -> tuple[list[str], list[Choice]]:
    """(what forbids this node, what has to be bound first where nothing does)."""
    choices: list[Choice] = []
    taken: set[str] = set()
    for claim in _claims(pod, storage):
        if claims.is_bound(claim):
            volume = storage.volumes.get(claim["spec"]["volumeName"])
            if volume is None or not reaches(volume, node):
                return [CONFLICT], []
            continue
        choice = _choose(claim, node, storage, taken)
        if choice is None:
            return [NOTHING_FREE], []
        choices.append(choice)
        if choice.volume is not None:
            taken.add(choice.volume["metadata"]["name"])
    return [], choices


def held(pod: Object, storage: Storage, placed: Sequence[Placed]) -> list[str]:
    """What forbids every node: a claim of access mode ReadWriteOncePod that another pod has, wherever that
    is (upstream's VolumeRestrictions plugin)."""
    namespace = pod["metadata"].get("namespace", "")
    alone = {c["metadata"]["name"] for c in _claims(pod, storage) if ONE_POD in c["spec"]["accessModes"]}
    if not alone:
        return []
    taken = any(other.namespace == namespace and alone.intersection(other.claims) for other in placed)
    return [IN_USE] if taken else []


def _choose(claim: Object, node: Object, storage: Storage, taken: set[str]) -> Choice | None:
    uid = claim["metadata"]["uid"]

    def usable(volume: Object) -> bool:
        name = volume["metadata"]["name"]
        return name not in taken and storage.promised.get(name, uid) == uid and reaches(volume, node)

    volume = claims.best_match(claim, storage.volumes.values(), usable)
    if volume is not None:
        return Choice(claim, volume)
    storage_class = storage.classes.get(claims.class_name(claim)) or {}
    if storage_class.get("provisioner", claims.NO_PROVISIONER) == claims.NO_PROVISIONER:
        return None
    return Choice(claim, None)


def reaches(volume: Object, node: Object) -> bool:
    """Whether the node satisfies the volume's own nodeAffinity."""
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    if required is None:
        return True
    labels, name = node["metadata"].get("labels") or {}, node["metadata"]["name"]
    return any(matches_term(term, labels, name) for term in required.get("nodeSelectorTerms") or ())
