"""What ResourceQuotas count and what LimitRanges say, without a server."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from controlplane import quota
from controlplane.apiserver.limit_ranger import ANNOTATION, complaints, give_defaults
from kubeclient.resources import CONFIG_MAPS, DEPLOYMENTS, PODS


def pod(*resources: dict[str, Any], **status: Any) -> dict[str, Any]:
    containers = [{"name": f"c{i}", "resources": found} for i, found in enumerate(resources)]
    return {"metadata": {"name": "p"}, "spec": {"containers": containers}, "status": status}


def limited(hard: dict[str, str], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}}


def test_a_pod_counts_as_itself_and_by_its_amounts() -> None:
    body = pod({"requests": {"cpu": "250m"}, "limits": {"memory": "1Gi"}}, {"requests": {"cpu": "1"}})
    found = quota.usage(PODS, body)
    assert found["pods"] == found["count/pods"] == 1
    assert found["cpu"] == found["requests.cpu"] == Fraction(5, 4)
    assert found["requests.memory"] == found["limits.memory"] == 2**30
    assert "limits.cpu" not in found


def test_a_finished_pod_is_only_an_object() -> None:
    body = pod({"requests": {"cpu": "1"}}, phase="Succeeded")
    assert quota.usage(PODS, body) == {"count/pods": 1}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pods", PODS),
        ("limits.memory", PODS),
        ("requests.nvidia.com/gpu", PODS),
        ("configmaps", CONFIG_MAPS),
        ("count/deployments.apps", DEPLOYMENTS),
        ("deployments", None),
        ("services.nodeports", None),
        ("requests.storage", None),
    ],
)
def test_names_that_are_counted(name, kind) -> None:
    assert quota.kind_of(name) == kind
    assert bool(quota.not_counted(limited({name: "1"}))) is (kind is None)


def test_scopes_choose_pods() -> None:
    pods = [pod({}, qosClass="BestEffort"), pod({}, qosClass="Burstable"), pod({}, qosClass="Burstable")]
    hard = {"pods": "9"}
    assert quota.used(limited(hard), PODS, pods) == {"pods": 3}
    assert quota.used(limited(hard, scopes=["BestEffort"]), PODS, pods) == {"pods": 1}
    assert quota.used(limited(hard, scopes=["NotBestEffort"]), PODS, pods) == {"pods": 2}
    unknown = limited(hard, scopes=["Terminating"])
    assert not quota.enforceable(unknown) and quota.not_counted(unknown)


def test_containers_that_leave_out_what_is_limited() -> None:
    body = pod({"requests": {"cpu": "1"}}, {})
    found = quota.unspecified(limited({"cpu": "1", "limits.memory": "1", "pods": "1"}), body)
    assert found == {"cpu": ["c1"], "limits.memory": ["c0", "c1"]}


CONTAINER = {
    "type": "Container",
    "default": {"memory": "1Gi"},
    "defaultRequest": {"cpu": "100m"},
    "min": {"cpu": "50m"},
    "max": {"memory": "2Gi"},
    "maxLimitRequestRatio": {"memory": "2"},
}


def of(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"spec": {"limits": list(items)}}]


def test_defaults_fill_only_gaps() -> None:
    body = pod({}, {"requests": {"cpu": "1"}, "limits": {"memory": "512Mi"}})
    assert give_defaults(body, of(CONTAINER))
    first, second = (container["resources"] for container in body["spec"]["containers"])
    assert first == {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}
    assert second == {"requests": {"cpu": "1"}, "limits": {"memory": "512Mi"}}
    said = body["metadata"]["annotations"][ANNOTATION]
    assert said == "LimitRanger plugin set: cpu request for container c0; memory limit for container c0"
    assert not give_defaults(body, of(CONTAINER))


@pytest.mark.parametrize(
    ("item", "resources", "text"),
    [
        (
            CONTAINER,
            {"requests": {"cpu": "10m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "minimum cpu usage per Container is 50m, but request is 10m",
        ),
        (
            CONTAINER,
            {"requests": {"cpu": "1", "memory": "3Gi"}, "limits": {"memory": "2Gi"}},
            "maximum memory usage per Container is 2Gi, but request is 3Gi",
        ),
        (
            CONTAINER,
            {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
            "memory max limit to request ratio per Container is 2, but provided ratio is 4.000000",
        ),
        (
            {"type": "Pod", "max": {"cpu": "1"}},
            {"limits": {"cpu": "1500m"}, "requests": {"cpu": "1"}},
            "maximum cpu usage per Pod is 1, but limit is 1500m",
        ),
        (
            {"type": "Container", "max": {"cpu": "1"}},
            {},
            "maximum cpu usage per Container is 1.  No limit is specified",
        ),
    ],
)
def test_what_a_range_does_not_allow(item, resources, text) -> None:
    assert complaints(pod(resources), of(item)) == [text]
