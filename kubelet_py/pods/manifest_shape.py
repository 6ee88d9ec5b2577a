"""PURE: of which type the fields of a pod are, as far as the node reads them.

What comes from the API was decoded there, field by field. A manifest was written by a person and met nobody:
a text where a list belongs must be told of and stay out, not end the thread that looks at manifests. Fields
that are not named here are left alone, as upstream's decoder leaves unknown ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# A shape is one of these words, [shape of the items], {field: shape}, or {ANY_KEY: shape of the values}.
TEXT, NUMBER, FLAG = "a text", "a whole number", "true or false"
AMOUNT, PORT = "a quantity", "a number or a name"
ANY_KEY = "*"
_TYPES: dict[str, tuple[type, ...]] = {
    TEXT: (str,), NUMBER: (int,), FLAG: (bool,), AMOUNT: (str, int, float), PORT: (str, int)
}  # fmt: skip

TEXTS = {ANY_KEY: TEXT}
_SELECTOR = [{"key": TEXT, "operator": TEXT, "values": [TEXT]}]
_TERM = {"matchExpressions": _SELECTOR, "matchFields": _SELECTOR}
_HANDLER = {
    "exec": {"command": [TEXT]},
    "httpGet": {
        "path": TEXT, "port": PORT, "host": TEXT, "scheme": TEXT,
        "httpHeaders": [{"name": TEXT, "value": TEXT}],
    },
    "tcpSocket": {"port": PORT, "host": TEXT},
    "grpc": {"port": NUMBER, "service": TEXT},
    "sleep": {"seconds": NUMBER},
}  # fmt: skip
_PROBE = {
    **_HANDLER, "initialDelaySeconds": NUMBER, "timeoutSeconds": NUMBER, "periodSeconds": NUMBER,
    "successThreshold": NUMBER, "failureThreshold": NUMBER, "terminationGracePeriodSeconds": NUMBER,
}  # fmt: skip
_OPTIONS = {"type": TEXT, "localhostProfile": TEXT}
_CONFINED = {
    "runAsUser": NUMBER, "runAsGroup": NUMBER, "runAsNonRoot": FLAG, "seccompProfile": _OPTIONS,
    "appArmorProfile": _OPTIONS, "seLinuxOptions": TEXTS,
}  # fmt: skip
_CONTAINER_CONTEXT = {
    **_CONFINED, "privileged": FLAG, "allowPrivilegeEscalation": FLAG, "readOnlyRootFilesystem": FLAG,
    "procMount": TEXT, "capabilities": {"add": [TEXT], "drop": [TEXT]},
}  # fmt: skip
_POD_CONTEXT = {
    **_CONFINED, "fsGroup": NUMBER, "fsGroupChangePolicy": TEXT, "supplementalGroups": [NUMBER],
    "supplementalGroupsPolicy": TEXT, "sysctls": [{"name": TEXT, "value": TEXT}],
}  # fmt: skip
_RESOURCES = {"limits": {ANY_KEY: AMOUNT}, "requests": {ANY_KEY: AMOUNT}}
_KEY = {"name": TEXT, "key": TEXT, "optional": FLAG}
_FIELD = {"fieldPath": TEXT, "apiVersion": TEXT}
_AMOUNT_OF = {"containerName": TEXT, "resource": TEXT, "divisor": AMOUNT}
_CONTAINER = {
    "name": TEXT, "image": TEXT, "imagePullPolicy": TEXT, "command": [TEXT], "args": [TEXT],
    "workingDir": TEXT, "tty": FLAG, "stdin": FLAG, "stdinOnce": FLAG, "restartPolicy": TEXT,
    "terminationMessagePath": TEXT, "terminationMessagePolicy": TEXT,
    "ports": [{"name": TEXT, "containerPort": NUMBER, "hostPort": NUMBER, "hostIP": TEXT, "protocol": TEXT}],
    "env": [{
        "name": TEXT, "value": TEXT, "valueFrom": {
            "configMapKeyRef": _KEY, "secretKeyRef": _KEY, "fieldRef": _FIELD, "resourceFieldRef": _AMOUNT_OF
        },
    }],
    "envFrom": [{"prefix": TEXT, "configMapRef": _KEY, "secretRef": _KEY}],
    "resources": _RESOURCES, "resizePolicy": [{"resourceName": TEXT, "restartPolicy": TEXT}],
    "volumeMounts": [{
        "name": TEXT, "mountPath": TEXT, "subPath": TEXT, "subPathExpr": TEXT, "readOnly": FLAG,
        "mountPropagation": TEXT, "recursiveReadOnly": TEXT,
    }],
    "volumeDevices": [{"name": TEXT, "devicePath": TEXT}],
    "livenessProbe": _PROBE, "readinessProbe": _PROBE, "startupProbe": _PROBE,
    "lifecycle": {"postStart": _HANDLER, "preStop": _HANDLER}, "securityContext": _CONTAINER_CONTEXT,
}  # fmt: skip
_ITEMS = [{"key": TEXT, "path": TEXT, "mode": NUMBER}]
_OF_OBJECT = {"name": TEXT, "items": _ITEMS, "optional": FLAG}
_OF_POD = {
    "items": [{"path": TEXT, "mode": NUMBER, "fieldRef": _FIELD, "resourceFieldRef": _AMOUNT_OF}]
}  # fmt: skip
_TOKEN = {"audience": TEXT, "expirationSeconds": NUMBER, "path": TEXT}
_VOLUME = {
    "name": TEXT,
    "emptyDir": {"medium": TEXT, "sizeLimit": AMOUNT},
    "hostPath": {"path": TEXT, "type": TEXT},
    "configMap": {**_OF_OBJECT, "defaultMode": NUMBER},
    "secret": {"secretName": TEXT, "items": _ITEMS, "optional": FLAG, "defaultMode": NUMBER},
    "downwardAPI": {**_OF_POD, "defaultMode": NUMBER},
    "projected": {"defaultMode": NUMBER, "sources": [{
        "configMap": _OF_OBJECT, "secret": _OF_OBJECT, "downwardAPI": _OF_POD, "serviceAccountToken": _TOKEN
    }]},
    "persistentVolumeClaim": {"claimName": TEXT, "readOnly": FLAG},
    "nfs": {"server": TEXT, "path": TEXT, "readOnly": FLAG},
    "image": {"reference": TEXT, "pullPolicy": TEXT},
}  # fmt: skip
POD = {
    "metadata": {"name": TEXT, "namespace": TEXT, "labels": TEXTS, "annotations": TEXTS},
    "spec": {
        "containers": [_CONTAINER], "initContainers": [_CONTAINER], "volumes": [_VOLUME],
        "restartPolicy": TEXT, "dnsPolicy": TEXT, "nodeName": TEXT, "hostname": TEXT, "subdomain": TEXT,
        "serviceAccountName": TEXT, "runtimeClassName": TEXT, "priorityClassName": TEXT,
        "schedulerName": TEXT, "setHostnameAsFQDN": FLAG,
        "hostNetwork": FLAG, "hostPID": FLAG, "hostIPC": FLAG, "hostUsers": FLAG,
        "shareProcessNamespace": FLAG, "enableServiceLinks": FLAG, "automountServiceAccountToken": FLAG,
        "priority": NUMBER, "terminationGracePeriodSeconds": NUMBER, "activeDeadlineSeconds": NUMBER,
        "overhead": {ANY_KEY: AMOUNT}, "resources": _RESOURCES, "os": {"name": TEXT}, "nodeSelector": TEXTS,
        "imagePullSecrets": [{"name": TEXT}], "readinessGates": [{"conditionType": TEXT}],
        "hostAliases": [{"ip": TEXT, "hostnames": [TEXT]}], "securityContext": _POD_CONTEXT,
        "dnsConfig": {
            "nameservers": [TEXT], "searches": [TEXT], "options": [{"name": TEXT, "value": TEXT}]
        },
        "tolerations": [{
            "key": TEXT, "operator": TEXT, "value": TEXT, "effect": TEXT, "tolerationSeconds": NUMBER
        }],
        "affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]}
        }},
    },
}  # fmt: skip
OBJECT = {"metadata": {"name": TEXT, "namespace": TEXT}}


def without_nulls(value: Any) -> Any:
    """A copy in which nothing is null: to the API a null is a field that is not there."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [{} if item is None else without_nulls(item) for item in value]
    return value


