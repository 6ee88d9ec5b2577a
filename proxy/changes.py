"""Services and EndpointSlices → one frozen view of what has to be reachable.

Informers deliver objects in any order and often without a change that matters (a status, a label). This
module keeps only what rules are made of, as small frozen values, and says whether that changed: a sync
happens only then. Source: upstream's pkg/proxy ServiceChangeTracker and EndpointsChangeTracker.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Object = Mapping[str, Any]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
OTHER_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
DEFAULT_AFFINITY_SECONDS = 10800
# Addresses and ranges become words of rules. API servers check them; this is a second lock, and a cheap one:
# an IPv6 zone (fe80::1%…) may hold any text, and one odd word would keep all other Services from the kernel.
_PLAIN = {4: re.compile(r"[0-9./]+"), 6: re.compile(r"[0-9A-Fa-f.]*:[0-9A-Fa-f:./]*")}


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service. `key` names its endpoints, `title` is "namespace/name:port" as in comments."""

    namespace: str
    service: str
    port_name: str
    protocol: str  # "tcp", "udp", "sctp"
    cluster_ip: str
    port: int
    node_port: int = 0
    affinity_seconds: int = 0
    external_local: bool = False
    internal_local: bool = False
    ingress_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    health_check_port: int = 0

    @property
    def external(self) -> bool:
        """Whether anything outside the cluster may reach it by an address of its own."""
        return bool(self.node_port or self.ingress_ips or self.external_ips)

    @property
    def title(self) -> str:
        suffix = f":{self.port_name}" if self.port_name else ""
        return f"{self.namespace}/{self.service}{suffix}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.namespace, self.service, self.port_name, self.protocol)


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and port behind a Service port; `local` means it runs on this node.

    `homeless` is one whose slice names no node. `zones` and `nodes` are hints whom it is meant for.
    """

    ip: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False
    homeless: bool = False
    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True)
class View:
    """Everything the rules depend on: ports sorted by title, endpoints by ServicePort.key."""

    services: tuple[ServicePort, ...] = ()
    endpoints: Mapping[tuple[str, str, str, str], tuple[Endpoint, ...]] | None = None

    def of(self, port: ServicePort) -> tuple[Endpoint, ...]:
        return (self.endpoints or {}).get(port.key, ())


Key = tuple[str, str, str, str]
Name = tuple[str, str]
"""Namespace and name of a Service."""
Groups = tuple[tuple[Key, tuple[Endpoint, ...]], ...]
Slice = tuple[str, Groups]
Served = tuple[tuple[ServicePort, tuple[Endpoint, ...]], ...]
"""A Service's ports, each with its endpoints; empty when there is no such Service (any more)."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What changed since the last time: whole Services, by name, and when it was triggered (UNIX time)."""

    services: Mapping[Name, Served]
    triggered: tuple[float, ...] = ()


