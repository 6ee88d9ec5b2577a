"""Publishes the pods behind each Service as the older Endpoints object, named like the Service.

One subset per set of ports that pods serve alike; pods that are not Ready are listed apart, pods that end are
left out, unless the Service publishes not-ready addresses. Endpoints that somebody made without a Service are
left alone, until the controller starts again: it cannot tell them then from those of a Service that went
while it was away. Source: upstream's endpoints controller.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.controllers.base import Object, SharedInformers, key_of, split_key
from controlplane.controllers.pod_readiness import is_ready
from controlplane.controllers.service_pods import (
    HEADLESS,
    Port,
    ServiceFollower,
    addresses,
    followed,
    headless,
    hostname,
    ports_of,
    target_reference,
)
from kubeclient.errors import AlreadyExists, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import ENDPOINTS
from kubeclient.rest import RestClient

OVER_CAPACITY = "endpoints.kubernetes.io/over-capacity"
LEADER = "control-plane.alpha.kubernetes.io/leader"  # on Endpoints that are only a lock
LARGEST = 1000


def subsets(service: Object, pods: Sequence[Object]) -> list[Object]:
    """The `subsets` of the Service's Endpoints object, in a stable order."""
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    family = (service["spec"].get("ipFamilies") or ["IPv4"])[0]
    groups: dict[tuple[Port, ...], tuple[list[Object], list[Object]]] = {}
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp") and not publish:
            continue
        ports = ports_of(service, pod)
        if not ports and not headless(service):
            continue
        for address in addresses(pod, family):
            ready, not_ready = groups.setdefault(ports, ([], []))
            (ready if publish or is_ready(pod) else not_ready).append(_address(service, pod, address))
    result = []
    for ports, (ready, not_ready) in sorted(groups.items(), key=lambda group: group[0]):
        subset: Object = {}
        if ready:
            subset["addresses"] = sorted(ready, key=lambda a: str(a["ip"]))
        if not_ready:
            subset["notReadyAddresses"] = sorted(not_ready, key=lambda a: str(a["ip"]))
        if ports:
            subset["ports"] = [_port(port) for port in ports]
        result.append(subset)
    return result


def truncated(found: list[Object]) -> tuple[list[Object], bool]:
    """At most a thousand addresses, ready ones first; and whether any were left out."""
    room, cut = LARGEST, False
    for field in ("addresses", "notReadyAddresses"):
        for subset in found:
            listed = subset.get(field) or []
            cut = cut or len(listed) > room
            kept = listed[:room]
            room -= len(kept)
            if listed and not kept:
                del subset[field]
            elif listed:
                subset[field] = kept
    return [s for s in found if s.get("addresses") or s.get("notReadyAddresses")], cut


def _address(service: Object, pod: Object, ip: str) -> Object:
    address: Object = {"ip": ip, "targetRef": target_reference(pod)}
    if pod["spec"].get("nodeName"):
        address["nodeName"] = pod["spec"]["nodeName"]
    if name := hostname(service, pod):
        address["hostname"] = name
    return address


def _port(port: Port) -> Object:
    body: Object = {"port": port.number, "protocol": port.protocol}
    if port.name:
        body["name"] = port.name
    if port.app_protocol:
        body["appProtocol"] = port.app_protocol
    return body


class EndpointsController(ServiceFollower):
    name = "endpoints"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._endpoints = informers.of(ENDPOINTS, self._on_endpoints)

    def start(self) -> None:
        for entry in self._endpoints.list():
            metadata = entry["metadata"]
            ours = LEADER not in (metadata.get("annotations") or {})
            if ours and self._services.get(metadata["name"], metadata["namespace"]) is None:
                self.queue.add(key_of(entry))
        super().start()

    def _on_endpoints(self, kind: str, new: Object, old: Object | None) -> None:
        metadata = new["metadata"]
        if kind != "ADDED" and self._services.get(metadata["name"], metadata["namespace"]) is not None:
            self.enqueue(kind, new)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        service = self._services.get(name, namespace)
        present = self._endpoints.get(name, namespace)
        if service is None:
            if present is not None:
                self._remove(name, namespace)
            return
        if not followed(service) or service["metadata"].get("deletionTimestamp"):
            return
        found, cut = truncated(subsets(service, self._selected(service)))
        labels = dict(service["metadata"].get("labels") or {})
        if headless(service):
            labels[HEADLESS] = ""
        if present is None:
            self._create(service, found, labels, cut)
            return
        annotations = dict(present["metadata"].get("annotations") or {})
        annotations.pop(OVER_CAPACITY, None)
        if cut:
            annotations[OVER_CAPACITY] = "truncated"
        metadata = present["metadata"] | {"labels": labels, "annotations": annotations}
        body = present | {"metadata": metadata, "subsets": found}
        before = present["metadata"]
        unchanged = (
            (present.get("subsets") or []) == found
            and (before.get("labels") or {}) == labels
            and (before.get("annotations") or {}) == annotations
        )
        if not unchanged:
            try:
                self.client.update(ENDPOINTS, body)
            except NotFound:
                return  # its DELETED event brings us back

    def _create(self, service: Object, found: list[Object], labels: Object, cut: bool) -> None:
        metadata: Object = {"name": service["metadata"]["name"], "labels": labels}
        if cut:
            metadata["annotations"] = {OVER_CAPACITY: "truncated"}
        body: Object = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": found}
        try:
            self.client.create(ENDPOINTS, body, service["metadata"]["namespace"])
        except AlreadyExists:
            # Our copy is behind; the object's own event does not call us when it is only new.
            self.queue.add_after(f"{service['metadata']['namespace']}/{metadata['name']}", 0.05)
        except NotFound:
            return  # the namespace went away

    def _remove(self, name: str, namespace: str | None) -> None:
        try:
            self.client.delete(ENDPOINTS, name, namespace)
        except NotFound:
            return
