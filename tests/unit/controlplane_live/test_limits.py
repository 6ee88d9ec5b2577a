"""ResourceQuota and LimitRange at the door of a real server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .conftest import Client, Live, pod


def quota(name: str, **hard: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"hard": {k.replace("_", "."): v for k, v in hard.items()}}}


def test_a_quota_holds_against_requests_at_once(live: Live, api: Client, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    api.must("POST", f"{base}/resourcequotas", quota("few", pods="2"))
    clients = [Client(live.base, api.ca, api.cert) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda i: clients[i]("POST", f"{base}/pods", pod(f"p{i}")), range(len(clients)))
        )
    for client in clients:
        client.session.close()
    refused = [body for code, body in answers if code == 403]
    assert len(refused) == 6
    text = "exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2"
    assert refused[0]["message"].endswith(text)
    api.must("DELETE", f"{base}/pods")
    assert api("POST", f"{base}/pods", pod("again"))[0] == 201


def test_a_quota_on_amounts_wants_them_stated(api: Client, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    api.must("POST", f"{base}/resourcequotas", quota("cores", requests_cpu="1"))
    code, status = api("POST", f"{base}/pods", pod("p"))
    assert code == 403
    assert status["message"] == 'pods "p" is forbidden: failed quota: cores: must specify requests.cpu for: c'
    body = pod("p")
    body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "600m"}}
    assert api("POST", f"{base}/pods", body)[0] == 201
    body["metadata"]["name"] = "q"
    code, status = api("POST", f"{base}/pods", body)
    text = "requested: requests.cpu=600m, used: requests.cpu=600m, limited: requests.cpu=1"
    assert code == 403 and text in status["message"]


def test_what_is_not_enforced_is_said_when_it_is_written(api: Client, namespace: str) -> None:
    body = quota("some", services_nodeports="1")
    answered = api.send("POST", f"/api/v1/namespaces/{namespace}/resourcequotas", body)
    assert answered.status_code == 201
    assert "stored but not enforced" in answered.headers["Warning"]


def test_a_limit_range_fills_in_and_refuses(api: Client, namespace: str) -> None:
    base = f"/api/v1/namespaces/{namespace}"
    item = {"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "max": {"memory": "2Gi"}}
    api.must("POST", f"{base}/limitranges", {"metadata": {"name": "r"}, "spec": {"limits": [item]}})
    made = api.must("POST", f"{base}/pods", pod("p"))
    amounts = {"cpu": "1", "memory": "1Gi"}
    assert made["spec"]["containers"][0]["resources"] == {"limits": amounts, "requests": amounts}
    assert made["status"]["qosClass"] == "Guaranteed"
    body = pod("big")
    body["spec"]["containers"][0]["resources"] = {"limits": {"memory": "3Gi"}}
    code, status = api("POST", f"{base}/pods", body)
    assert code == 403
    text = "[maximum memory usage per Container is 2Gi, but limit is 3Gi, "
    assert status["message"].startswith(f'pods "big" is forbidden: {text}')


def test_a_pod_may_not_choose_how_it_preempts(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    assert api("POST", path, pod("same", preemptionPolicy="PreemptLowerPriority"))[0] == 201
    code, status = api("POST", path, pod("other", preemptionPolicy="Never"))
    assert code == 403 and "the string value of PreemptionPolicy (Never) must not" in status["message"]


def test_a_service_that_needs_no_health_port_any_more_loses_it(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services"
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31999}
    api.must("POST", path, {"metadata": {"name": "s"}, "spec": {**spec, "ports": [{"port": 80}]}})
    changed = api.patch(f"{path}/s", {"spec": {"externalTrafficPolicy": "Cluster"}})
    assert "healthCheckNodePort" not in changed["spec"]
