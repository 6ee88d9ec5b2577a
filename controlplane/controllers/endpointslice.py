"""Publishes the pods behind each Service as EndpointSlices of at most a hundred endpoints each.

What a slice should hold is decided by pure functions; endpoints stay in the slice they are in, so that one
pod's change is one small write. Written slices are remembered until the informer shows them: planning upon an
older copy would publish a pod twice. Source: upstream's staging endpointslice reconciler and its tracker.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from controlplane.controllers import change_triggers
from controlplane.controllers.base import Object, SharedInformers, key_of, split_key
from controlplane.controllers.pod_readiness import is_ready
from controlplane.controllers.service_pods import (
    HEADLESS,
    Port,
    ServiceFollower,
    addresses,
    followed,
    headless,
    hostname,
    ports_of,
    selects,
    target_reference,
)
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import ENDPOINT_SLICES, NODES
from kubeclient.rest import RestClient

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
MANAGER = "endpointslice-controller.k8s.io"
ZONE = "topology.kubernetes.io/zone"
NEAR = "PreferClose"  # proxies keep to the endpoints meant for their own zone, while there are any
LARGEST = 100

Group = tuple[str, tuple[Port, ...]]  # address family, ports


@dataclass(frozen=True, slots=True)
class Plan:
    """Slices to create (family, ports, endpoints), to update (slice with new contents), to delete."""

    create: tuple[tuple[str, tuple[Port, ...], list[Object]], ...]
    update: tuple[Object, ...]
    delete: tuple[Object, ...]


def endpoint(service: Object, pod: Object, family: str, zone: str = "") -> Object | None:
    """One entry of a slice; None while the pod has no address of that family."""
    found = addresses(pod, family)
    if not found:
        return None
    serving = is_ready(pod)
    terminating = bool(pod["metadata"].get("deletionTimestamp"))
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    entry: Object = {
        "addresses": found,
        "conditions": {
            "ready": publish or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": target_reference(pod),
    }
    if pod["spec"].get("nodeName"):
        entry["nodeName"] = pod["spec"]["nodeName"]
    if zone:
        entry["zone"] = zone
        if service["spec"].get("trafficDistribution") == NEAR and entry["conditions"]["ready"]:
            entry["hints"] = {"forZones": [{"name": zone}]}
    if name := hostname(service, pod):
        entry["hostname"] = name
    return entry


def desired(
    service: Object, pods: Sequence[Object], zones: Mapping[str, str]
) -> dict[Group, dict[str, Object]]:
    """(family, ports) → pod uid → endpoint. `zones`: node name → zone."""
    groups: dict[Group, dict[str, Object]] = {}
    for family in service["spec"].get("ipFamilies") or ["IPv4"]:
        for pod in pods:
            ports = ports_of(service, pod)
            if not ports and not headless(service):
                continue
            entry = endpoint(service, pod, family, zones.get(pod["spec"].get("nodeName", ""), ""))
            if entry is not None:
                groups.setdefault((family, ports), {})[pod["metadata"]["uid"]] = entry
    return groups


def placed(service: Object, pods: Sequence[Object], nodes: Container[str]) -> list[Object]:
    """Pods whose Node object is there: without it nobody answers for their readiness."""
    if service["spec"].get("publishNotReadyAddresses"):
        return [*pods]
    return [pod for pod in pods if not (name := pod["spec"].get("nodeName")) or name in nodes]


def plan(
    groups: Mapping[Group, Mapping[str, Object]],
    slices: Sequence[Object],
    families: Sequence[str],
    labels: Mapping[str, str],
) -> Plan:
    """How to get from the present slices to the groups; an empty Service keeps one empty slice per family."""
    create: list[tuple[str, tuple[Port, ...], list[Object]]] = []
    update: list[Object] = []
    delete: list[Object] = []
    left = {group: dict(entries) for group, entries in groups.items()}
    spare: dict[str, list[Object]] = {}
    for present in sorted(slices, key=lambda s: str(s["metadata"]["name"])):
        group = _group_of(present)
        if present["addressType"] not in families:
            delete.append(present)
            continue
        entries = left.get(group, {})
        kept = [
            entries.pop(uid) for uid in [_uid(e) for e in present.get("endpoints") or []] if uid in entries
        ]
        if kept:
            contents = kept + _take(entries, LARGEST - len(kept))
            if contents != present["endpoints"] or present["metadata"].get("labels") != labels:
                update.append(_filled(present, group, contents, labels))
        else:
            spare.setdefault(present["addressType"], []).append(present)
    for group, entries in left.items():
        while entries:
            contents = _take(entries, LARGEST)
            reusable = spare.get(group[0])
            if reusable:
                update.append(_filled(reusable.pop(0), group, contents, labels))
            else:
                create.append((*group, contents))
    for family in families:
        rest = spare.get(family, [])
        if not any(group[0] == family for group in groups):
            if rest:
                first = rest.pop(0)
                if first.get("endpoints") or first["metadata"].get("labels") != labels:
                    update.append(_filled(first, (family, ()), [], labels))
            else:
                create.append((family, (), []))
        delete += rest
    return Plan(tuple(create), tuple(update), tuple(delete))


def slice_labels(service: Object) -> dict[str, str]:
    own = {k: v for k, v in (service["metadata"].get("labels") or {}).items() if k != HEADLESS}
    if headless(service):
        own[HEADLESS] = ""
    return own | {SERVICE_NAME: service["metadata"]["name"], MANAGED_BY: MANAGER}


def _group_of(present: Object) -> Group:
    ports = tuple(
        Port(p.get("name") or "", int(p["port"]), p.get("protocol", "TCP"), p.get("appProtocol") or "")
        for p in present.get("ports") or []
    )
    return present["addressType"], ports


def _zone(node: Object) -> str:
    return str((node["metadata"].get("labels") or {}).get(ZONE, ""))


def _uid(entry: Object) -> str:
    return str((entry.get("targetRef") or {}).get("uid", ""))


def _take(entries: dict[str, Object], count: int) -> list[Object]:
    return [entries.pop(uid) for uid in list(entries)[: max(0, count)]]


def _ports(ports: Sequence[Port]) -> list[Object]:
    return [
        {"name": port.name, "port": port.number, "protocol": port.protocol}
        | ({"appProtocol": port.app_protocol} if port.app_protocol else {})
        for port in ports
    ]


def _filled(present: Object, group: Group, contents: list[Object], labels: Mapping[str, str]) -> Object:
    metadata = present["metadata"] | {"labels": dict(labels)}
    return present | {"metadata": metadata, "ports": _ports(group[1]), "endpoints": contents}


class EndpointSlices(ServiceFollower):
    name = "endpointslice"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._nodes = informers.of(NODES, self._on_node)
        # Service key → slice name → revision we wrote; gone slices by uid until the cache forgets them.
        self._written: dict[str, dict[str, int]] = {}
        self._deleted: set[str] = set()
        self._triggers: dict[str, change_triggers.Times] = {}  # of the Service's last pass, by its key
        self._slices = informers.of(ENDPOINT_SLICES, self._on_slice)

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "MODIFIED" and old is not None and _zone(old) == _zone(new):
            return
        pods = [pod for pod in self._pods.list() if pod["spec"].get("nodeName") == new["metadata"]["name"]]
        for service in self._services.list():
            namespace = service["metadata"]["namespace"]
            if any(
                pod["metadata"]["namespace"] == namespace and selects(service, pod["metadata"].get("labels"))
                for pod in pods
            ):
                self.queue.add(key_of(service))

    def _on_slice(self, kind: str, new: Object, old: Object | None) -> None:
        metadata = new["metadata"]
        labels = metadata.get("labels") or {}
        if labels.get(MANAGED_BY) != MANAGER or SERVICE_NAME not in labels:
            return
        key = f"{metadata['namespace']}/{labels[SERVICE_NAME]}"
        if kind == "DELETED":
            self._deleted.discard(metadata["uid"])
            self._written.get(key, {}).pop(metadata["name"], None)
        self.queue.add(key)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        service = self._services.get(name, namespace)
        if service is None:
            self._written.pop(key, None)  # the garbage collector takes the slices: they are owned
            self._triggers.pop(key, None)
            return
        if not service["spec"].get("selector") or service["metadata"].get("deletionTimestamp"):
            return
        slices = self._own_slices(key, service)
        if slices is None:
            return  # the event that shows our last write calls us again
        if not followed(service):
            for present in slices:
                self._delete(present)
            return
        zones = {node["metadata"]["name"]: _zone(node) for node in self._nodes.list()}
        families = service["spec"].get("ipFamilies") or ["IPv4"]
        pods = placed(service, self._selected(service), zones)
        groups = desired(service, pods, zones)
        now = change_triggers.times(service, pods)
        stamp = change_triggers.first_new(self._triggers.get(key, {}), now)
        self._carry_out(key, service, plan(groups, slices, families, slice_labels(service)), stamp)
        self._triggers[key] = now

    def _own_slices(self, key: str, service: Object) -> list[Object] | None:
        """The Service's slices, or None while our copy is older than what we wrote."""
        metadata = service["metadata"]
        found = {}
        for present in self._slices.list():
            labels = present["metadata"].get("labels") or {}
            if (
                present["metadata"]["namespace"] == metadata["namespace"]
                and labels.get(SERVICE_NAME) == metadata["name"]
                and labels.get(MANAGED_BY) == MANAGER
                and present["metadata"]["uid"] not in self._deleted
                and not present["metadata"].get("deletionTimestamp")
            ):
                found[present["metadata"]["name"]] = present
        written = self._written.get(key, {})
        for name, revision in list(written.items()):
            if name not in found or int(found[name]["metadata"]["resourceVersion"]) < revision:
                return None
            written.pop(name, None)
        return list(found.values())

    def _carry_out(self, key: str, service: Object, todo: Plan, stamp: str) -> None:
        # Additions first: a pod that moves between slices is listed twice for a moment, never not at all.
        for family, ports, contents in todo.create:
            self._create(key, service, (family, ports), contents, stamp)
        for body in todo.update:
            try:
                self._remember(key, self.client.update(ENDPOINT_SLICES, change_triggers.stamped(body, stamp)))
            except NotFound:
                self.queue.add_rate_limited(key)
        for present in todo.delete:
            self._delete(present)

    def _create(self, key: str, service: Object, group: Group, contents: list[Object], stamp: str) -> None:
        metadata = service["metadata"]
        owner = {
            "apiVersion": "v1",
            "kind": "Service",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        body: Object = {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": f"{metadata['name']}-",
                "labels": slice_labels(service),
                "ownerReferences": [owner],
            },
            "addressType": group[0],
            "endpoints": contents,
            "ports": _ports(group[1]),
        }
        body = change_triggers.stamped(body, stamp)
        try:
            self._remember(key, self.client.create(ENDPOINT_SLICES, body, metadata["namespace"]))
        except NotFound:
            return  # the namespace went away

    def _remember(self, key: str, answer: Object) -> None:
        revision = int(answer["metadata"]["resourceVersion"])
        seen = self._slices.get(answer["metadata"]["name"], answer["metadata"]["namespace"])
        if seen is None or int(seen["metadata"]["resourceVersion"]) < revision:
            self._written.setdefault(key, {})[answer["metadata"]["name"]] = revision

    def _delete(self, present: Object) -> None:
        metadata = present["metadata"]
        self._deleted.add(metadata["uid"])
        try:
            self.client.delete(ENDPOINT_SLICES, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            return
