"""What the collector deletes it has looked at: its copy may still name an owner that let it go."""

from __future__ import annotations

from typing import Any, cast

from controlplane.controllers.base import SharedInformers
from controlplane.controllers.garbage_collector import GarbageCollector
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.rest import RestClient

Object = dict[str, Any]


class Server:
    """The pod was orphaned (revision 8) and its owner is gone; the collector's copy is of revision 7."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []

    def get(self, resource: Any, name: str, namespace: str | None) -> Object:
        raise NotFound({"code": 404, "reason": "NotFound"})

    def delete(self, resource: Any, name: str, namespace: str | None, **options: Any) -> None:
        self.asked.append((options["uid"], options["resource_version"]))
        if options["resource_version"] != "8":
            raise Conflict({"code": 409, "reason": "Conflict"})


class Informers:
    def __init__(self, pod: Object) -> None:
        self.pod = pod

    def of(self, resource: Any, handler: Any) -> Any:
        return _Copy(self.pod if resource.plural == "pods" else None)


class _Copy:
    def __init__(self, obj: Object | None) -> None:
        self.obj = obj

    def get(self, name: str, namespace: str | None) -> Object | None:
        return self.obj


def test_only_what_was_looked_at_is_deleted() -> None:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "work", "uid": "j", "controller": True}
    metadata = {"name": "work-1", "namespace": "n", "uid": "p", "resourceVersion": "7"}
    pod = {"metadata": {**metadata, "ownerReferences": [owner]}}
    server = Server()
    collector = GarbageCollector(
        cast(RestClient, server), cast(SharedInformers, Informers(pod)), cast(EventRecorder, None)
    )
    collector.sync("pods|n|work-1")
    assert server.asked == [("p", "7")], "the conflict is no failure: the event of revision 8 is to come"
