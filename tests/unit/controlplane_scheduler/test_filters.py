from __future__ import annotations

from typing import Any

import pytest

from controlplane.scheduler import filters

GI = 1024**3


def node(name: str = "n1", **spec: Any) -> dict[str, Any]:
    labels = spec.pop("labels", {"kubernetes.io/hostname": name})
    allocatable = spec.pop("allocatable", {"cpu": "2", "memory": "4Gi", "pods": "110"})
    metadata = {"name": name, "labels": labels}
    return {"metadata": metadata, "spec": spec, "status": {"allocatable": allocatable}}


def pod(name: str = "p", requests: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "resources": {"requests": requests or {}}} | spec.pop("container", {})
    return {"metadata": {"name": name, "uid": name}, "spec": {"containers": [container], **spec}}


def reasons(pod_: dict[str, Any], node_: dict[str, Any], *others: dict[str, Any]) -> list[str]:
    view = filters.node_view(node_, [filters.pod_requests(o) for o in others])
    return filters.why_not(pod_, filters.pod_requests(pod_), view)


TAINT = {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}
PORT = {"ports": [{"containerPort": 80, "hostPort": 8080}]}
IN = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [IN]}}}


@pytest.mark.parametrize(
    ("pod_", "node_", "others", "expected"),
    [
        (pod(), node(), [], []),
        (pod(requests={"cpu": "3"}), node(), [], ["Insufficient cpu"]),
        (pod(requests={"cpu": "1500m"}), node(), [pod(requests={"cpu": "501m"})], ["Insufficient cpu"]),
        (pod(requests={"cpu": "1500m"}), node(), [pod(requests={"cpu": "500m"})], []),
        (pod(requests={"memory": "5Gi", "cpu": "3"}), node(), [],
         ["Insufficient cpu", "Insufficient memory"]),
        (pod(requests={"example.com/gpu": "1"}), node(), [], ["Insufficient example.com/gpu"]),
        (pod(), node(allocatable={"pods": "1"}), [pod()], ["Too many pods"]),
        (pod(), node(unschedulable=True), [], ["node(s) were unschedulable"]),
        (pod(), node(taints=[TAINT]), [], ["node(s) had untolerated taint {dedicated: gpu}"]),
        (pod(tolerations=[{"key": "dedicated", "value": "gpu"}]), node(taints=[TAINT]), [], []),
        (pod(tolerations=[{"operator": "Exists"}]), node(taints=[TAINT]), [], []),
        (pod(tolerations=[{"key": "dedicated", "value": "x"}]), node(taints=[TAINT]), [],
         ["node(s) had untolerated taint {dedicated: gpu}"]),
        (pod(), node(taints=[TAINT | {"effect": "PreferNoSchedule"}]), [], []),
        (pod(nodeSelector={"disk": "ssd"}), node(), [],
         ["node(s) didn't match Pod's node affinity/selector"]),
        (pod(nodeSelector={"disk": "ssd"}), node(labels={"disk": "ssd"}), [], []),
        (pod(affinity=AFFINITY), node(labels={"zone": "b"}), [],
         ["node(s) didn't match Pod's node affinity/selector"]),
        (pod(affinity=AFFINITY), node(labels={"zone": "a"}), [], []),
        (pod(container=PORT), node(), [pod(container=PORT)],
         ["node(s) didn't have free ports for the requested pod ports"]),
    ],
)  # fmt: skip
def test_filter_reasons_are_upstreams(
    pod_: dict[str, Any], node_: dict[str, Any], others: list[dict[str, Any]], expected: list[str]
) -> None:
    assert reasons(pod_, node_, *others) == expected


def test_requests_take_the_larger_of_init_and_running_containers_and_add_sidecars() -> None:
    body = pod(requests={"cpu": "200m"})
    body["spec"]["initContainers"] = [
        {"name": "sidecar", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
        {"name": "init", "resources": {"requests": {"cpu": "300m", "memory": "1Gi"}}},
    ]
    requests = filters.pod_requests(body)
    assert requests["cpu"] == 350
    assert requests["memory"] == GI


def test_what_the_pod_asks_for_as_a_whole_takes_the_place_of_its_containers() -> None:
    body = pod(requests={"cpu": "200m", "memory": "1Gi"})
    body["spec"]["resources"] = {"limits": {"cpu": "1"}, "requests": {"cpu": "700m"}}
    body["spec"]["overhead"] = {"cpu": "50m"}
    requests = filters.pod_requests(body)
    assert (requests["cpu"], requests["memory"]) == (750, GI)


@pytest.mark.parametrize(
    ("wanted", "reason", "counted"),
    [("500m", "", 500), ("50m", "", 200), ("500m", "Deferred", 500), ("500m", "Infeasible", 200)],
)
def test_a_pod_being_resized_takes_the_larger_of_what_it_has_and_wants(
    wanted: str, reason: str, counted: int
) -> None:
    body = pod(requests={"cpu": wanted})
    name = body["spec"]["containers"][0]["name"]
    body["status"] = {"containerStatuses": [{"name": name, "allocatedResources": {"cpu": "200m"}}]}
    if reason:
        body["status"]["conditions"] = [{"type": "PodResizePending", "status": "True", "reason": reason}]
    assert filters.pod_requests(body)["cpu"] == counted


def test_explanation_counts_reasons_over_nodes() -> None:
    text = filters.explain(3, [["Insufficient cpu"], ["Insufficient cpu"], ["node(s) were unschedulable"]])
    assert text == "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu."
    assert filters.explain(0, []) == "no nodes available to schedule pods"


def test_less_of_anything_leaves_room() -> None:
    before = filters.Requests({"cpu": 1000, "memory": 100}, frozenset())
    assert filters.Requests({"cpu": 500, "memory": 200}, frozenset()).less_than(before)
    assert filters.Requests({"cpu": 1000}, frozenset()).less_than(before)
    assert not filters.Requests({"cpu": 1000, "memory": 100}, frozenset()).less_than(before)
    assert not filters.Requests({"cpu": 2000, "memory": 100, "pods": 1}, frozenset()).less_than(before)
