"""Every namespace has the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

Pods without a serviceAccountName run as `default`, and the projected token volume takes the cluster's CA from
that ConfigMap: without them no pod of a new namespace could start. Source: upstream's serviceaccount and
root-ca-certificate-publisher controllers; both are restored when somebody deletes them.
"""

from __future__ import annotations

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import AlreadyExists, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS
from kubeclient.rest import RestClient

ROOT_CA = "kube-root-ca.crt"
ABOUT_ROOT_CA = {
    "kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when "
    "using internal endpoints such as the internal service IP or kubernetes.default.svc."
}


class ServiceAccounts(Controller):
    name = "service-account"

    def __init__(
        self, client: RestClient, informers: SharedInformers, recorder: EventRecorder, *, root_ca: str
    ) -> None:
        super().__init__(client, informers, recorder)
        self._root_ca = root_ca
        self._namespaces = informers.of(NAMESPACES, self._on_namespace)
        self._accounts = informers.of(SERVICE_ACCOUNTS, self._on_ours)
        self._config_maps = informers.of(CONFIG_MAPS, self._on_ours)

    def _on_namespace(self, kind: str, new: Object, old: Object | None) -> None:
        if kind != "DELETED":
            self.queue.add(f"/{new['metadata']['name']}")

    def _on_ours(self, kind: str, new: Object, old: Object | None) -> None:
        if new["metadata"]["name"] in ("default", ROOT_CA) and kind != "ADDED":
            self.queue.add(f"/{new['metadata']['namespace']}")

    def sync(self, key: str) -> None:
        _, namespace = split_key(key)
        found = self._namespaces.get(namespace)
        if found is None or found["metadata"].get("deletionTimestamp"):
            return
        try:
            self._account(namespace)
            self._config_map(namespace)
        except NotFound:
            return  # the namespace went away meanwhile

    def _account(self, namespace: str) -> None:
        if self._accounts.get("default", namespace) is None:
            account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
            try:
                self.client.create(SERVICE_ACCOUNTS, account, namespace)
            except AlreadyExists:
                return

    def _config_map(self, namespace: str) -> None:
        present = self._config_maps.get(ROOT_CA, namespace)
        data = {"ca.crt": self._root_ca}
        if present is None:
            metadata = {"name": ROOT_CA, "annotations": ABOUT_ROOT_CA}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            try:
                self.client.create(CONFIG_MAPS, body, namespace)
            except AlreadyExists:
                return
        elif present.get("data") != data:
            self.client.update(CONFIG_MAPS, present | {"data": data})
