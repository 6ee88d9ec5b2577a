"""A node's slice of kube-dns comes back, also when its end was seen later than that of the Service."""

from __future__ import annotations

from typing import Any, cast

from controlplane.controllers.base import SharedInformers
from controlplane.controllers.cluster_dns import ClusterDns, endpoint_slice
from kubeclient.events import EventRecorder
from kubeclient.rest import RestClient

Object = dict[str, Any]
ADDRESS = "10.96.0.10"
NODE = {
    "metadata": {"name": "n1", "uid": "u"},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
}


class Copy:
    """What the watch of one kind has told so far."""

    def __init__(self, *objects: Object | None) -> None:
        self.objects = {obj["metadata"]["name"]: obj for obj in objects if obj is not None}
        self.tell: Any = None

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self.objects.get(name)

    def list(self) -> list[Object]:
        return [*self.objects.values()]


class Cluster:
    """The slice was deleted, of which the copy knows nothing yet."""

    def __init__(self) -> None:
        slice_ = endpoint_slice(NODE, ADDRESS)
        assert slice_ is not None
        self.slice = slice_
        service = {"metadata": {"name": "kube-dns", "namespace": "kube-system"}, "spec": {}}
        self.copies = {"nodes": Copy(NODE), "services": Copy(service), "endpointslices": Copy(slice_)}
        self.made: list[str] = []

    def of(self, resource: Any, handler: Any = None) -> Copy:
        self.copies[resource.plural].tell = handler
        return self.copies[resource.plural]

    def create(self, resource: Any, body: Object, namespace: str) -> None:
        self.made.append(body["metadata"]["name"])


def test_a_slice_whose_end_is_seen_late_is_made_again() -> None:
    cluster = Cluster()
    controller = ClusterDns(
        cast(RestClient, cluster), cast(SharedInformers, cluster), cast(EventRecorder, None), address=ADDRESS
    )
    controller.queue.get()  # the Service, at the start
    controller.sync("/n1")
    assert cluster.made == [], "it is there, as far as is known"
    slices = cluster.copies["endpointslices"]
    slices.objects.clear()
    slices.tell("DELETED", cluster.slice, cluster.slice)
    foreign = {"metadata": {"name": "web-x", "labels": {"kubernetes.io/service-name": "web"}}}
    slices.tell("DELETED", foreign, foreign)
    assert len(controller.queue) == 1
    controller.sync(str(controller.queue.get()))
    assert cluster.made == ["kube-dns-n1"]
