"""Which persistent volume suits a claim. Pure; the controller that binds and the scheduler ask the same.

Source: upstream's pkg/controller/volume/persistentvolume (index.go, pv_controller.go) and
component-helpers/storage/volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kubeclient import quantity
from kubeclient.selectors import LabelSelector

Object = dict[str, Any]

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
NO_PROVISIONER = "kubernetes.io/no-provisioner"
WAITS = "WaitForFirstConsumer"


def class_name(obj: Object) -> str:
    """The storage class of a claim or of a volume; "" is none."""
    return str(obj["spec"].get("storageClassName") or "")


def annotations_of(obj: Object) -> dict[str, str]:
    return dict(obj["metadata"].get("annotations") or {})


def is_bound(claim: Object) -> bool:
    """Bound for good: the claim names its volume and the controller has said that it is done."""
    return bool(claim["spec"].get("volumeName")) and BIND_COMPLETED in annotations_of(claim)


def waits(claim: Object, storage_class: Object | None) -> bool:
    """Whether the claim may only be bound once a pod that uses it has been given a node."""
    delayed = (storage_class or {}).get("volumeBindingMode") == WAITS
    return delayed and SELECTED_NODE not in annotations_of(claim)


def reserved_for(volume: Object, claim: Object) -> bool:
    """Whether the volume's claimRef means this claim (its uid, where it has one)."""
    reference, metadata = volume["spec"].get("claimRef"), claim["metadata"]
    if not reference:
        return False
    same = reference.get("name") == metadata["name"] and reference.get("namespace") == metadata["namespace"]
    return same and reference.get("uid", "") in ("", metadata["uid"])


def mismatch(volume: Object, claim: Object) -> str:
    """Why the volume cannot be this claim's ("" if it can), without regard to who has it."""
    spec, wanted = volume["spec"], claim["spec"]
    if volume["metadata"].get("deletionTimestamp"):
        return "the volume is marked for deletion"
    if _storage(spec.get("capacity")) < _storage((wanted.get("resources") or {}).get("requests")):
        return "requested PV is too small"
    if class_name(volume) != class_name(claim):
        return "storageClassName does not match"
    if (spec.get("volumeMode") or "Filesystem") != (wanted.get("volumeMode") or "Filesystem"):
        return "incompatible volumeMode"
    if not set(wanted.get("accessModes") or ()) <= set(spec.get("accessModes") or ()):
        return "incompatible accessMode"
    return ""


def best_match(
    claim: Object, volumes: Iterable[Object], usable: Callable[[Object], bool] = lambda _: True
) -> Object | None:
    """A volume that was reserved for the claim, else the smallest free one; None where there is none.

    `usable` says more: for the scheduler, whether a volume can be reached from a node.
    """
    selector = claim["spec"].get("selector")
    chosen: Object | None = None
    for volume in volumes:
        if mismatch(volume, claim) or not usable(volume):
            continue
        if reserved_for(volume, claim):
            return volume
        free = not volume["spec"].get("claimRef")
        labels = volume["metadata"].get("labels") or {}
        if not free or (selector and not LabelSelector.from_object(selector).matches(labels)):
            continue
        if (volume.get("status") or {}).get("phase") not in (None, "Pending", "Available"):
            continue
        if chosen is None or _order(volume) < _order(chosen):
            chosen = volume
    return chosen


def _order(volume: Object) -> tuple[int, str]:
    return _storage(volume["spec"].get("capacity")), volume["metadata"]["name"]


def _storage(amounts: Object | None) -> int:
    return quantity.value(str((amounts or {}).get("storage") or "0"))


def claim_names(pod: Object) -> list[str]:
    """The claims that a pod uses, those of its ephemeral volumes included."""
    names = []
    for volume in pod["spec"].get("volumes") or ():
        if volume.get("persistentVolumeClaim") is not None:
            names.append(str(volume["persistentVolumeClaim"]["claimName"]))
        elif volume.get("ephemeral") is not None:
            names.append(f"{pod['metadata']['name']}-{volume['name']}")
    return names
