"""Keeps claims that a pod uses, and volumes that a claim has, until nobody does any more.

The API server puts a finalizer on each when it is created; this controller takes it off once a deleted one is
not in use, and until then `kubectl get` shows it Terminating. Without it, deleting a claim would pull a
volume's record from under a running pod. Source: upstream's pvcprotection and pvprotection controllers.
"""

from __future__ import annotations

from controlplane import claims
from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.events import EventRecorder
from kubeclient.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, PODS, Resource
from kubeclient.rest import RestClient

CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
VOLUME_FINALIZER = "kubernetes.io/pv-protection"


class VolumeProtection(Controller):
    """Keys: "namespace/name" is a claim, "/name" a volume."""

    name = "volume-protection"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._claims = informers.of(PERSISTENT_VOLUME_CLAIMS, self.enqueue)
        self._volumes = informers.of(PERSISTENT_VOLUMES, self.enqueue)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED" or _is_over(new):
            for name in claims.claim_names(new):
                self.queue.add(f"{new['metadata']['namespace']}/{name}")

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        if namespace is None:
            volume = self._volumes.get(name)
            if volume is not None and (volume.get("status") or {}).get("phase") != "Bound":
                self._let_go(PERSISTENT_VOLUMES, volume, VOLUME_FINALIZER)
            return
        claim = self._claims.get(name, namespace)
        if claim is not None and not self._used(claim):
            self._let_go(PERSISTENT_VOLUME_CLAIMS, claim, CLAIM_FINALIZER)

    def _used(self, claim: Object) -> bool:
        """Whether a pod that was given a node, and is not over, names it."""
        namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
        return any(
            pod["metadata"]["namespace"] == namespace
            and pod["spec"].get("nodeName")
            and not _is_over(pod)
            and name in claims.claim_names(pod)
            for pod in self._pods.list()
        )

    def _let_go(self, resource: Resource, obj: Object, finalizer: str) -> None:
        metadata = obj["metadata"]
        present = metadata.get("finalizers") or []
        if not metadata.get("deletionTimestamp") or finalizer not in present:
            return
        rest = [each for each in present if each != finalizer]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": rest}}
        self.client.patch(resource, metadata["name"], body, metadata.get("namespace"), kind="merge")


def _is_over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
