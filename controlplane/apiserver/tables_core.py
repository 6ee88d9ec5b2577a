"""Rows of the core group besides Pods: nodes, services, configuration, events, volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from controlplane.apiserver.tables_text import (
    NONE,
    UNKNOWN,
    UNSET,
    age,
    columns,
    container_names,
    first_few,
    labels,
    name,
    since,
)
from kubeclient import quantity

Object = dict[str, Any]

_ROLE = "node-role.kubernetes.io/"
_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}

NODE = columns(
    "Name|Status|Roles|Age|Version|Internal-IP*|External-IP*|OS-Image*|Kernel-Version*|Container-Runtime*"
)
SERVICE = columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age|Selector*")
ENDPOINTS = columns("Name|Endpoints|Age")
NAMESPACE = columns("Name|Status|Age")
CONFIG_MAP = columns("Name|Data|Age")
SECRET = columns("Name|Type|Data|Age")
SERVICE_ACCOUNT = columns("Name|Secrets|Age")
EVENT = columns("Last Seen|Type|Reason|Object|Subobject*|Source*|Message|First Seen*|Count*|Name*")
VOLUME = columns(
    "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age"
    "|VolumeMode*"
)
CLAIM = columns("Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|VolumeMode*")
QUOTA = columns("Name|Age|Request|Limit")
CREATED = columns("Name|Created At:date")
POD_TEMPLATE = columns("Name|Containers|Images|Pod Labels")


def node(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    info = status.get("nodeInfo") or {}
    ready = next((item for item in status.get("conditions") or () if item.get("type") == "Ready"), None)
    words = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if spec.get("unschedulable"):
        words.append("SchedulingDisabled")
    return [
        name(obj),
        ",".join(words),
        _roles(obj["metadata"].get("labels") or {}),
        age(obj, now),
        info.get("kubeletVersion") or "",
        _address(status, "InternalIP"),
        _address(status, "ExternalIP"),
        info.get("osImage") or UNKNOWN,
        info.get("kernelVersion") or UNKNOWN,
        info.get("containerRuntimeVersion") or UNKNOWN,
    ]


def _roles(marks: dict[str, str]) -> str:
    found = {key.removeprefix(_ROLE) for key in marks if key.startswith(_ROLE) and key != _ROLE}
    if marks.get("kubernetes.io/role"):
        found.add(marks["kubernetes.io/role"])
    return ",".join(sorted(found)) or NONE


def _address(status: Object, kind: str) -> str:
    for item in status.get("addresses") or ():
        if item.get("type") == kind:
            return str(item.get("address"))
    return NONE


def service(obj: Object, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    inside = (spec.get("clusterIPs") or [spec.get("clusterIP")])[0]
    return [
        name(obj),
        spec.get("type") or "",
        inside or NONE,
        _external(obj, spec),
        ",".join(_service_ports(spec)) or NONE,
        age(obj, now),
        labels(spec.get("selector")),
    ]


def _external(obj: Object, spec: Object) -> str:
    extra = spec.get("externalIPs") or []
    if spec.get("type") == "ExternalName":
        return spec.get("externalName") or NONE
    if spec.get("type") == "LoadBalancer":
        given = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
        found = [item.get("ip") or item.get("hostname") or "" for item in given]
        return ",".join([*found, *extra]) or "<pending>"
    return ",".join(extra) or NONE


def _service_ports(spec: Object) -> Iterator[str]:
    for port in spec.get("ports") or ():
        outside = f":{port['nodePort']}" if port.get("nodePort") else ""
        yield f"{port.get('port')}{outside}/{port.get('protocol') or 'TCP'}"


def endpoints(obj: Object, now: float) -> list[Any]:
    listed: list[str] = []
    for subset in obj.get("subsets") or ():
        addresses = [item.get("ip") or "" for item in subset.get("addresses") or ()]
        ports = subset.get("ports") or ()
        if not ports:
            listed += addresses
        listed += [_host_port(address, port.get("port")) for port in ports for address in addresses]
    shown = NONE if not obj.get("subsets") else first_few(listed)
    return [name(obj), shown, age(obj, now)]


def _host_port(address: str, port: Any) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def namespace(obj: Object, now: float) -> list[Any]:
    return [name(obj), (obj.get("status") or {}).get("phase") or "", age(obj, now)]


def config_map(obj: Object, now: float) -> list[Any]:
    return [name(obj), len(obj.get("data") or ()) + len(obj.get("binaryData") or ()), age(obj, now)]


def secret(obj: Object, now: float) -> list[Any]:
    return [name(obj), obj.get("type") or "", len(obj.get("data") or ()), age(obj, now)]


def service_account(obj: Object, now: float) -> list[Any]:
    return [name(obj), len(obj.get("secrets") or ()), age(obj, now)]


def created(obj: Object, _now: float) -> list[Any]:
    """The row of a kind without columns of its own: its name and its date of birth."""
    return [name(obj), obj["metadata"].get("creationTimestamp")]


def event(obj: Object, now: float) -> list[Any]:
    """Both forms of an Event; the newer one has its older fields under deprecated names."""
    if "regarding" in obj or "note" in obj:
        obj = {
            **obj,
            "involvedObject": obj.get("regarding"),
            "message": obj.get("note"),
            "firstTimestamp": obj.get("deprecatedFirstTimestamp"),
            "lastTimestamp": obj.get("deprecatedLastTimestamp"),
            "count": obj.get("deprecatedCount"),
            "source": obj.get("deprecatedSource"),
            "reportingComponent": obj.get("reportingController"),
        }
    about, series = obj.get("involvedObject") or {}, obj.get("series") or {}
    first = obj.get("firstTimestamp") or obj.get("eventTime")
    last = series.get("lastObservedTime") or obj.get("lastTimestamp") or first
    kind = (about.get("kind") or "").lower()
    return [
        since(last, now),
        obj.get("type") or "",
        obj.get("reason") or "",
        f"{kind}/{about['name']}" if about.get("name") else kind,
        about.get("fieldPath") or "",
        _event_source(obj),
        (obj.get("message") or "").strip(),
        since(first, now),
        series.get("count") or obj.get("count") or 1,
        name(obj),
    ]


def _event_source(obj: Object) -> str:
    source = obj.get("source") or {}
    component = source.get("component") or obj.get("reportingComponent") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    return f"{component}, {host}" if host else component


def _modes(listed: Iterable[str]) -> str:
    return ",".join(_MODES.get(mode, mode) for mode in dict.fromkeys(listed))


def volume(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    claim = spec.get("claimRef") or {}
    return [
        name(obj),
        (spec.get("capacity") or {}).get("storage") or "",
        _modes(spec.get("accessModes") or ()),
        spec.get("persistentVolumeReclaimPolicy") or "",
        _phase(obj, status),
        f"{claim.get('namespace') or ''}/{claim['name']}" if claim.get("name") else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or UNSET,
        status.get("reason") or "",
        age(obj, now),
        spec.get("volumeMode") or UNSET,
    ]


def claim(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    bound = spec.get("volumeName") or ""
    return [
        name(obj),
        _phase(obj, status),
        bound,
        ((status.get("capacity") or {}).get("storage") or "") if bound else "",
        _modes(status.get("accessModes") or ()) if bound else "",
        spec.get("storageClassName") or "",
        spec.get("volumeAttributesClassName") or UNSET,
        age(obj, now),
        spec.get("volumeMode") or UNSET,
    ]


def _phase(obj: Object, status: Object) -> str:
    return "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase") or ""


def quota(obj: Object, now: float) -> list[Any]:
    """Requests and counts in one column, limits in the other, each as `name: used/hard`."""
    status = obj.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    shown: dict[bool, list[str]] = {True: [], False: []}
    for resource in sorted(hard):
        amount = used.get(resource) or "0"
        shown[resource.startswith("limits.")].append(
            f"{resource}: {quantity.canonical(str(amount))}/{quantity.canonical(str(hard[resource]))}"
        )
    return [name(obj), age(obj, now), ", ".join(shown[False]), ", ".join(shown[True])]


def pod_template(obj: Object, _now: float) -> list[Any]:
    template = obj.get("template") or {}
    names, images = container_names(template.get("spec") or {})
    return [name(obj), names, images, labels((template.get("metadata") or {}).get("labels"))]
