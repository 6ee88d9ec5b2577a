"""Keeps the Service `kube-dns`, and one EndpointSlice for each node, whose proxy answers names itself.

The Service's traffic policy is Local: a node's pods ask their own node and nobody else, so a lost node
takes no other's names with it. Who would rather run CoreDNS gives the Service a selector, as its manifests
do: then our slices go, and the usual controller takes over. The slices name their Node as owner and go with
it.
"""

from __future__ import annotations

import ipaddress
import logging

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from kubeclient.errors import AlreadyExists, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import ENDPOINT_SLICES, NODES, SERVICES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

NAMESPACE = "kube-system"
NAME = "kube-dns"
PORT = 10053  # of every node's name server; the Service's own is 53
MANAGED_BY = "cluster-dns-controller.kubelet-py"
_BY = "endpointslice.kubernetes.io/managed-by"
_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))


class ClusterDns(Controller):
    """`address` is the Service's ClusterIP, by convention the tenth of the range."""

    name = "clusterdns"

    def __init__(
        self, client: RestClient, informers: SharedInformers, recorder: EventRecorder, *, address: str
    ) -> None:
        super().__init__(client, informers, recorder)
        self._address = address
        self._nodes = informers.of(NODES, self.enqueue)
        self._services = informers.of(SERVICES, self._service_changed)
        self._slices = informers.of(ENDPOINT_SLICES, self._slice_changed)
        self.queue.add(f"{NAMESPACE}/{NAME}")

    def _service_changed(self, kind: str, new: Object, old: Object | None = None) -> None:
        if (new["metadata"].get("namespace"), new["metadata"]["name"]) == (NAMESPACE, NAME):
            self.queue.add(f"{NAMESPACE}/{NAME}")

    def _slice_changed(self, kind: str, new: Object, old: Object | None = None) -> None:
        """Somebody's hand, or our own, of which the copy did not know when the node was looked at."""
        metadata = new["metadata"]
        if (metadata.get("labels") or {}).get(_BY) == MANAGED_BY:
            self.queue.add(f"/{metadata['name'].removeprefix(f'{NAME}-')}")

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        if namespace is None:
            self._sync_node(name)
            return
        if self._services.get(NAME, NAMESPACE) is None:
            self._create_service()
        for node in self._nodes.list():
            self.queue.add(f"/{node['metadata']['name']}")

    def _create_service(self) -> None:
        try:
            self.client.create(SERVICES, service(self._address), NAMESPACE)
        except AlreadyExists:
            return
        log.info("Created Service namespace=%s name=%s address=%s", NAMESPACE, NAME, self._address)

    def _sync_node(self, name: str) -> None:
        node, found = self._nodes.get(name), self._services.get(NAME, NAMESPACE)
        ours = not (found or {}).get("spec", {}).get("selector")
        wanted = endpoint_slice(node, self._address) if node is not None and ours else None
        slice_name = f"{NAME}-{name}"
        present = self._slices.get(slice_name, NAMESPACE)
        if wanted is None:
            if present is not None:
                self._forget(slice_name)
        elif present is None:
            self.client.create(ENDPOINT_SLICES, wanted, NAMESPACE)
        elif any(present.get(part) != wanted[part] for part in ("endpoints", "ports")):
            self.client.update(ENDPOINT_SLICES, {**present, **wanted, "metadata": present["metadata"]})

    def _forget(self, slice_name: str) -> None:
        try:
            self.client.delete(ENDPOINT_SLICES, slice_name, NAMESPACE)
        except NotFound:
            return


def service(address: str) -> Object:
    """PURE: the Service as clusters have it, under the name that tools look for."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {"k8s-app": NAME, "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "clusterIP": address,
            "internalTrafficPolicy": "Local",
            "ports": [
                {"name": name, "port": 53, "protocol": protocol, "targetPort": PORT}
                for name, protocol in _PORTS
            ],
        },
    }


def endpoint_slice(node: Object, service_address: str) -> Object | None:
    """PURE: the slice for one node's questions; None while it announces no fitting address."""
    version = ipaddress.ip_address(service_address).version
    addresses = [
        entry["address"]
        for entry in (node.get("status") or {}).get("addresses") or ()
        if entry.get("type") == "InternalIP" and ipaddress.ip_address(entry["address"]).version == version
    ]
    if not addresses:
        return None
    name = node["metadata"]["name"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{NAME}-{name}",
            "namespace": NAMESPACE,
            "labels": {
                "kubernetes.io/service-name": NAME,
                _BY: MANAGED_BY,
            },
            "ownerReferences": [owner],
        },
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": addresses[:1], "conditions": conditions, "nodeName": name}],
        "ports": [{"name": name_, "port": PORT, "protocol": protocol} for name_, protocol in _PORTS],
    }
