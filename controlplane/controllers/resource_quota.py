"""Says in each ResourceQuota's status how much of it is used: what `kubectl describe quota` shows.

Nothing is decided by it; the API server counts for itself before it stores an object. Source: upstream's
resourcequota controller.
"""

from __future__ import annotations

from controlplane import quota
from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from controlplane.controllers.garbage_collector import WATCHED
from kubeclient import quantity
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import RESOURCE_QUOTAS
from kubeclient.rest import RestClient

TOGETHER_SECONDS = 0.1  # many pods that come at once cost one count
UNWATCHED_SECONDS = 10.0


class ResourceQuotas(Controller):
    name = "resource-quota"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._quotas = informers.of(RESOURCE_QUOTAS, self.enqueue)
        for resource in quota.COUNTED:
            if resource in WATCHED:
                informers.of(resource, self._on_object)

    def _on_object(self, kind: str, new: Object, old: Object | None) -> None:
        if old is not None and kind != "DELETED" and _phase(old) == _phase(new):
            return
        for found in self._quotas.list():
            if found["metadata"]["namespace"] == new["metadata"]["namespace"]:
                self.queue.add_after(key_of(found), TOGETHER_SECONDS)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        found = self._quotas.get(name, namespace)
        if found is None or not quota.enforceable(found):
            return
        hard = found["spec"].get("hard") or {}
        kinds = {kind for kind in map(quota.kind_of, hard) if kind is not None}
        amounts: quota.Amounts = {}
        for kind in kinds:
            amounts |= quota.used(found, kind, self.client.list(kind, namespace)["items"])
        if any(kind not in WATCHED for kind in kinds):
            self.queue.add_after(key, UNWATCHED_SECONDS)
        used = {n: quantity.written(amount, like=str(hard[n])) for n, amount in sorted(amounts.items())}
        status = {"hard": hard, "used": used}
        if status == found.get("status"):
            return
        try:
            self.client.update(RESOURCE_QUOTAS, found | {"status": status}, subresource="status")
        except NotFound:
            return


def _phase(obj: Object) -> str:
    return str((obj.get("status") or {}).get("phase", ""))
