"""Requests and limits as cgroup values: pods, overhead, pod-level resources, memory QoS, huge pages, OOM."""

from __future__ import annotations

from typing import Any

import pytest
from pods_in_words import pod

from kubelet_py.pods import resources
from kubelet_py.pods.model import Object
from kubelet_py.pods.resources import Rules

MI, GI = 1 << 20, 1 << 30


def with_resources(tables: dict[str, dict[str, Any]], **spec: Any) -> Object:
    """A pod whose containers (by name; those of `init` too) have these resources."""
    init = spec.pop("init", None)
    names = [n for n in tables if n not in [i if isinstance(i, str) else i["name"] for i in init or ()]]
    body = pod(*names, init=init, **spec)
    for container in body["spec"]["containers"] + body["spec"].get("initContainers", []):
        container["resources"] = tables.get(container["name"], {})
    return body


def limits(cpu: str = "", memory: str = "", **more: str) -> dict[str, Any]:
    table = {key: value for key, value in (("cpu", cpu), ("memory", memory), *more.items()) if value}
    return {"limits": table, "requests": table}


def test_a_pod_is_limited_only_where_each_container_is() -> None:
    both = with_resources({"a": limits("1", "64Mi"), "b": limits("500m", "64Mi")})
    assert resources.pod_resources(both, Rules()) == {
        "cpu": {"shares": 1536, "quota": 150000, "period": 100000}, "memory": {"limit": 128 * MI}
    }  # fmt: skip
    one = with_resources({"a": limits("1", "64Mi"), "b": limits(memory="64Mi")})
    assert resources.pod_resources(one, Rules()) == {"cpu": {"shares": 1024}, "memory": {"limit": 128 * MI}}
    none = with_resources({"a": limits("1", "64Mi"), "b": {}})
    assert resources.pod_resources(none, Rules()) == {"cpu": {"shares": 1024}}


def test_an_init_container_without_a_limit_leaves_the_pod_without_one() -> None:
    body = with_resources({"a": limits("1", "64Mi"), "i": {}}, init=["i"])
    assert "memory" not in resources.pod_resources(body, Rules())


def test_overhead_is_added_to_requests_and_to_limits_that_exist() -> None:
    body = with_resources({"a": limits("1", "64Mi")}, overhead={"cpu": "250m", "memory": "16Mi"})
    assert resources.pod_resources(body, Rules()) == {
        "cpu": {"shares": 1280, "quota": 125000, "period": 100000}, "memory": {"limit": 80 * MI}
    }  # fmt: skip
    free = with_resources({"a": {"requests": {"cpu": "1"}}}, overhead={"cpu": "250m", "memory": "16Mi"})
    assert resources.pod_resources(free, Rules()) == {"cpu": {"shares": 1280}}
    assert resources.pod_requests(free) == {"cpu": 1250, "memory": 16 * MI}


def test_pod_level_resources_take_the_place_of_the_containers() -> None:
    whole = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}}
    body = with_resources({"a": {}, "b": {"requests": {"cpu": "100m"}}}, resources=whole)
    assert resources.qos_class(body) == "Burstable"
    assert resources.pod_requests(body) == {"cpu": 500, "memory": 64 * MI}
    assert resources.pod_resources(body, Rules()) == {
        "cpu": {"shares": 512, "quota": 100000, "period": 100000}, "memory": {"limit": 128 * MI}
    }  # fmt: skip
    body["spec"]["resources"] = {"requests": whole["limits"], "limits": whole["limits"]}
    assert resources.qos_class(body) == "Guaranteed"


