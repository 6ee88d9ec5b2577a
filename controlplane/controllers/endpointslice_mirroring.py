"""Copies Endpoints that people made by hand, for Services without a selector, into EndpointSlices.

Proxies read slices only, so without the copy such a Service would lead nowhere. Each subset becomes one
slice per address family, named by what it holds apart by, so that a change updates the slice it concerns.
Skipped are Endpoints with the label endpointslice.kubernetes.io/skip-mirror=true and those that are only a
leader's lock. Source: upstream's endpointslicemirroring controller (1,000 addresses per subset at most).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from controlplane.controllers.endpoints import LEADER
from controlplane.controllers.endpointslice import MANAGED_BY, SERVICE_NAME
from kubeclient.addresses import read_ip
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICES
from kubeclient.rest import RestClient

MANAGER = "endpointslicemirroring-controller.k8s.io"
SKIP = "endpointslice.kubernetes.io/skip-mirror"
LARGEST = 1000


def mirrored(endpoints: Object | None, service: Object | None) -> bool:
    """PURE: whether the Endpoints are to be copied."""
    if endpoints is None or service is None or service["spec"].get("selector"):
        return False
    meta = endpoints["metadata"]
    if meta.get("deletionTimestamp") or LEADER in (meta.get("annotations") or {}):
        return False
    return (meta.get("labels") or {}).get(SKIP) != "true"


def slices(endpoints: Object) -> Iterator[Object]:
    """PURE: the slices that say the same as the Endpoints."""
    meta = endpoints["metadata"]
    labels = {
        k: v for k, v in (meta.get("labels") or {}).items() if k not in (SKIP, SERVICE_NAME, MANAGED_BY)
    }
    owner = {"apiVersion": "v1", "kind": "Endpoints", "name": meta["name"], "uid": meta["uid"]}
    for subset in endpoints.get("subsets") or ():
        ports = [
            {
                key: port[key]
                for key in ("name", "port", "protocol", "appProtocol")
                if port.get(key) is not None
            }
            for port in subset.get("ports") or ()
        ]
        for family in ("IPv4", "IPv6"):
            entries = [
                entry
                for ready, part in ((True, "addresses"), (False, "notReadyAddresses"))
                for entry in _entries(subset.get(part) or (), ready, family)
            ][:LARGEST]
            if entries:
                yield {
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "name": f"{meta['name']}-{_hash(family, ports)}",
                        "namespace": meta["namespace"],
                        "labels": {**labels, SERVICE_NAME: meta["name"], MANAGED_BY: MANAGER},
                        "ownerReferences": [owner],
                    },
                    "addressType": family,
                    "endpoints": entries,
                    "ports": ports,
                }


def _entries(addresses: object, ready: bool, family: str) -> Iterator[Object]:
    assert isinstance(addresses, list | tuple)
    for address in addresses:
        found = read_ip(address["ip"])
        if found is None or f"IPv{found.version}" != family:
            continue
        entry: Object = {"addresses": [str(found)], "conditions": {"ready": ready}}
        for key in ("hostname", "nodeName", "targetRef"):
            if address.get(key):
                entry[key] = address[key]
        yield entry


def _hash(family: str, ports: list[Object]) -> str:
    text = json.dumps([family, ports], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class EndpointSliceMirroring(Controller):
    name = "endpointslicemirroring"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._endpoints = informers.of(ENDPOINTS, self.enqueue)
        self._services = informers.of(SERVICES, self.enqueue)
        self._slices = informers.of(ENDPOINT_SLICES, self._slice_changed)

    def _slice_changed(self, kind: str, new: Object, old: Object | None = None) -> None:
        labels = new["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) == MANAGER and labels.get(SERVICE_NAME):
            self.queue.add(f"{new['metadata']['namespace']}/{labels[SERVICE_NAME]}")

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        endpoints = self._endpoints.get(name, namespace)
        wanted = {}
        if endpoints is not None and mirrored(endpoints, self._services.get(name, namespace)):
            wanted = {found["metadata"]["name"]: found for found in slices(endpoints)}
        for present in self._ours(key):
            body = wanted.pop(present["metadata"]["name"], None)
            if body is None:
                self._delete(present)
            elif not _same(present, body):
                meta = {**present["metadata"], "labels": body["metadata"]["labels"]}
                self.client.update(ENDPOINT_SLICES, {**body, "metadata": meta})
        for body in wanted.values():
            self.client.create(ENDPOINT_SLICES, body)

    def _ours(self, key: str) -> list[Object]:
        namespace, name = split_key(key)
        return [
            found
            for found in self._slices.list()
            if found["metadata"]["namespace"] == namespace
            and (found["metadata"].get("labels") or {}).get(SERVICE_NAME) == name
            and found["metadata"]["labels"].get(MANAGED_BY) == MANAGER
        ]

    def _delete(self, present: Object) -> None:
        try:
            self.client.delete(ENDPOINT_SLICES, present["metadata"]["name"], present["metadata"]["namespace"])
        except NotFound:
            return


def _same(present: Object, body: Object) -> bool:
    """Whether the stored slice says what it should; the API server adds only fields that we do not set."""
    parts = all(present.get(part) == body[part] for part in ("endpoints", "ports"))
    return parts and bool(present["metadata"].get("labels") == body["metadata"]["labels"])
