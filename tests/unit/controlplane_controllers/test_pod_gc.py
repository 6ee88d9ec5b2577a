"""Pods of a Node object that is gone: how long they wait for it, and who is asked before they are deleted."""

from __future__ import annotations

import math
from typing import Any

import pytest

from controlplane.controllers.pod_gc import LOOK_SECONDS, MissingNodes, PodGc
from kubeclient.errors import NotFound
from kubeclient.resources import NODES, PODS, Resource

Object = dict[str, Any]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cluster:
    """Informers, API and events in one; `api` has the nodes that the copy may lack."""

    def __init__(self) -> None:
        self.objects: dict[Resource, dict[str, Object]] = {NODES: {}, PODS: {}}
        self.api: set[str] = set()
        self.asked: list[str] = []
        self.deleted: list[str] = []

    def of(self, resource: Resource, handler: Any = None) -> Store:
        return Store(self.objects[resource])

    def get(self, resource: Resource, name: str) -> Object:
        self.asked.append(name)
        if name not in self.api:
            raise NotFound({"code": 404})
        return {}

    def patch(self, *_: Any, **__: Any) -> Object:
        return {}

    def delete(self, resource: Resource, name: str, *_: Any, **how: Any) -> None:
        assert (resource, how["grace_period_seconds"]) == (PODS, 0)
        self.deleted.append(name)
        del self.objects[PODS][name]

    def bind(self, name: str, node: str) -> None:
        metadata = {"name": name, "namespace": "default", "uid": name, "creationTimestamp": "1"}
        self.objects[PODS][name] = {"metadata": metadata, "spec": {"nodeName": node}, "status": {}}


class Store:
    def __init__(self, objects: dict[str, Object]) -> None:
        self._objects = objects

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        return self._objects.get(name)

    def list(self) -> list[Object]:
        return [*self._objects.values()]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def collector(cluster: Cluster, clock: Clock) -> PodGc:
    return PodGc(cluster, cluster, cluster, clock=clock)  # type: ignore[arg-type]


def test_pods_wait_forty_seconds_for_their_node(cluster: Cluster, clock: Clock, collector: PodGc) -> None:
    cluster.objects[NODES]["there"] = {"metadata": {"name": "there"}, "spec": {}}
    cluster.bind("a", "gone")
    cluster.bind("b", "gone")
    cluster.bind("c", "there")
    collector.sync("/")
    clock.now += 39.9
    collector.sync("/")
    assert (cluster.deleted, cluster.asked) == ([], [])
    clock.now += 0.1
    collector.sync("/")
    assert (cluster.deleted, cluster.asked) == (["a", "b"], ["gone"]), "the API is asked once for a node"


def test_a_node_that_the_api_has_keeps_its_pods(cluster: Cluster, clock: Clock, collector: PodGc) -> None:
    cluster.bind("a", "new")
    cluster.api.add("new")
    collector.sync("/")
    clock.now += 60.0
    collector.sync("/")
    assert (cluster.deleted, cluster.asked) == ([], ["new"])


def test_a_node_that_came_back_is_waited_for_anew(cluster: Cluster, clock: Clock, collector: PodGc) -> None:
    cluster.bind("a", "n")
    collector.sync("/")
    clock.now += 30.0
    cluster.objects[NODES]["n"] = {"metadata": {"name": "n"}, "spec": {}}
    collector.sync("/")
    del cluster.objects[NODES]["n"]
    clock.now += 20.0
    collector.sync("/")
    clock.now += 30.0
    collector.sync("/")
    assert cluster.deleted == []
    clock.now += 10.0
    collector.sync("/")
    assert cluster.deleted == ["a"]


def test_a_missing_node_is_looked_at_again_when_its_time_is_over(clock: Clock) -> None:
    missing = MissingNodes(clock)
    assert missing.wait() == math.inf
    missing.look(["a"])
    clock.now += 35.0
    missing.look(["a", "b"])
    assert missing.wait() == 5.0 < LOOK_SECONDS
    clock.now += 5.0
    assert (missing.overdue(), missing.wait()) == (["a"], 35.0)
