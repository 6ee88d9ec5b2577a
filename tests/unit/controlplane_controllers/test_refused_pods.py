"""A ReplicaSet whose pods are refused: it tries again later each time, and writes its failure down once."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from controlplane.controllers.base import SharedInformers
from controlplane.controllers.replicaset import ReplicaSets
from kubeclient.errors import ApiError
from kubeclient.events import EventRecorder
from kubeclient.rest import RestClient

Object = dict[str, Any]


class Lister:
    def __init__(self, *objects: Object) -> None:
        self.objects = list(objects)

    def list(self) -> list[Object]:
        return self.objects

    def get(self, name: str, namespace: str) -> Object:
        return next(obj for obj in self.objects if obj["metadata"]["name"] == name)


class Refusing:
    """An API server that refuses every pod, each by its own name, and keeps what it is told of the set."""

    def __init__(self, sets: Lister) -> None:
        self.sets = sets
        self.tried, self.written = 0, 0

    def create(self, resource: Any, body: Object, namespace: str) -> Object:
        self.tried += 1
        text = f'pods "web-{self.tried}" is forbidden: exceeded quota: q'
        raise ApiError({"code": 403, "reason": "Forbidden", "message": text})

    def update(self, resource: Any, body: Object, subresource: str) -> None:
        self.written += 1
        self.sets.objects = [copy.deepcopy(body)]


class Informers:
    def __init__(self, sets: Lister) -> None:
        self.listers = {"replicasets": sets}

    def of(self, resource: Any, handler: Any = None) -> Lister:
        return self.listers.get(resource.plural, Lister())


class Recorder:
    def event(self, *event: Any) -> None:
        """Not of interest here."""


def replica_set() -> Object:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}
    spec = {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}, "template": template}
    metadata = {"name": "web", "namespace": "n", "uid": "u", "generation": 1}
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": metadata, "spec": spec}


def test_a_refusal_is_written_once_and_tried_again_with_a_growing_delay() -> None:
    sets = Lister(replica_set())
    server = Refusing(sets)
    controller = ReplicaSets(
        cast(RestClient, server), cast(SharedInformers, Informers(sets)), cast(EventRecorder, Recorder())
    )
    for _ in range(3):
        # Raised, so that the queue waits longer each time: whoever returns is forgotten there.
        with pytest.raises(ApiError, match="exceeded quota"):
            controller.sync("n/web")
    assert (server.tried, server.written) == (3, 1)
    condition = sets.objects[0]["status"]["conditions"][0]
    assert condition["type"] == "ReplicaFailure"
    assert condition["message"].startswith('Error creating: pods "web-1"')
