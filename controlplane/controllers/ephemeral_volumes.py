"""Makes the claim of each pod's generic ephemeral volume: it is the pod's own and is deleted with it.

Source: upstream's pkg/controller/volume/ephemeral.
"""

from __future__ import annotations

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import AlreadyExists
from kubeclient.events import EventRecorder
from kubeclient.resources import PERSISTENT_VOLUME_CLAIMS, PODS
from kubeclient.rest import RestClient


class EphemeralVolumes(Controller):
    name = "ephemeral-volume"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._claims = informers.of(PERSISTENT_VOLUME_CLAIMS, self._on_claim)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        if kind != "DELETED" and any(v.get("ephemeral") for v in new["spec"].get("volumes") or ()):
            self.enqueue(kind, new)

    def _on_claim(self, kind: str, new: Object, old: Object | None) -> None:
        """The claim of an earlier pod of the same name was in the way until now."""
        if kind != "DELETED":
            return
        name, namespace = new["metadata"]["name"], new["metadata"]["namespace"]
        for pod in self._pods.list():
            if pod["metadata"]["namespace"] == namespace and name in _claim_names(pod):
                self.enqueue(kind, pod)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        pod = self._pods.get(name, namespace)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        for volume in pod["spec"].get("volumes") or ():
            if volume.get("ephemeral"):
                self._make(pod, volume)

    def _make(self, pod: Object, volume: Object) -> None:
        metadata = pod["metadata"]
        name = _claim_name(pod, volume)
        if self._claims.get(name, metadata["namespace"]) is not None:
            return
        template = volume["ephemeral"]["volumeClaimTemplate"]
        owner = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        given = template.get("metadata") or {}
        body = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "ownerReferences": [owner],
                **{key: given[key] for key in ("labels", "annotations") if given.get(key)},
            },
            "spec": template["spec"],
        }
        try:
            self.client.create(PERSISTENT_VOLUME_CLAIMS, body, metadata["namespace"])
        except AlreadyExists:
            return  # somebody else's: the pod waits, and the scheduler and its node say why


def _claim_name(pod: Object, volume: Object) -> str:
    return f"{pod['metadata']['name']}-{volume['name']}"


def _claim_names(pod: Object) -> set[str]:
    return {_claim_name(pod, v) for v in pod["spec"].get("volumes") or () if v.get("ephemeral")}
