"""The Node and its Lease, against an API that decides which of the two comes first."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from kubeclient.errors import NotFound
from kubeclient.resources import LEASES, Resource
from kubelet_py.config import Config
from kubelet_py.node.registrar import Registrar

LONG = 5.0


class Api:
    """Takes the Node only when there is a Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.changed = threading.Condition()
        self.owned = threading.Event()

    def get(self, resource: Resource, name: str, *place: str) -> dict[str, Any]:
        raise NotFound({"reason": "NotFound", "code": 404})

    def create(self, resource: Resource, body: dict[str, Any], *place: str) -> dict[str, Any]:
        if resource == LEASES:
            return self.update(resource, body)
        with self.changed:
            assert self.changed.wait_for(lambda: self.lease is not None, LONG)
        return {**body, "metadata": {**body["metadata"], "uid": "u1"}}

    def update(self, resource: Resource, body: dict[str, Any]) -> dict[str, Any]:
        with self.changed:
            self.lease = body
            self.changed.notify_all()
        if body["metadata"].get("ownerReferences"):
            self.owned.set()
        return body

    def patch(self, resource: Resource, name: str, body: dict[str, Any], **how: str) -> dict[str, Any]:
        return {"metadata": {"name": name, "uid": "u1"}, "spec": {}, **body}


def test_a_lease_that_is_older_than_its_node_gets_it_as_owner_when_it_is_renewed() -> None:
    api = Api()
    registrar = Registrar(
        api,  # type: ignore[arg-type]
        name="n1",
        labels={},
        config=replace(Config(), node_lease_duration_seconds=1),
        report=lambda now, node: {"conditions": []},
        on_node=lambda node: None,
    )
    registrar.start()
    assert api.owned.wait(LONG)
    registrar.stop()
    assert api.lease is not None and api.lease["spec"]["holderIdentity"] == "n1"
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1"}
    assert api.lease["metadata"]["ownerReferences"] == [owner]
