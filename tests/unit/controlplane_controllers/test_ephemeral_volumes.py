"""A pod that has the name of one before it gets its own claim as soon as that one's is gone."""

from __future__ import annotations

from typing import Any, cast

from controlplane.controllers.base import SharedInformers
from controlplane.controllers.ephemeral_volumes import EphemeralVolumes
from kubeclient.events import EventRecorder
from kubeclient.rest import RestClient

Object = dict[str, Any]


class Copy:
    """One object of a kind, as far as its watch has told; and what the controller does upon an event."""

    def __init__(self, obj: Object | None) -> None:
        self.obj = obj
        self.tell: Any = None

    def get(self, name: str, namespace: str) -> Object | None:
        return self.obj

    def list(self) -> list[Object]:
        return [self.obj] if self.obj else []


class Cluster:
    """Pod db-0 of a StatefulSet, made anew; the claim of the one before it is going."""

    def __init__(self) -> None:
        volumes = [{"name": "e", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]
        metadata = {"name": "db-0", "namespace": "n", "uid": "new"}
        self.pods = Copy({"metadata": metadata, "spec": {"volumes": volumes}})
        self.claims = Copy({"metadata": {"name": "db-0-e", "namespace": "n", "deletionTimestamp": "now"}})
        self.made: list[str] = []

    def of(self, resource: Any, handler: Any = None) -> Copy:
        found = self.pods if resource.plural == "pods" else self.claims
        found.tell = handler
        return found

    def create(self, resource: Any, body: Object, namespace: str) -> None:
        self.made.append(body["metadata"]["name"])


def test_the_end_of_the_claim_that_was_in_the_way_brings_the_pod_back() -> None:
    cluster = Cluster()
    controller = EphemeralVolumes(
        cast(RestClient, cluster), cast(SharedInformers, cluster), cast(EventRecorder, None)
    )
    controller.sync("n/db-0")
    assert cluster.made == []
    gone, cluster.claims.obj = cluster.claims.obj, None
    cluster.claims.tell("DELETED", gone, gone)
    other = {"metadata": {"name": "db-0-x", "namespace": "n"}}
    assert len(controller.queue) == 1
    controller.sync(str(controller.queue.get()))
    assert cluster.made == ["db-0-e"]
    cluster.claims.tell("DELETED", other, other)
    assert len(controller.queue) == 0, "a claim of nobody here"
