"""Defaults, compared with objects that a real API server answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.apiserver import defaults
from controlplane.apiserver.defaults_pod import pull_policy, qos_class
from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.schema import Schema

SCHEMA = Schema.load()


def filled(obj: dict[str, Any]) -> dict[str, Any]:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    result = SCHEMA.check(info.definition, json.loads(json.dumps(obj)))
    assert not result.causes
    assert not result.unknown
    defaults.apply(info, result.obj)
    return result.obj


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]},
}


def test_a_pod_gets_what_kubectl_debug_and_the_kubelet_rely_on() -> None:
    pod = filled(POD)
    assert pod["spec"] == {
        "containers": [
            {
                "name": "c",
                "image": "nginx",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "Always",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "enableServiceLinks": True,
    }
    assert pod["status"] == {"phase": "Pending", "qosClass": "BestEffort"}


def test_defaulting_twice_changes_nothing() -> None:
    once = filled(POD)
    assert filled(json.loads(json.dumps(once))) == once


def test_given_values_stay() -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"].update(restartPolicy="Never", terminationGracePeriodSeconds=0, enableServiceLinks=False)
    spec = filled(pod)["spec"]
    kept = (spec["restartPolicy"], spec["terminationGracePeriodSeconds"], spec["enableServiceLinks"])
    assert kept == ("Never", 0, False)


def test_empty_texts_count_as_absent() -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"].update(restartPolicy="", dnsPolicy="", schedulerName="")
    pod["spec"]["containers"][0].update(terminationMessagePath="", terminationMessagePolicy="")
    assert filled(pod) == filled(POD)


def test_a_template_gets_no_service_links() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": {"spec": POD["spec"]}}}
    spec = filled(deployment)["spec"]
    assert "enableServiceLinks" not in spec["template"]["spec"]
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
    }
    assert (spec["replicas"], spec["revisionHistoryLimit"], spec["progressDeadlineSeconds"]) == (1, 10, 600)


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1.2", "IfNotPresent"),
        ("registry:5000/nginx", "Always"),
        ("registry:5000/nginx:1", "IfNotPresent"),
        ("nginx@sha256:00", "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    assert pull_policy(image) == policy


def test_a_probe_gets_thresholds_and_a_zero_timeout_counts_as_unset() -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"]["containers"][0]["livenessProbe"] = {"httpGet": {"port": 80}, "timeoutSeconds": 0}
    assert filled(pod)["spec"]["containers"][0]["livenessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 10,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


def test_a_host_network_pod_publishes_its_ports_on_the_host() -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"]["hostNetwork"] = True
    assert filled(pod)["spec"]["containers"][0]["ports"][0]["hostPort"] == 80


@pytest.mark.parametrize(
    ("resources", "wanted"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
        (
            {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}},
            "Guaranteed",
        ),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"nvidia.com/gpu": "1"}}, "BestEffort"),
        ({"requests": {"ephemeral-storage": "1Gi"}}, "BestEffort"),
    ],
)
def test_qos_class(resources: dict[str, Any], wanted: str) -> None:
    assert qos_class({"containers": [{"name": "c", "resources": resources}]}) == wanted


def test_one_container_without_limits_makes_a_pod_burstable() -> None:
    limited = {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}
    assert qos_class({"containers": [limited]}) == "Guaranteed"
    assert qos_class({"containers": [limited, {"name": "b"}]}) == "Burstable"
    assert qos_class({"containers": [limited], "initContainers": [{"name": "i"}]}) == "Burstable"


def test_limits_stand_in_for_requests_of_a_pod() -> None:
    pod = json.loads(json.dumps(POD))
    pod["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
    assert filled(pod)["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "1"}


def test_a_service_port_targets_itself() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
    spec = filled(service)["spec"]
    assert spec["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert (spec["sessionAffinity"], spec["externalTrafficPolicy"]) == ("None", "Cluster")


def test_string_data_of_a_secret_becomes_data() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "data": {"a": "YQ=="}, "stringData": {"b": "b"}}
    found = filled(secret)
    assert found == {
        "apiVersion": "v1",
        "kind": "Secret",
        "data": {"a": "YQ==", "b": "Yg=="},
        "type": "Opaque",
    }


# What 1.32 fills in and the recorded 1.20 server did not know.
NEWER = {
    "spec.persistentVolumeClaimRetentionPolicy",
    "status.availableReplicas",
    "spec.updateStrategy.rollingUpdate.maxSurge",
    "spec.ipFamilyPolicy",
    "spec.ipFamilies",
    "spec.internalTrafficPolicy",
    "spec.manualSelector",
    "spec.suspend",
    "spec.podReplacementPolicy",
    "spec.completionMode",
    "metadata.labels",
}


def without(value: Any, *keys: str) -> Any:
    """Without nulls and these keys, at any depth."""
    if isinstance(value, dict):
        return {k: without(v, *keys) for k, v in value.items() if v is not None and k not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


def added(before: Any, after: Any, path: str = "") -> set[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        out: set[str] = set()
        for key in {*before, *after}:
            where = f"{path}.{key}" if path else key
            out |= {where} if key not in before or key not in after else added(before[key], after[key], where)
        return out
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return set().union(*(added(b, a, f"{path}[]") for b, a in zip(before, after, strict=True)))
    return set() if before == after else {path}


# Values that a client of the recordings did not send: taking them out and defaulting must bring them back.
DEFAULTED = (
    "terminationMessagePath",
    "terminationMessagePolicy",
    "imagePullPolicy",
    "dnsPolicy",
    "schedulerName",
    "terminationGracePeriodSeconds",
    "protocol",
    "scheme",
    "timeoutSeconds",
    "successThreshold",
    "failureThreshold",
    "defaultMode",
    "sessionAffinity",
    "revisionHistoryLimit",
    "progressDeadlineSeconds",
    "strategy",
    "updateStrategy",
    "podManagementPolicy",
    "concurrencyPolicy",
    "backoffLimit",
    "volumeMode",
    "enableServiceLinks",
    "externalTrafficPolicy",
    "status",
)


def test_defaults_are_those_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    seen = 0
    for name, code, _, body in oracle("samples.json"):
        if code not in (200, 201) or not body.startswith("{") or name in ("scale get", "scale patch", "ssar"):
            continue
        obj = without(json.loads(body), "managedFields")
        info = by_kind(obj.get("apiVersion", ""), obj.get("kind", ""))
        if info is None or obj["metadata"].get("deletionTimestamp") or name == "status put ignored spec":
            continue
        seen += 1
        assert added(obj, filled(without(obj, *DEFAULTED))) <= NEWER, name
    assert seen > 8