class Changes:
    """Collects events from any thread; `changed` is set when something differs from before.

    `take` hands out each changed Service once, so that one endpoint's change costs the same with ten
    Services as with ten thousand. One of these per address family.
    """

    def __init__(
        self,
        hostname: str,
        version: int = 4,
        changed: threading.Event | None = None,
        started: float = 0.0,
    ) -> None:
        """`started`, UNIX time: what was triggered before is not measured, as nobody was there to act."""
        self._hostname = hostname
        self._version = version
        self._started = started
        self._lock = threading.Lock()
        self._services: dict[Name, tuple[ServicePort, ...]] = {}
        self._slices: dict[tuple[str, str], Name] = {}
        self._by_service: dict[Name, dict[str, Groups]] = {}
        self._dirty: set[Name] = set()
        self._triggered: list[float] = []
        self.zone = ""
        self.changed = changed or threading.Event()

    def service_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """An informer's event ("ADDED", "MODIFIED", "DELETED") about a Service."""
        name = _identity(new)
        ports = () if kind == "DELETED" else service_ports(new, self._version)
        with self._lock:
            before = self._services.get(name, ())
            if ports == before:
                return
            if ports:
                self._services[name] = ports
            else:
                self._services.pop(name, None)
            self._dirty.add(name)
        self.changed.set()

    def slice_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """An informer's event about an EndpointSlice."""
        namespace, name = _identity(new)
        value = None if kind == "DELETED" else slice_endpoints(new, self._hostname, self._version)
        with self._lock:
            touched = self._store(namespace, name, value)
            if not touched:
                return
            self._dirty |= touched
            if kind != "DELETED" and (stamp := _trigger_time(new)) > self._started:
                self._triggered.append(stamp)
        self.changed.set()

    def _store(self, namespace: str, name: str, value: Slice | None) -> set[Name]:
        """Services whose endpoints are others now."""
        touched: set[Name] = set()
        owner = self._slices.get((namespace, name))
        wanted = (namespace, value[0]) if value is not None else None
        if owner is not None and owner != wanted:
            # Deleted, or its label names another Service now.
            slices = self._by_service[owner]
            del slices[name], self._slices[namespace, name]
            if not slices:
                del self._by_service[owner]
            touched.add(owner)
        if value is not None and wanted is not None:
            slices = self._by_service.setdefault(wanted, {})
            if slices.get(name) != value[1]:
                slices[name] = value[1]
                self._slices[namespace, name] = wanted
                touched.add(wanted)
        return touched

    def node_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """An informer's event about this node: its zone decides which endpoints' hints are for it."""
        labels = new["metadata"].get("labels") or {}
        zone = "" if kind == "DELETED" else str(labels.get(ZONE_LABEL, ""))
        with self._lock:
            if zone == self.zone:
                return
            self.zone = zone
            self._dirty |= set(self._services)
        self.changed.set()

    def take(self) -> Taken:
        """The Services that changed since the last call, as they are now."""
        with self._lock:
            names, self._dirty = self._dirty, set()
            triggered, self._triggered = tuple(self._triggered), []
            return Taken({name: self._served(name) for name in names}, triggered)

    def view(self) -> View:
        """Everything that is wanted now."""
        with self._lock:
            found = [served for name in self._services for served in self._served(name)]
        return view_of(found)

    def _served(self, name: Name) -> Served:
        ports = self._services.get(name, ())
        if not ports:
            return ()
        slices = self._by_service.get(name, {})
        if len(slices) == 1:
            (groups,) = slices.values()
            merged = {key: tuple(sorted(set(found))) for key, found in groups}
        else:
            merged = _merge(slices.values())
        return tuple((port, merged.get(port.key, ())) for port in ports)


def view_of(served: Iterable[tuple[ServicePort, tuple[Endpoint, ...]]]) -> View:
    """PURE: ports with their endpoints as one view."""
    found = sorted(served, key=lambda s: (s[0].title, s[0].protocol))
    return View(tuple(port for port, _ in found), {port.key: endpoints for port, endpoints in found})


def _merge(slices: Iterable[Groups]) -> dict[Key, tuple[Endpoint, ...]]:
    """A Service's slices as one; addresses in several of them count once."""
    merged: dict[Key, dict[tuple[str, int], Endpoint]] = {}
    for groups in slices:
        for key, endpoints in groups:
            known = merged.setdefault(key, {})
            for endpoint in endpoints:
                # A pod that moves between slices shows up in both for a moment; ready counts.
                other = known.get((endpoint.ip, endpoint.port))
                if other is None or (endpoint.ready and not other.ready):
                    known[endpoint.ip, endpoint.port] = endpoint
    return {key: tuple(sorted(found.values())) for key, found in merged.items()}


def service_ports(service: Object, version: int = 4) -> tuple[ServicePort, ...]:
    """PURE: the ports that get rules; none for headless and ExternalName Services and another's proxy."""
    spec, meta = service.get("spec") or {}, service["metadata"]
    cluster_ip = _family_ip(spec, version)
    labels = meta.get("labels") or {}
    if spec.get("type") == "ExternalName" or not cluster_ip or OTHER_PROXY_LABEL in labels:
        return ()
    return tuple(
        ServicePort(
            namespace=meta["namespace"],
            service=meta["name"],
            port_name=port.get("name") or "",
            protocol=(port.get("protocol") or "TCP").lower(),
            cluster_ip=cluster_ip,
            port=int(port["port"]),
            node_port=int(port.get("nodePort") or 0),
            affinity_seconds=_affinity(spec),
            external_local=spec.get("externalTrafficPolicy") == "Local",
            internal_local=spec.get("internalTrafficPolicy") == "Local",
            ingress_ips=_ingress(service, version),
            external_ips=_of_family(spec.get("externalIPs"), version),
            source_ranges=_ranges(spec, version),
            health_check_port=_health_check_port(spec),
        )
        for port in spec.get("ports") or ()
    )


