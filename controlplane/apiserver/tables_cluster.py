"""Rows of networking, policy, RBAC, storage classes, leases and certificates."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from controlplane.apiserver.tables_text import (
    NONE,
    UNSET,
    age,
    columns,
    first_few,
    human_duration,
    name,
    selector,
)
from kubeclient import quantity

Object = dict[str, Any]

SLICE = columns("Name|AddressType|Ports|Endpoints|Age")
INGRESS = columns("Name|Class|Hosts|Address|Ports|Age")
INGRESS_CLASS = columns("Name|Controller|Parameters|Age")
NETWORK_POLICY = columns("Name|Pod-Selector|Age")
BUDGET = columns("Name|Min Available|Max Unavailable|Allowed Disruptions:integer|Age")
BINDING = columns("Name|Role|Age|Users*|Groups*|ServiceAccounts*")
STORAGE_CLASS = columns("Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age")
PRIORITY_CLASS = columns("Name|Value:integer|Global-Default:boolean|Age")
LEASE = columns("Name|Holder|Age")
RUNTIME_CLASS = columns("Name|Handler|Age")
USAGE = columns("Name|Cpu|Memory|Window")
SIGNING_REQUEST = columns("Name|Age|SignerName|Requestor|RequestedDuration|Condition")

_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


def endpoint_slice(obj: Object, now: float) -> list[Any]:
    ports = [str(item["port"]) if item.get("port") else "*" for item in obj.get("ports") or ()]
    addresses = [address for item in obj.get("endpoints") or () for address in item.get("addresses") or ()]
    return [
        name(obj),
        obj.get("addressType") or "",
        first_few(ports, UNSET),
        first_few(addresses, UNSET),
        age(obj, now),
    ]


def ingress(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    hosts = [rule["host"] for rule in spec.get("rules") or () if rule.get("host")]
    given = (status.get("loadBalancer") or {}).get("ingress") or ()
    return [
        name(obj),
        spec.get("ingressClassName") or NONE,
        first_few(hosts, "*"),
        ",".join(item.get("ip") or item.get("hostname") or "" for item in given),
        "80, 443" if spec.get("tls") else "80",
        age(obj, now),
    ]


def ingress_class(obj: Object, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    found = spec.get("parameters")
    shown = NONE
    if found:
        group = f".{found['apiGroup']}" if found.get("apiGroup") else ""
        shown = f"{found.get('kind') or ''}{group}/{found.get('name') or ''}"
    return [name(obj), spec.get("controller") or "", shown, age(obj, now)]


def network_policy(obj: Object, now: float) -> list[Any]:
    return [name(obj), selector((obj.get("spec") or {}).get("podSelector")), age(obj, now)]


def budget(obj: Object, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    amounts = [spec.get("minAvailable"), spec.get("maxUnavailable")]
    shown = ["N/A" if value is None else str(value) for value in amounts]
    return [name(obj), *shown, (obj.get("status") or {}).get("disruptionsAllowed") or 0, age(obj, now)]


def role_binding(obj: Object, now: float) -> list[Any]:
    role = obj.get("roleRef") or {}
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        label = subject.get("name") or ""
        if subject.get("kind") == "ServiceAccount":
            label = f"{subject.get('namespace') or ''}/{label}"
        by_kind.setdefault(subject.get("kind") or "", []).append(label)
    return [
        name(obj),
        f"{role.get('kind') or ''}/{role.get('name') or ''}",
        age(obj, now),
        *(", ".join(by_kind[kind]) for kind in ("User", "Group", "ServiceAccount")),
    ]


def storage_class(obj: Object, now: float) -> list[Any]:
    default = (obj["metadata"].get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
    return [
        f"{name(obj)} (default)" if default else name(obj),
        obj.get("provisioner") or "",
        obj.get("reclaimPolicy") or "Delete",
        obj.get("volumeBindingMode") or "Immediate",
        bool(obj.get("allowVolumeExpansion")),
        age(obj, now),
    ]


def priority_class(obj: Object, now: float) -> list[Any]:
    return [name(obj), obj.get("value") or 0, bool(obj.get("globalDefault")), age(obj, now)]


def lease(obj: Object, now: float) -> list[Any]:
    return [name(obj), (obj.get("spec") or {}).get("holderIdentity") or "", age(obj, now)]


def runtime_class(obj: Object, now: float) -> list[Any]:
    return [name(obj), obj.get("handler") or "", age(obj, now)]


def signing_request(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    seconds = spec.get("expirationSeconds")
    given = {item.get("type") for item in status.get("conditions") or ()}
    words = ["Denied" if "Denied" in given else "Approved" if "Approved" in given else "Pending"]
    if "Failed" in given:
        words.append("Failed")
    if status.get("certificate"):
        words.append("Issued")
    return [
        name(obj),
        age(obj, now),
        spec.get("signerName") or NONE,
        spec.get("username") or "",
        NONE if seconds is None else human_duration(seconds),
        ",".join(words),
    ]


def usage(obj: Object, now: float) -> list[Any]:
    """What a node, or all containers of a pod together, use."""
    parts = [part["usage"] for part in obj.get("containers") or [obj]]
    sums = [
        quantity.written(sum((quantity.parse(part[key]) for part in parts), Fraction()), like=parts[0][key])
        for key in ("cpu", "memory")
    ]
    return [name(obj), *sums, obj["window"]]
