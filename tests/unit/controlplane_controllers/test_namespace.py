"""A namespace that ends is looked at again as soon as something in it is gone, not at the next round."""

from __future__ import annotations

from typing import Any, cast

from controlplane.controllers.base import SharedInformers
from controlplane.controllers.namespace import NamespaceController
from kubeclient.events import EventRecorder
from kubeclient.rest import RestClient
from kubeclient.workqueue import WorkQueue

Object = dict[str, Any]


class Informers:
    """One namespace for all kinds; `tell` is the handler of a kind."""

    def __init__(self, **metadata: str) -> None:
        self.namespace = {"metadata": {"name": "n", **metadata}}
        self.tell: dict[str, Any] = {}

    def of(self, resource: Any, handler: Any) -> Informers:
        self.tell[resource.plural] = handler
        return self

    def get(self, name: str) -> Object | None:
        return self.namespace if name == "n" else None


class Queue(WorkQueue):
    """Keys that are to come later are taken down."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[Any, float]] = []

    def add_after(self, key: Any, seconds: float) -> None:
        self.asked.append((key, seconds))


def asked_after(kind: str, informers: Informers) -> list[tuple[Any, float]]:
    """What the controller puts before itself upon a pod's event."""
    controller = NamespaceController(
        cast(RestClient, None), cast(SharedInformers, informers), cast(EventRecorder, None)
    )
    controller.queue = Queue()
    informers.tell["pods"](kind, {"metadata": {"name": "p", "namespace": "n"}}, None)
    return controller.queue.asked


def test_a_pod_that_is_gone_brings_the_next_look_forward() -> None:
    ending = Informers(deletionTimestamp="2026-01-01T00:00:00Z")
    [(key, seconds)] = asked_after("DELETED", ending)
    assert key == "/n" and seconds < 0.1
    assert asked_after("MODIFIED", ending) == []


def test_a_namespace_that_stays_is_not_looked_at() -> None:
    assert asked_after("DELETED", Informers()) == []
