"""Aggregated ClusterRoles follow the roles that their selectors find."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.controllers.cluster_roles import ClusterRoles

Object = dict[str, Any]

READ = {"apiGroups": ["a.example"], "resources": ["things"], "verbs": ["get"]}
WRITE = {"apiGroups": ["a.example"], "resources": ["things"], "verbs": ["update"]}


class Cluster:
    """Informers, their copy, and the API: a write is in the copy at once and tells the handler."""

    def __init__(self) -> None:
        self.roles: dict[str, Object] = {}
        self.handler: Any = None
        self.writes: list[str] = []

    def of(self, resource: Any, handler: Any) -> Cluster:
        self.handler = handler
        return self

    def get(self, name: str) -> Object | None:
        return self.roles.get(name)

    def list(self) -> list[Object]:
        return [*self.roles.values()]

    def put(self, name: str, rules: list[Object], found_by: str = "", finds: str = "") -> None:
        role: Object = {"metadata": {"name": name, "labels": {"to": found_by}}, "rules": rules}
        if finds:
            role["aggregationRule"] = {"clusterRoleSelectors": [{"matchLabels": {"to": finds}}]}
        self.update(None, role)
        self.writes.clear()

    def update(self, resource: Any, role: Object) -> None:
        self.writes.append(role["metadata"]["name"])
        self.roles[role["metadata"]["name"]] = role
        self.handler("MODIFIED", role, None)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def controller(cluster: Cluster) -> ClusterRoles:
    return ClusterRoles(cluster, cluster, cluster)  # type: ignore[arg-type]


def test_a_role_of_a_chart_reaches_what_finds_it_and_what_finds_that(
    cluster: Cluster, controller: ClusterRoles
) -> None:
    cluster.put("admin", [], finds="admin")
    cluster.put("edit", [], found_by="admin", finds="edit")
    cluster.put("chart", [READ], found_by="edit")
    for key in ("/edit", "/admin"):
        controller.sync(key)
    assert (cluster.roles["edit"]["rules"], cluster.roles["admin"]["rules"]) == ([READ], [READ])
    assert cluster.writes == ["edit", "admin"]
    controller.sync("/edit")
    assert len(cluster.writes) == 2, "a role that is as it should be was written"
    del cluster.roles["chart"]
    for key in ("/edit", "/admin"):
        controller.sync(key)
    assert (cluster.roles["edit"]["rules"], cluster.roles["admin"]["rules"]) == ([], [])


def test_any_change_looks_at_all_that_aggregate(cluster: Cluster, controller: ClusterRoles) -> None:
    cluster.put("edit", [WRITE], finds="edit")
    cluster.put("other", [WRITE])
    assert controller.queue.get() == "/edit"
    controller.sync("/other")
    assert cluster.writes == [], "a role with rules of its own was written"


def test_a_selector_that_cannot_be_read_leaves_the_rules(cluster: Cluster, controller: ClusterRoles) -> None:
    cluster.put("edit", [WRITE], finds="edit")
    wrong = {"matchExpressions": [{"key": "to", "operator": "Near"}]}
    cluster.roles["edit"]["aggregationRule"] = {"clusterRoleSelectors": [wrong]}
    controller.sync("/edit")
    assert cluster.roles["edit"]["rules"] == [WRITE]
