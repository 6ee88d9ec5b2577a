"""Which pods an object controls, and what those it makes are like.

Orphans that its selector matches are adopted, others are let go. Source: upstream's
controller_ref_manager.go.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from controlplane.controllers.base import Object, controller_of
from kubeclient.errors import Conflict, NotFound
from kubeclient.resources import PODS, Resource
from kubeclient.rest import RestClient
from kubeclient.selectors import LabelSelector


def owner_reference(owner: Object, resource: Resource) -> Object:
    """What makes `owner` the controller of an object."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def selector_of(owner: Object) -> LabelSelector:
    return LabelSelector.from_object(owner["spec"]["selector"])


def claim(
    client: RestClient, owner: Object, resource: Resource, pods: Iterable[Object], finalizer: str = ""
) -> list[Object]:
    """The owner's pods of `pods`; an owner that is being deleted neither adopts nor lets go.

    Adopted pods get the finalizer, pods that are let go lose it.
    """
    selector, metadata = selector_of(owner), owner["metadata"]
    stays = not metadata.get("deletionTimestamp")
    claimed = []
    for pod in pods:
        if pod["metadata"].get("namespace") != metadata["namespace"]:
            continue
        reference = controller_of(pod)
        matches = selector.matches(pod["metadata"].get("labels") or {})
        if reference is not None and reference["uid"] == metadata["uid"]:
            if matches:
                claimed.append(pod)
            elif stays:
                _write(client, pod, _others(pod, metadata["uid"]), finalizer, keep=False)
        elif reference is None and matches and stays and _adoptable(pod):
            references = [*_others(pod, metadata["uid"]), owner_reference(owner, resource)]
            _write(client, pod, references, finalizer, keep=True)
            claimed.append(pod)
    return claimed


def _adoptable(pod: Object) -> bool:
    """Neither ended nor on its way out: what is over is nobody's."""
    phase = (pod.get("status") or {}).get("phase")
    return phase not in ("Succeeded", "Failed") and not pod["metadata"].get("deletionTimestamp")


def _others(pod: Object, uid: str) -> list[Object]:
    return [r for r in pod["metadata"].get("ownerReferences") or [] if r["uid"] != uid]


def _write(client: RestClient, pod: Object, references: list[Object], finalizer: str, *, keep: bool) -> None:
    metadata = {"uid": pod["metadata"]["uid"], "ownerReferences": references}
    if finalizer:
        rest = [each for each in pod["metadata"].get("finalizers") or [] if each != finalizer]
        # The version: a list is written whole, and somebody may have added to it.
        metadata["resourceVersion"] = pod["metadata"]["resourceVersion"]
        metadata["finalizers"] = [*rest, finalizer] if keep else rest
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        client.patch(PODS, name, {"metadata": metadata}, namespace, kind="merge")
    except (NotFound, Conflict):
        return


def pod_from_template(template: Object, owner: Object, resource: Resource) -> Object:
    """A pod of the template, named after and controlled by its owner."""
    metadata = template.get("metadata") or {}
    kept = {
        key: copy.deepcopy(metadata[key])
        for key in ("labels", "annotations", "finalizers")
        if metadata.get(key)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "ownerReferences": [owner_reference(owner, resource)],
            **kept,
        },
        "spec": copy.deepcopy(template["spec"]),
    }
