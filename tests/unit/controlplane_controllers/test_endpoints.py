"""Whose Endpoints the controller keeps: those of Services, and of none but at its start."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from controlplane.controllers.base import Handler
from controlplane.controllers.endpoints import LEADER, EndpointsController
from kubeclient.resources import ENDPOINTS, PODS, SERVICES, Resource

Object = dict[str, Any]


class Copy:
    def __init__(self, *objects: Object) -> None:
        self.objects = list(objects)

    def list(self) -> list[Object]:
        return self.objects

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return next((o for o in self.objects if o["metadata"]["name"] == name), None)


class Informers:
    def __init__(self, **copies: Copy) -> None:
        self._copies = copies
        self.handlers: dict[str, Handler | None] = {}

    def of(self, resource: Resource, handler: Handler | None = None) -> Copy:
        self.handlers[resource.plural] = handler
        return self._copies.get(resource.plural, Copy())


class Client:
    def __init__(self) -> None:
        self.deleted: list[str] = []
        self.over = threading.Event()

    def delete(self, resource: Resource, name: str, namespace: str | None) -> None:
        self.deleted.append(name)
        self.over.set()


def named(name: str, **annotations: str) -> Object:
    return {"metadata": {"namespace": "default", "name": name, "annotations": annotations}}


def controller(client: Client, informers: Informers) -> EndpointsController:
    return EndpointsController(cast(Any, client), cast(Any, informers), cast(Any, None))


def test_at_its_start_it_removes_what_a_service_left_that_went_unseen() -> None:
    lock = named("lock", **{LEADER: "{}"})
    client = Client()
    informers = Informers(
        services=Copy(named("here") | {"spec": {}}), endpoints=Copy(named("here"), named("gone"), lock)
    )
    made = controller(client, informers)
    made.start()
    assert client.over.wait(10)
    made.stop()
    assert client.deleted == ["gone"] and len(made.queue) == 0


@pytest.mark.parametrize("kind", ["ADDED", "MODIFIED", "DELETED"])
def test_endpoints_without_a_service_are_somebody_elses(kind: str) -> None:
    informers = Informers(endpoints=Copy(named("own")))
    made = controller(Client(), informers)
    handler = informers.handlers[ENDPOINTS.plural]
    assert handler is not None
    handler(kind, named("own"), None)
    made.queue.shut_down()
    assert made.queue.get() is None


def test_changed_endpoints_of_a_service_are_looked_at() -> None:
    informers = Informers(services=Copy(named("web")), endpoints=Copy(named("web")))
    made = controller(Client(), informers)
    handler = informers.handlers[ENDPOINTS.plural]
    assert handler is not None and {SERVICES.plural, PODS.plural} <= informers.handlers.keys()
    handler("MODIFIED", named("web"), None)
    assert made.queue.get() == "default/web"