def slice_endpoints(body: Object, hostname: str, version: int = 4) -> Slice | None:
    """PURE: a slice's endpoints by Service port; None for another address family or a headless Service."""
    labels = body["metadata"].get("labels") or {}
    service = labels.get(SERVICE_NAME_LABEL)
    if not service or body.get("addressType") != f"IPv{version}" or HEADLESS_LABEL in labels:
        return None
    namespace = body["metadata"]["namespace"]
    groups = []
    for port in body.get("ports") or ():
        if port.get("port") is None:
            continue
        key = (namespace, service, port.get("name") or "", (port.get("protocol") or "TCP").lower())
        found = tuple(
            _endpoint(entry, int(port["port"]), hostname)
            for entry in body.get("endpoints") or ()
            if entry.get("addresses") and _PLAIN[version].fullmatch(entry["addresses"][0])
        )
        groups.append((key, found))
    return service, tuple(groups)


def _endpoint(entry: Mapping[str, Any], port: int, hostname: str) -> Endpoint:
    conditions = entry.get("conditions") or {}
    # Absent means ready; absent serving follows ready (discovery/v1 EndpointConditions).
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    node = _node_of(entry)
    return Endpoint(
        ip=entry["addresses"][0],
        port=port,
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        local=node == hostname,
        homeless=not node,
        zones=_hint(entry, "forZones"),
        nodes=_hint(entry, "forNodes"),
    )


def _node_of(entry: Mapping[str, Any]) -> str | None:
    """Its node; discovery/v1beta1 says it among the topology labels."""
    name: str | None = entry.get("nodeName")
    return name or (entry.get("topology") or {}).get("kubernetes.io/hostname")


def _hint(entry: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    wanted = (entry.get("hints") or {}).get(kind) or ()
    return tuple(sys.intern(str(one["name"])) for one in wanted)


def _trigger_time(body: Object) -> float:
    """0 where the slice tells none."""
    text = (body["metadata"].get("annotations") or {}).get(TRIGGER_ANNOTATION)
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def _identity(body: Object) -> tuple[str, str]:
    return body["metadata"].get("namespace") or "", body["metadata"]["name"]


def _family_ip(spec: Mapping[str, Any], version: int) -> str:
    candidates = list(spec.get("clusterIPs") or ()) or [spec.get("clusterIP")]
    for text in candidates:
        if text and text != "None" and _PLAIN[version].fullmatch(text):
            return str(text)
    return ""


def _affinity(spec: Mapping[str, Any]) -> int:
    if spec.get("sessionAffinity") != "ClientIP":
        return 0
    config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
    return int(config.get("timeoutSeconds") or DEFAULT_AFFINITY_SECONDS)


def _ingress(service: Object, version: int) -> tuple[str, ...]:
    entries = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    # ipMode Proxy means that traffic must pass the balancer itself (KEP-1860).
    return _of_family([e["ip"] for e in entries if e.get("ip") and e.get("ipMode") != "Proxy"], version)


def _of_family(texts: Iterable[str] | None, version: int) -> tuple[str, ...]:
    return tuple(t for t in texts or () if _PLAIN[version].fullmatch(t))


def _ranges(spec: Mapping[str, Any], version: int) -> tuple[str, ...]:
    """Who may use the load balancer; a Service that names ranges of the other family only lets nobody in."""
    texts = [r.strip() for r in spec.get("loadBalancerSourceRanges") or ()]
    return _of_family(texts, version) or (("0.0.0.0/32" if version == 4 else "::/128",) if texts else ())


def _health_check_port(spec: Mapping[str, Any]) -> int:
    local = spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
    return int(spec.get("healthCheckNodePort") or 0) if local else 0