@pytest.mark.parametrize(
    ("tables", "wanted"),
    [
        ({"requests": {"memory": "100Mi"}, "limits": {"memory": "200Mi"}},
         {"memory.min": str(100 * MI), "memory.high": str(190 * MI)}),
        ({"requests": {"memory": "100Mi"}}, {"memory.min": str(100 * MI), "memory.high": str(910 * MI)}),
        ({}, {}),
        (limits(memory="100Mi"), {"memory.min": str(100 * MI)}),
    ],
)  # fmt: skip
def test_memory_qos(tables: dict[str, Any], wanted: dict[str, str]) -> None:
    """memory.high = request + factor × (limit, or what the node can give, − request), in whole pages."""
    rules = Rules(throttling=0.9, allocatable_memory=1000 * MI)
    container = {"name": "c", "resources": tables}
    assert resources.container_resources(container, rules).get("unified", {}) == wanted
    assert "unified" not in resources.container_resources(container, Rules())


def test_memory_high_is_rounded_down_to_pages() -> None:
    container = {"name": "c", "resources": {"requests": {"memory": "1000"}, "limits": {"memory": "100000"}}}
    high = resources.container_resources(container, Rules(throttling=0.9))["unified"]["memory.high"]
    assert int(high) == 90100 // resources.PAGE * resources.PAGE


def test_huge_pages_of_every_size_are_limited() -> None:
    container = {"name": "c", "resources": {"limits": {"hugepages-2Mi": "4Mi", "memory": "1Mi"}}}
    rules = Rules(huge_pages=(64 << 10, 2 * MI, GI))
    assert resources.container_resources(container, rules)["hugepageLimits"] == [
        {"pageSize": "64KB", "limit": 0},
        {"pageSize": "2MB", "limit": 4 * MI},
        {"pageSize": "1GB", "limit": 0},
    ]  # fmt: skip


def test_the_pods_process_limit_is_the_pods() -> None:
    assert resources.pod_resources(pod(), Rules(pids=50))["pids"] == {"limit": 50}
    assert "pids" not in resources.pod_resources(pod(), Rules(pids=-1))


SIDECAR = {"name": "s", "restartPolicy": "Always"}
OOM: list[tuple[str, Object, str, int]] = [
    ("node-critical", pod(priority=2_000_001_000, priorityClassName="system-node-critical"), "c", -997),
    ("cluster-critical counts as others",
     pod(priority=2_000_000_000, priorityClassName="system-cluster-critical"), "c", 1000),
    ("a tenth of the node", with_resources({"c": {"requests": {"memory": "400Mi"}}}), "c", 900),
    ("nearly nothing", with_resources({"c": {"requests": {"memory": "1"}}}), "c", 999),
    ("nearly everything", with_resources({"c": {"requests": {"memory": "4000Mi"}}}), "c", 3),
    ("a sidecar lives as long as what it serves",
     with_resources({"c": {"requests": {"memory": "400Mi"}}, "s": {"requests": {"memory": "4Mi"}}},
                    init=[SIDECAR]), "s", 900),
    ("a sidecar lives no longer than the last that it serves",
     with_resources({"c": {"requests": {"memory": "400Mi"}}, "d": {"requests": {"memory": "200Mi"}},
                     "s": {"requests": {"memory": "4Mi"}}}, init=[SIDECAR]), "s", 950),
    ("a sidecar's own request, where it is more",
     with_resources({"c": {}, "s": {"requests": {"memory": "400Mi"}}}, init=[SIDECAR]), "s", 900),
    ("half of what the pod asks for beyond its containers",
     with_resources({"c": {"requests": {"memory": "400Mi"}}, "d": {}},
                    resources={"requests": {"memory": "1200Mi"}}), "c", 800),
    ("the other half, for one that asks for nothing",
     with_resources({"c": {"requests": {"memory": "400Mi"}}, "d": {}},
                    resources={"requests": {"memory": "1200Mi"}}), "d", 900),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "container", "score"), OOM, ids=[case[0] for case in OOM])
def test_oom_score(name: str, body: Object, container: str, score: int) -> None:
    everyone = body["spec"]["containers"] + body["spec"].get("initContainers", [])
    spec = next(c for c in everyone if c["name"] == container)
    assert resources.oom_score_adj(body, spec, 4000 * MI) == score
