"""Refusals of what would bound or steer others: as upstream's, and what is good passes."""

from __future__ import annotations

from typing import Any

import pytest

from .test_validation import DEPLOYMENT, META, container, create, pod, service, update


def stateful(**spec: Any) -> dict[str, Any]:
    return {**DEPLOYMENT, "kind": "StatefulSet", "spec": {**DEPLOYMENT["spec"], "serviceName": "s", **spec}}


NAME_DETAIL = "name part must consist of alphanumeric characters"


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (
            pod(schedulingGates=[{"name": "a b"}]),
            f'spec.schedulingGates[0]: Invalid value: "a b": {NAME_DETAIL}',
        ),
        (
            pod(readinessGates=[{"conditionType": "a b"}]),
            f'spec.readinessGates[0].conditionType: Invalid value: "a b": {NAME_DETAIL}',
        ),
        (pod(os={"name": "beos"}), 'spec.os: Unsupported value: "beos": supported values: "linux"'),
        (pod(os={"name": ""}), "spec.os.name: Required value: cannot be empty"),
        (
            container(resources={"limits": {"a.b/c": "1.5"}, "requests": {"a.b/c": "1500m"}}),
            'spec.containers[0].resources.limits[a.b/c]: Invalid value: "1500m": must be an integer',
        ),
        (
            container(resizePolicy=[{"resourceName": "x", "restartPolicy": "NotRequired"}]),
            'spec.containers[0].resizePolicy[0].resourceName: Unsupported value: "x"',
        ),
        (
            stateful(updateStrategy={"type": "OnDelete", "rollingUpdate": {"partition": 1}}),
            "spec.updateStrategy.rollingUpdate: Invalid value: ",
        ),
        (stateful(ordinals={"start": -1}), "spec.ordinals.start: Invalid value: -1: must be greater"),
        (
            stateful(persistentVolumeClaimRetentionPolicy={"whenDeleted": "Keep"}),
            'spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: "Keep"',
        ),
        (
            service(externalIPs=["127.0.0.1"]),
            'spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range',
        ),
        (
            service(externalIPs=["224.0.0.251"]),
            'spec.externalIPs[0]: Invalid value: "224.0.0.251": may not be in the link-local multicast range',
        ),
        (
            service(externalIPs=["ff02::fb"]),
            'spec.externalIPs[0]: Invalid value: "ff02::fb": may not be in the link-local multicast range',
        ),
        (
            service(loadBalancerSourceRanges=["10.0.0.0/8"]),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            service(type="LoadBalancer", loadBalancerSourceRanges=["10.0.0.0"]),
            'spec.LoadBalancerSourceRanges[0]: Invalid value: "10.0.0.0": must be a valid CIDR value',
        ),
        (
            service(allocateLoadBalancerNodePorts=False),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            service(type="LoadBalancer", loadBalancerClass="a b"),
            f'spec.loadBalancerClass: Invalid value: "a b": {NAME_DETAIL}',
        ),
        (
            service(healthCheckNodePort=30001),
            "spec.healthCheckNodePort: Invalid value: 30001: may only be set when `type` is 'LoadBalancer'",
        ),
        (
            service(trafficDistribution="Far"),
            'spec.trafficDistribution: Unsupported value: "Far": supported values: "PreferClose"',
        ),
    ],
)
def test_what_was_taken_as_it_came_is_refused(obj: dict[str, Any], wanted: str) -> None:
    found = create(obj)
    assert found and found[0].startswith(wanted), found


