"""Gives Services of type LoadBalancer their addresses, where the cluster was told which.

Upstream leaves this to a cloud; without one such a Service waits, and so it does here unless `up` was given
`--load-balancer-addresses`: `nodes` assigns the addresses of all ready nodes (as k3s' klipper does), ranges
assign one address each, which somebody must route to the nodes. kube-proxy does the rest on every node. A
node's address is shared: two Services cannot have one port of it, and the node's own ports stay its own.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from kubeclient.addresses import read_ip
from kubeclient.events import EventRecorder
from kubeclient.resources import NODES, SERVICES
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

NODES_WORD = "nodes"
EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
RESERVED = frozenset({22, 6443, 10250, 10256})
"""A node's own doors (ssh, API server, kubelet, proxy): a Service that took them would lock everybody out."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Assignment:
    """Addresses for a Service; without any, `problem` says why."""

    addresses: tuple[str, ...] = ()
    problem: str = ""


def parse_pool(text: str) -> tuple[Network, ...]:
    """`nodes` is the empty pool; else ranges with commas. Raises ValueError."""
    return () if text == NODES_WORD else tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))


def ours(service: Object) -> bool:
    """Whether the Service wants an address from us: another's class is another's business."""
    spec = service["spec"]
    gone = service["metadata"].get("deletionTimestamp")
    return spec.get("type") == "LoadBalancer" and not spec.get("loadBalancerClass") and not gone


def assign(
    service: Object, others: Iterable[Object], nodes: Sequence[Object], pool: Sequence[Network]
) -> Assignment:
    """PURE. `others` are all Services; what this one has it keeps while it may."""
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    others = [other for other in others if key_of(other) != key_of(service) and ours(other)]
    found = [
        _from_pool(service, others, [n for n in pool if f"IPv{n.version}" == family])
        if pool
        else _from_nodes(service, others, nodes, family)
        for family in families
    ]
    # A Service of both families does with one, where the pool or the nodes have but that.
    got = tuple(address for one in found for address in one.addresses)
    return Assignment(got) if got else found[0]


def _from_pool(service: Object, others: Sequence[Object], pool: Sequence[Network]) -> Assignment:
    taken = {_spelt(address) for other in others for address in ingress(other)}
    asked = service["spec"].get("loadBalancerIP")
    if asked:
        address = read_ip(asked)
        if address is None:
            return Assignment(problem=f"loadBalancerIP {asked!r} is no IP address")
        if not any(address in network for network in pool):
            return Assignment(problem=f"loadBalancerIP {asked} is not in --load-balancer-addresses")
        own = str(address)
        return Assignment(problem=f"{own} is taken") if own in taken else Assignment((own,))
    for present in map(_spelt, ingress(service)):
        address = read_ip(present)
        if address and present not in taken and any(address in network for network in pool):
            return Assignment((present,))
    for network in pool:
        for candidate in network.hosts():
            if str(candidate) not in taken:
                return Assignment((str(candidate),))
    return Assignment(problem="no address is left in --load-balancer-addresses")


def _spelt(text: str) -> str:
    """The one spelling of an address, since others may have written it; what is none is taken as it is."""
    return str(read_ip(text) or text)


def _from_nodes(
    service: Object, others: Sequence[Object], nodes: Sequence[Object], family: str
) -> Assignment:
    wanted = _ports(service)
    closed = sorted(port for protocol, port in wanted if protocol == "TCP" and port in RESERVED)
    if closed:
        return Assignment(problem=f"port {closed[0]} is a node's own")
    rivals = [other for other in others if ingress(other) and _ports(other) & wanted]
    if rivals:
        return Assignment(problem=f"Service {key_of(rivals[0])} has the same port of the nodes")
    found = {
        entry["address"]
        for node in nodes
        if _serves(node)
        for entry in (node.get("status") or {}).get("addresses") or ()
        if entry.get("type") == "InternalIP"
        and f"IPv{ipaddress.ip_address(entry['address']).version}" == family
    }
    ordered = sorted(found, key=ipaddress.ip_address)
    return Assignment(tuple(ordered)) if ordered else Assignment(problem="no node is ready")


def _ports(service: Object) -> set[tuple[str, int]]:
    ports = service["spec"].get("ports") or ()
    return {(port.get("protocol") or "TCP", int(port["port"])) for port in ports}


def _serves(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and EXCLUDED not in (node["metadata"].get("labels") or {})


def ingress(service: Object) -> list[str]:
    """The addresses that a Service has now."""
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [entry["ip"] for entry in entries if entry.get("ip")]


class LoadBalancers(Controller):
    """`addresses`: `nodes`, or ranges."""

    name = "service-lb"

    def __init__(
        self, client: RestClient, informers: SharedInformers, recorder: EventRecorder, *, addresses: str
    ) -> None:
        super().__init__(client, informers, recorder)
        self._pool = parse_pool(addresses)
        self._services = informers.of(SERVICES, self._service_changed)
        self._nodes = informers.of(NODES, self._node_changed)
        self._assigned: dict[str, tuple[str, ...]] = {}  # ahead of the informer's copy
        self._said: dict[str, str] = {}

    def _service_changed(self, kind: str, new: Object, old: Object | None = None) -> None:
        key = key_of(new)
        if (kind == "DELETED" or not ours(new)) and (ingress(old or new) or ingress(new)):
            self._wake_all()  # its address or port may be what another waits for
        self.queue.add(key)

    def _node_changed(self, kind: str, new: Object, old: Object | None = None) -> None:
        if kind != "MODIFIED" or old is None or _serves(old) != _serves(new) or _told(old) != _told(new):
            self._wake_all()

    def _wake_all(self) -> None:
        for service in self._services.list():
            if ours(service):
                self.queue.add(key_of(service))

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        service = self._services.get(name, namespace)
        if service is None or not ours(service):
            self._assigned.pop(key, None)
            self._said.pop(key, None)
            if service is not None and service["spec"].get("type") != "LoadBalancer" and ingress(service):
                self._write(service, ())
            return
        others = [self._as_assigned(other) for other in self._services.list()]
        found = assign(self._as_assigned(service), others, self._nodes.list(), self._pool)
        if found.problem and self._said.get(key) != found.problem:
            self.recorder.event(service, "Warning", "SyncLoadBalancerFailed", found.problem)
        self._said[key] = found.problem
        if list(found.addresses) != ingress(service):
            self._write(service, found.addresses)
            self._assigned[key] = found.addresses
            if found.addresses:
                text = f"Assigned {', '.join(found.addresses)}"
                self.recorder.event(service, "Normal", "EnsuredLoadBalancer", text)

    def _as_assigned(self, service: Object) -> Object:
        """The Service with what we gave it last, though the watch may not have told yet."""
        given = self._assigned.get(key_of(service))
        if given is None:
            return service
        return {**service, "status": {"loadBalancer": {"ingress": [{"ip": address} for address in given]}}}

    def _write(self, service: Object, addresses: Sequence[str]) -> None:
        meta = service["metadata"]
        entries = [{"ip": address, "ipMode": "VIP"} for address in addresses]
        body: Mapping[str, object] = {"status": {"loadBalancer": {"ingress": entries or None}}}
        self.client.patch(SERVICES, meta["name"], body, meta["namespace"], subresource="status", kind="merge")


def _told(node: Object) -> object:
    return (node.get("status") or {}).get("addresses")
