"""pods/resize at the door of a real server: what may change, what is dropped, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from .conftest import STRATEGIC, Client, pod

Object = dict[str, Any]


@pytest.fixture
def base(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}"


def limited(api: Client, base: str, **more: Any) -> Object:
    """A Burstable pod `p` with requests and limits."""
    body = pod("p")
    body["spec"]["containers"][0] |= {
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
            "limits": {"cpu": "500m", "memory": "128Mi"},
        },
        **more,
    }
    made: Object = api.must("POST", f"{base}/pods", body)
    return made


def resize(api: Client, base: str, resources: Object, **spec: Any) -> tuple[int, Any]:
    body = {"spec": {"containers": [{"name": "c", "resources": resources}], **spec}}
    return api("PATCH", f"{base}/pods/p/resize", body, Content_Type=STRATEGIC)


def test_cpu_and_memory_change_and_the_rest_of_the_body_is_dropped(api: Client, base: str) -> None:
    made = limited(api, base)
    code, after = resize(api, base, {"requests": {"cpu": "200m"}, "limits": {"memory": "256Mi"}}, priority=5,
                         activeDeadlineSeconds=9)  # fmt: skip
    assert code == 200, after
    resources = after["spec"]["containers"][0]["resources"]
    assert resources == {
        "requests": {"cpu": "200m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
        "limits": {"cpu": "500m", "memory": "256Mi"},
    }
    expected = copy.deepcopy(made)
    expected["spec"]["containers"][0]["resources"] = resources
    assert after["spec"] == expected["spec"]
    assert after["status"] == made["status"]
    assert int(after["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    assert api.must("GET", f"{base}/pods/p/resize")["spec"] == after["spec"]


def test_a_whole_pod_may_be_put(api: Client, base: str) -> None:
    made = limited(api, base)
    made["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "1"
    made["metadata"]["labels"] = {"not": "this"}
    after = api.must("PUT", f"{base}/pods/p/resize", made)
    assert after["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1"
    assert "not" not in (after["metadata"].get("labels") or {})


REFUSED: list[tuple[str, Object, str]] = [
    ("another QoS class", {"requests": {"cpu": "500m", "memory": "128Mi"}},
     'spec: Invalid value: "Guaranteed": Pod QOS Class may not change as a result of resizing'),
    ("less memory", {"limits": {"memory": "100Mi"}},
     "spec.containers[0].resources.limits[memory]: Forbidden: memory limits cannot be decreased unless "
     "resizePolicy is RestartContainer"),
    ("a limit taken away", {"limits": {"cpu": None}},
     "spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"),
    ("a request taken away, and its limit", {"requests": {"cpu": None}, "limits": {"cpu": None}},
     "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"),
    ("another resource", {"requests": {"ephemeral-storage": "2Gi"}},
     "spec: Forbidden: only cpu and memory resources are mutable"),
    ("a request above its limit", {"requests": {"cpu": "600m"}},
     "must be less than or equal to cpu limit"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "resources", "text"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_no_node_could_do_is_refused(
    api: Client, base: str, name: str, resources: Object, text: str
) -> None:
    made = limited(api, base)
    code, status = resize(api, base, resources)
    assert code == 422, status
    assert text in status["message"]
    assert api.must("GET", f"{base}/pods/p")["spec"] == made["spec"]


def test_less_memory_is_fine_where_the_container_restarts_for_it(api: Client, base: str) -> None:
    restarts = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    limited(api, base, resizePolicy=restarts)
    assert resize(api, base, {"limits": {"memory": "100Mi"}})[0] == 200


def test_the_policy_itself_may_not_change(api: Client, base: str) -> None:
    limited(api, base)
    body = {"spec": {"containers": [{"name": "c", "resizePolicy": [
        {"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}}  # fmt: skip
    code, status = api("PATCH", f"{base}/pods/p/resize", body, Content_Type=STRATEGIC)
    assert code == 422 and "only cpu and memory resources are mutable" in status["message"]


def test_resources_still_cannot_change_through_the_pod_itself(api: Client, base: str) -> None:
    limited(api, base)
    body = {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "200m"}}}]}}
    code, status = api("PATCH", f"{base}/pods/p", body, Content_Type=STRATEGIC)
    assert code == 422 and "pod updates may not change fields other than" in status["message"]


def test_a_resize_is_held_to_quota_and_limit_range(api: Client, base: str) -> None:
    limited(api, base)
    hard = {"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "300m", "pods": "1"}}}
    api.must("POST", f"{base}/resourcequotas", hard)
    code, status = resize(api, base, {"requests": {"cpu": "400m"}})
    text = "requested: requests.cpu=300m, used: requests.cpu=100m, limited: requests.cpu=300m"
    assert code == 403 and status["message"].endswith(f"exceeded quota: q, {text}"), status
    assert resize(api, base, {"requests": {"cpu": "300m"}})[0] == 200
    item = {"type": "Container", "max": {"memory": "200Mi"}}
    api.must("POST", f"{base}/limitranges", {"metadata": {"name": "r"}, "spec": {"limits": [item]}})
    code, status = resize(api, base, {"limits": {"memory": "256Mi"}})
    assert code == 403 and "maximum memory usage per Container is 200Mi" in status["message"]


def test_the_subresource_is_discovered(api: Client) -> None:
    listed = {r["name"]: r for r in api.must("GET", "/api/v1")["resources"]}
    assert listed["pods/resize"]["kind"] == "Pod"
    assert sorted(listed["pods/resize"]["verbs"]) == ["get", "patch", "update"]