def with_whole_numbers(value: Any) -> Any:
    """A copy in which 5.0 is 5: upstream makes JSON of every manifest, and Go writes such a number so."""
    if isinstance(value, dict):
        return {key: with_whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def is_deeper(value: Any, levels: int) -> bool:
    """Are there more than so many levels of objects and lists?"""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(is_deeper(item, levels - 1) for item in inner))


def faults(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    """One sentence for each field that is of another type."""
    if isinstance(shape, str):
        if not isinstance(value, _TYPES[shape]) or (isinstance(value, bool) and shape != FLAG):
            yield f"{path}: must be {shape}, not {_kind(value)}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path}: must be a list, not {_kind(value)}"
            return
        for index, item in enumerate(value):
            yield from faults(item, shape[0], f"{path}[{index}]")
    elif not isinstance(value, Mapping):
        yield f"{path}: must be an object, not {_kind(value)}"
    else:
        for key, item in value.items():
            wanted = shape.get(key, shape.get(ANY_KEY))
            if wanted is not None:
                yield from faults(item, wanted, f"{path}.{key}".removeprefix("."))


def _kind(value: Any) -> str:
    kinds = ((bool, FLAG), (str, "a text"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    return next((word for type_, word in kinds if isinstance(value, type_)), type(value).__name__)
