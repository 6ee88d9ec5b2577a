"""Refusals: the path, the kind of refusal and the sentence, as upstream's."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from controlplane.apiserver import defaults, errors
from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.schema import Schema
from controlplane.apiserver.validation import validate_create, validate_update
from controlplane.apiserver.validation_pod_update import ephemeral_containers_update

SCHEMA = Schema.load()
META = {"name": "x", "namespace": "default"}
MIRROR, ARMOR = "kubernetes.io/config.mirror", "container.apparmor.security.beta.kubernetes.io/c"
KEPT = "may not remove or update"
CONTAINER = {"name": "c", "image": "busybox"}
TWICE = [
    {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}},
    {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}},
]
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": META, "spec": {"containers": [CONTAINER]}}
DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": META,
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER]}},
    },
}
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": META, "spec": {"ports": [{"port": 80}]}}


def prepared(obj: dict[str, Any]) -> dict[str, Any]:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    result = SCHEMA.check(info.definition, obj)
    assert (result.causes, result.unknown) == ([], [])
    defaults.apply(info, result.obj)
    return copy.deepcopy(result.obj)


def create(obj: dict[str, Any]) -> list[str]:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    return [cause.text for cause in validate_create(info, prepared(obj))]


def update(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    info = by_kind(new["apiVersion"], new["kind"])
    assert info is not None
    return [cause.text for cause in validate_update(info, prepared(new), prepared(old))]


def pod(**spec: Any) -> dict[str, Any]:
    return {**POD, "spec": {"containers": [CONTAINER], **spec}}


def container(**fields: Any) -> dict[str, Any]:
    return {**POD, "spec": {"containers": [{**CONTAINER, **fields}]}}


def deployment(**spec: Any) -> dict[str, Any]:
    return {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], **spec}}  # type: ignore[dict-item]


def service(**spec: Any) -> dict[str, Any]:
    return {**SERVICE, "spec": {**SERVICE["spec"], **spec}}  # type: ignore[dict-item]


@pytest.mark.parametrize("obj", [POD, DEPLOYMENT, SERVICE])
def test_good_objects_pass(obj: dict[str, Any]) -> None:
    assert create(obj) == []
    assert update(obj, obj) == []


SUBDOMAIN = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        ({**POD, "metadata": {**META, "name": "A_B"}}, f'metadata.name: Invalid value: "A_B": {SUBDOMAIN}'),
        (
            {**POD, "metadata": {"namespace": "default"}},
            "metadata.name: Required value: name or generateName is required",
        ),
        (
            {**SERVICE, "metadata": {**META, "name": "1a"}},
            'metadata.name: Invalid value: "1a": a DNS-1035 label must consist of lower case alphanumeric '
            "characters or '-', start with an alphabetic character, and end with an alphanumeric character "
            "(e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')",
        ),
        (
            {**POD, "metadata": {**META, "labels": {"a": "b c"}}},
            'metadata.labels: Invalid value: "b c": a valid label must be an empty string or consist of '
            "alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
            "(e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
            "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        ),
        (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "namespace": "y"}},
            "metadata.namespace: Forbidden: not allowed on this type",
        ),
    ],
)
def test_metadata(obj: dict[str, Any], wanted: str) -> None:
    assert create(obj) == [wanted]


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        ({**POD, "spec": {}}, "spec.containers: Required value"),
        ({**POD, "spec": {"containers": [{"name": "c"}]}}, "spec.containers[0].image: Required value"),
        ({**POD, "spec": {"containers": [{"image": "i"}]}}, "spec.containers[0].name: Required value"),
        (
            {**POD, "spec": {"containers": [CONTAINER, CONTAINER]}},
            'spec.containers[1].name: Duplicate value: "c"',
        ),
        (
            container(image=" busybox"),
            'spec.containers[0].image: Invalid value: " busybox": '
            "must not have leading or trailing whitespace",
        ),
        (
            container(imagePullPolicy="Sometimes"),
            'spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", '
            '"IfNotPresent", "Never"',
        ),
        (
            container(ports=[{"containerPort": 70000}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: "
            "must be between 1 and 65535, inclusive",
        ),
        (
            container(volumeMounts=[{"name": "v", "mountPath": "/v"}]),
            'spec.containers[0].volumeMounts[0].name: Not found: "v"',
        ),
        (
            container(env=[{"name": "A=B"}]),
            'spec.containers[0].env[0].name: Invalid value: "A=B": a valid environment variable name must '
            "consist only of printable ASCII characters other than '='",
        ),
        (
            container(env=[{"name": "A", "valueFrom": {}}]),
            'spec.containers[0].env[0].valueFrom: Invalid value: "": must specify one of: `fieldRef`, '
            "`resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ),
        (
            container(resources={"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}),
            'spec.containers[0].resources.requests: Invalid value: "2": '
            "must be less than or equal to cpu limit of 1",
        ),
        (
            container(livenessProbe={}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            container(livenessProbe={"exec": {"command": ["x"]}, "successThreshold": 2}),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            pod(restartPolicy="Sometimes"),
            'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", '
            '"OnFailure", "Never"',
        ),
        (
            pod(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            pod(volumes=[{"name": "v", "projected": {"sources": TWICE}}]),
            'spec.volumes[0].projected: Invalid value: "s": conflicting duplicate paths',
        ),
        (
            pod(volumes=[{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "../k"}]}}]),
            "spec.volumes[0].configMap.items[0].path: Invalid value: \"../k\": must not contain '..'",
        ),
        (
            pod(dnsPolicy="None"),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            pod(initContainers=[{**CONTAINER, "name": "i", "livenessProbe": {"exec": {"command": ["x"]}}}]),
            "spec.initContainers[0].livenessProbe: Forbidden: "
            "may not be set for init containers without restartPolicy=Always",
        ),
        (
            container(lifecycle={"preStop": {"sleep": {"seconds": 31}}}),
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: "
            "must be greater than 0 and less than terminationGracePeriodSeconds (30)",
        ),
        (
            container(lifecycle={"preStop": {"sleep": {"seconds": 0}}}),
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 0: "
            "must be greater than 0 and less than terminationGracePeriodSeconds (30)",
        ),
    ],
)
def test_pods(obj: dict[str, Any], wanted: str) -> None:
    assert create(obj) == [wanted]


def test_a_negative_grace_is_taken() -> None:
    """Upstream warns (test_pod_warnings.py), and treats it as 1."""
    assert create(pod(terminationGracePeriodSeconds=-1)) == []


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (
            deployment(selector={"matchLabels": {"a": "c"}}),
            'spec.template.metadata.labels: Invalid value: map[string]string{"a":"b"}: '
            "`selector` does not match template `labels`",
        ),
        (deployment(replicas=-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (
            deployment(strategy={"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            deployment(strategy={"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "
            'intstr.IntOrString{Type:0, IntVal:0, StrVal:""}: may not be 0 when `maxSurge` is 0',
        ),
        (service(ports=[]), "spec.ports: Required value"),
        (
            service(ports=[{"port": 80}, {"port": 81, "name": "b"}]),
            "spec.ports[0].name: Required value",
        ),
        (
            service(type="Magic"),
            'spec.type: Unsupported value: "Magic": supported values: "ClusterIP", "ExternalName", '
            '"LoadBalancer", "NodePort"',
        ),
        (
            service(ports=[{"port": 80, "nodePort": 30000}]),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            service(clusterIP="1.2.3"),
            'spec.clusterIPs[0]: Invalid value: "1.2.3": must be a valid IP address, '
            "(e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": META, "data": {"a b": ""}},
            'data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '
            "'-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
            "'[-._a-zA-Z0-9]+')",
        ),
        (
            {"apiVersion": "v1", "kind": "Secret", "metadata": META, "type": "kubernetes.io/ssh-auth"},
            "data[ssh-privatekey]: Required value",
        ),
        (
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": META,
                "data": {"a": "x" * (1024 * 1024 + 1)},
            },
            "Too long: may not be more than 1048576 bytes",
        ),
    ],
)
def test_other_kinds(obj: dict[str, Any], wanted: str) -> None:
    assert create(obj) == [wanted]


SPREAD = {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
ODD = {"matchExpressions": [{"key": "a", "operator": "Foo"}]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
NEAR = f"spec.affinity.podAffinity.{REQUIRED}[0]"


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone"}]}}}, []),
        (
            {"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": "zone", "labelSelector": ODD}]}}},
            [
                f'{NEAR}.labelSelector.matchExpressions[0].operator: Invalid value: "Foo": '
                "not a valid selector operator"
            ],
        ),
        (
            {"affinity": {"podAffinity": {REQUIRED: [{"topologyKey": ""}]}}},
            [f"{NEAR}.topologyKey: Required value: can not be empty"],
        ),
        (
            {
                "affinity": {
                    "podAntiAffinity": {
                        PREFERRED: [{"weight": 101, "podAffinityTerm": {"topologyKey": "zone"}}]
                    }
                }
            },
            [
                f"spec.affinity.podAntiAffinity.{PREFERRED}[0].weight: Invalid value: 101: "
                "must be in the range 1-100"
            ],
        ),
        ({"topologySpreadConstraints": [SPREAD, SPREAD | {"whenUnsatisfiable": "ScheduleAnyway"}]}, []),
        (
            {"topologySpreadConstraints": [SPREAD | {"maxSkew": 0}]},
            ["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero"],
        ),
        (
            {"topologySpreadConstraints": [SPREAD | {"whenUnsatisfiable": "Never"}]},
            [
                'spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "Never": '
                'supported values: "DoNotSchedule", "ScheduleAnyway"'
            ],
        ),
    ],
)
def test_placement(spec: dict[str, Any], wanted: list[str]) -> None:
    assert create(pod(**spec)) == wanted


def test_an_image_and_more_tolerations_may_change_in_a_pod() -> None:
    new = copy.deepcopy(container(image="busybox:2"))
    new["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    new["spec"]["tolerations"] = [{"key": "a", "operator": "Exists"}]
    assert update(new, POD) == []


def test_a_command_may_not_change_in_a_pod() -> None:
    found = update(container(command=["x"]), POD)
    assert len(found) == 1
    assert found[0].startswith(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
        "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` "
    )
    assert "spec.containers[0].command" in found[0]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({MIRROR: "a"}, {MIRROR: "b"}, [f"[{MIRROR}]: Forbidden: {KEPT} mirror pod annotation"]),
        ({MIRROR: "a"}, {}, [f"[{MIRROR}]: Forbidden: {KEPT} mirror pod annotation"]),
        ({}, {MIRROR: "a"}, [f"[{MIRROR}]: Forbidden: may not add mirror pod annotation"]),
        ({ARMOR: "a"}, {}, [f"[{ARMOR}]: Forbidden: {KEPT} AppArmor annotations"]),
        ({MIRROR: "a"}, {MIRROR: "a", "other": "x"}, []),
        ({MIRROR: "a"}, {MIRROR: "a", f"{MIRROR}-by": "x"}, []),
    ],
)  # fmt: skip
def test_annotations_that_the_node_goes_by_stay(
    before: dict[str, str], after: dict[str, str], wanted: list[str]
) -> None:
    old, new = copy.deepcopy(POD), copy.deepcopy(POD)
    old["metadata"]["annotations"], new["metadata"]["annotations"] = before, after
    assert update(new, old) == [f"metadata.annotations{text}" for text in wanted]


def test_a_static_pods_mirror_takes_no_ephemeral_containers() -> None:
    old = copy.deepcopy(POD)
    old["metadata"]["annotations"] = {MIRROR: "a"}
    new = copy.deepcopy(old)
    new["spec"]["ephemeralContainers"] = [{**CONTAINER, "name": "debugger"}]
    assert update(new, old) == ["Forbidden: static pods do not support ephemeral containers"]


def test_containers_may_not_be_added_to_a_pod() -> None:
    new = pod(containers=[CONTAINER, {**CONTAINER, "name": "d"}])
    assert update(new, POD) == ["spec.containers: Forbidden: pod updates may not add or remove containers"]


def test_a_toleration_may_not_go() -> None:
    old = pod(tolerations=[{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}])
    longer = copy.deepcopy(old)
    longer["spec"]["tolerations"][0]["tolerationSeconds"] = 2
    assert update(longer, old) == []
    assert update(POD, old) == [
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    ]


def test_a_deadline_may_only_shrink() -> None:
    def deadline(seconds: int) -> dict[str, Any]:
        return pod(activeDeadlineSeconds=seconds)

    assert update(deadline(5), deadline(9)) == []
    assert update(deadline(9), deadline(5)) == [
        "spec.activeDeadlineSeconds: Invalid value: 9: must be less than or equal to previous value"
    ]


def test_a_selector_is_for_ever() -> None:
    new = deployment(
        selector={"matchLabels": {"a": "c"}},
        template={"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [CONTAINER]}},
    )
    assert update(new, DEPLOYMENT) == [
        'spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string{"a":"c"}, '
        "MatchExpressions:[]v1.LabelSelectorRequirement(nil)}: field is immutable"
    ]


def test_a_cluster_ip_is_for_ever() -> None:
    old, new = service(clusterIP="10.96.0.5"), service(clusterIP="10.96.0.6")
    assert update(new, old) == [
        'spec.clusterIPs[0]: Invalid value: []string{"10.96.0.6"}: may not change once set'
    ]
    assert update(service(type="ExternalName", externalName="a.b", ports=[]), old) == []


def test_immutable_config_maps_and_secret_types_stay() -> None:
    old = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": META, "data": {"a": "b"}, "immutable": True}
    assert update({**old, "data": {"a": "c"}}, old) == [
        "data: Forbidden: field is immutable when `immutable` is set"
    ]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": META}
    assert update({**secret, "type": "x"}, secret) == ['type: Invalid value: "x": field is immutable']


def test_identity_and_finalizers_of_dying_objects() -> None:
    old = {**POD, "metadata": {**META, "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    new = {**old, "metadata": {**old["metadata"], "uid": "2", "finalizers": ["a.b/c"]}}  # type: ignore[dict-item]
    assert update(new, old) == [
        'metadata.uid: Invalid value: "2": field is immutable',
        "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, "
        'found new finalizers []string{"a.b/c"}',
    ]


def test_ephemeral_containers_are_added_but_never_changed() -> None:
    old = pod(ephemeralContainers=[{**CONTAINER, "name": "e"}])
    more = pod(ephemeralContainers=[{**CONTAINER, "name": "e"}, {**CONTAINER, "name": "f"}])
    assert ephemeral_containers_update(prepared(more), prepared(old)).found == []
    other = pod(ephemeralContainers=[{**CONTAINER, "name": "e", "image": "z"}])
    assert ephemeral_containers_update(prepared(other), prepared(old)).found[0].type == errors.FORBIDDEN
    assert update(more, old) == []
    assert len(update(other, old)) == 1
    nameless = pod(ephemeralContainers=[{"image": "x"}])
    assert update(nameless, POD) == ["spec.ephemeralContainers[0].name: Required value"]


def test_reviews_need_no_metadata() -> None:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get"}},
    }
    assert create(review) == []


def test_sentences_are_those_of_a_real_server(oracle: Callable[[str], Any]) -> None:
    recorded = {name: json.loads(body) for name, code, _, body in oracle("samples.json") if code == 422}
    metadata = {"name": "Bad_Name", "namespace": "default"}
    cases = {
        "pod invalid": {**POD, "metadata": metadata, "spec": {"containers": [{}]}},
        "no containers": {**POD, "metadata": {**META, "name": "q"}, "spec": {"containers": []}},
        "deploy sel mismatch": {
            **deployment(selector={"matchLabels": {"a": "c"}}),
            "metadata": {**META, "name": "d2"},
        },
        "svc no ports": {**service(ports=[]), "metadata": {**META, "name": "svc3"}},
    }
    for name, obj in cases.items():
        info = by_kind(obj["apiVersion"], obj["kind"])
        assert info is not None
        causes = validate_create(info, prepared(obj))
        answer = errors.invalid(info.kind, info.group, obj["metadata"]["name"], causes)
        assert json.loads(answer.body()) == recorded[name], name


def test_what_was_stored_under_older_rules_can_still_be_scaled() -> None:
    variable = {"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}}
    old = copy.deepcopy(DEPLOYMENT)
    old["spec"]["template"]["spec"]["containers"] = [{**CONTAINER, "env": [variable]}]
    assert create(old)
    new = copy.deepcopy(old)
    new["spec"]["replicas"] = 3
    assert update(new, old) == []
    new["spec"]["replicas"] = -1
    assert update(new, old) == ["spec.replicas: Invalid value: -1: must be greater than or equal to 0"]
    new = copy.deepcopy(old)
    new["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["resourceFieldRef"] = {
        "resource": "limits.tpu"
    }
    (said,) = update(new, old)
    assert 'resourceFieldRef.resource: Unsupported value: "limits.tpu"' in said


def test_a_pod_that_was_stored_under_older_rules_can_be_debugged() -> None:
    sleeps = {"lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}
    old = pod(containers=[{**CONTAINER, **sleeps}])
    assert create(old)
    more = pod(containers=[{**CONTAINER, **sleeps}], ephemeralContainers=[{**CONTAINER, "name": "e"}])
    assert ephemeral_containers_update(prepared(more), prepared(old)).found == []
    more["spec"]["ephemeralContainers"][0]["name"] = "c"
    (said,) = ephemeral_containers_update(prepared(more), prepared(old)).found
    assert said.field == "spec.ephemeralContainers[0].name"