def bound(kind: str, group_version: str = "v1", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": group_version, "kind": kind, "metadata": META, **parts}


def limits(**limit: Any) -> dict[str, Any]:
    return bound("LimitRange", spec={"limits": [{"type": "Container", **limit}]})


def quota(*scopes: str, **hard: str) -> dict[str, Any]:
    return bound("ResourceQuota", spec={"hard": hard, "scopes": list(scopes)})


def policy(peer: Any = None, port: Any = None) -> dict[str, Any]:
    rule = {"from": [peer] if peer is not None else [], "ports": [port] if port else []}
    spec = {"podSelector": {}, "ingress": [rule]}
    return bound("NetworkPolicy", "networking.k8s.io/v1", spec=spec)


def priority(name: str = "x", **parts: Any) -> dict[str, Any]:
    made = bound("PriorityClass", "scheduling.k8s.io/v1", **parts)
    return made | {"metadata": {"name": name}}


FROM = "spec.ingress[0].from[0].ipBlock"


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (
            limits(min={"cpu": "2"}, max={"cpu": "1"}),
            'spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1',
        ),
        (
            limits(default={"cpu": "1"}, defaultRequest={"cpu": "2"}),
            'spec.limits[0].defaultRequest[cpu]: Invalid value: "2": default request value 2 is greater',
        ),
        (limits(type="Pod", default={"cpu": "1"}), "spec.limits[0].default: Forbidden: may not be"),
        (limits(type="X"), 'spec.limits[0].type: Invalid value: "X": must be a standard limit type'),
        (limits(type="PersistentVolumeClaim"), "spec.limits[0].limits: Required value: either minimum"),
        (
            limits(maxLimitRequestRatio={"cpu": "500m"}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value",
        ),
        (quota(foo="1"), 'spec.hard[foo]: Invalid value: "foo": must be a standard resource'),
        (quota(pods="-1"), 'spec.hard[pods]: Invalid value: "-1": must be greater than or equal to 0'),
        (quota(pods="1500m"), 'spec.hard[pods]: Invalid value: "1500m": must be an integer'),
        (
            quota("X", pods="1"),
            'spec.scopes: Invalid value: []core.ResourceQuotaScope{"X"}: unsupported scope',
        ),
        (
            quota("BestEffort", cpu="1"),
            'spec.scopes: Invalid value: []core.ResourceQuotaScope{"BestEffort"}: unsupported scope',
        ),
        (
            quota("BestEffort", "NotBestEffort", pods="1"),
            'spec.scopes: Invalid value: []core.ResourceQuotaScope{"BestEffort", "NotBestEffort"}: conf',
        ),
        (priority(value=1_000_000_001), "value: Forbidden: maximum allowed value"),
        (
            priority("system-x", value=1),
            "metadata.name: Forbidden: priority class names with 'system-' prefix",
        ),
        (priority(value=1, preemptionPolicy="X"), 'preemptionPolicy: Unsupported value: "X"'),
        (policy({"ipBlock": {"cidr": "x"}}), f'{FROM}.cidr: Invalid value: "x": must be a valid CIDR value'),
        (
            policy({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}),
            f'{FROM}.except[0]: Invalid value: "11.0.0.0/9": must be a strict subset of `cidr`',
        ),
        (
            policy(port={"port": 10, "endPort": 5}),
            "spec.ingress[0].ports[0].endPort: Invalid value: 10: must be greater",
        ),
        (policy(port={"endPort": 5}), "spec.ingress[0].ports[0].endPort: Invalid value: 5: may not be"),
        (
            bound("PodDisruptionBudget", "policy/v1", spec={"minAvailable": "101%"}),
            'spec.minAvailable: Invalid value: intstr.IntOrString{Type:1, IntVal:0, StrVal:"101%"}: must',
        ),
        (
            bound("PodDisruptionBudget", "policy/v1", spec={"unhealthyPodEvictionPolicy": "X"}),
            'spec.unhealthyPodEvictionPolicy: Unsupported value: "X"',
        ),
        (
            bound("Ingress", "networking.k8s.io/v1", spec={"defaultBackend": {"service": {"name": "s"}}}),
            "spec.defaultBackend.service: Required value: port name or number is required",
        ),
        (
            bound("Ingress", "networking.k8s.io/v1", spec={"rules": [{"host": "A_"}]}),
            'spec.rules[0].host: Invalid value: "A_": a lowercase RFC 1123 subdomain',
        ),
    ],
)
def test_bounds_that_cannot_be_kept(obj: dict[str, Any], wanted: str) -> None:
    found = create(obj)
    assert found and found[0].startswith(wanted), found


@pytest.mark.parametrize(
    "obj",
    [
        service(externalIPs=["224.0.1.1", "239.1.2.3", "ff05::2"]),
        limits(min={"cpu": "1"}, max={"cpu": "2"}, default={"cpu": "2"}, defaultRequest={"cpu": "1"}),
        limits(type="PersistentVolumeClaim", min={"storage": "1Gi"}),
        quota(
            **{"pods": "1", "count/jobs.batch": "2", "requests.nvidia.com/gpu": "1", "hugepages-2Mi": "4Mi"}
        ),
        quota("NotBestEffort", cpu="1", pods="3"),
        priority(value=1_000_000_000),
        priority("system-node-critical", value=2_000_001_000),
        policy({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"port": 1, "endPort": 2}),
        policy({"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}}),
        bound("Ingress", "networking.k8s.io/v1", spec={"rules": [{"host": "*.a.example"}]}),
    ],
)
def test_bounds_that_can(obj: dict[str, Any]) -> None:
    assert create(obj) == []


@pytest.mark.parametrize(
    ("old", "change"),
    [
        (
            stateful(updateStrategy={"type": "OnDelete", "rollingUpdate": {"partition": 1}}),
            {"replicas": 3},
        ),
        (quota(foo="1"), {"hard": {"bar": "1"}}),
        (bound("PodDisruptionBudget", "policy/v1", spec={"minAvailable": "150%"}), {"selector": {}}),
        (
            bound("Ingress", "networking.k8s.io/v1", spec={"rules": [{"host": "A_"}]}),
            {"ingressClassName": "a"},
        ),
    ],
)
def test_what_was_stored_before_a_rule_still_gets_status_and_metadata(
    old: dict[str, Any], change: dict[str, Any]
) -> None:
    labelled = old | {"metadata": {**old["metadata"], "labels": {"a": "b"}}}
    assert update(labelled | {"status": {}}, old) == []
    ill = old | {"metadata": {**old["metadata"], "labels": {"a b": ""}}}
    assert [text.split(":")[0] for text in update(ill, old)] == ["metadata.labels"]
    assert update(old | {"spec": {**old["spec"], **change}}, old)


def test_of_a_priority_class_only_what_others_rely_on_stays() -> None:
    old = priority("system-mine", value=2_000_000_007)
    assert update(old | {"description": "ours"}, old) == []
    assert update(old | {"value": 1}, old) == ["value: Forbidden: may not be changed in an update."]
    changed = update(old | {"preemptionPolicy": "Never"}, old)
    assert [text.split(":")[0] for text in changed] == ["preemptionPolicy"]


def test_a_tokens_secret_keeps_the_name_of_its_account() -> None:
    note = {"annotations": {"kubernetes.io/service-account.name": "a"}}
    old = bound("Secret", type="kubernetes.io/service-account-token")
    old |= {"metadata": {**old["metadata"], **note}}
    wanted = "metadata.annotations[kubernetes.io/service-account.name]: Required value"
    assert update(old | {"metadata": {**old["metadata"], "annotations": {}}}, old) == [wanted]
