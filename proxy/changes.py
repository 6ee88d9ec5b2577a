"""Services and EndpointSlices → one frozen view of what has to be reachable.

Informers deliver objects in any order and often without a change that matters (a status, a label). This
module keeps only what rules are made of, as small frozen values, and says whether that changed: a sync
happens only then. Source: upstream's pkg/proxy ServiceChangeTracker and EndpointsChangeTracker.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
OTHER_PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
DEFAULT_AFFINITY_SECONDS = 10800


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
    source_ranges: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        suffix = f":{self.port_name}" if self.port_name else ""
        return f"{self.namespace}/{self.service}{suffix}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.namespace, self.service, self.port_name, self.protocol)


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and port behind a Service port; `local` means it runs on this node."""

    ip: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False

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


Slice = tuple[str, tuple[tuple[tuple[str, str, str, str], tuple[Endpoint, ...]], ...]]


class Changes:
    """Collects events from any thread; `changed` is set when the view differs from before."""

    def __init__(self, hostname: str, version: int = 4) -> None:
        self._hostname = hostname
        self._version = version
        self._lock = threading.Lock()
        self._services: dict[tuple[str, str], tuple[ServicePort, ...]] = {}
        self._slices: dict[tuple[str, str], Slice] = {}
        self.changed = threading.Event()

    def service_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """An informer's event ("ADDED", "MODIFIED", "DELETED") about a Service."""
        name = _identity(new)
        ports = () if kind == "DELETED" else service_ports(new, self._version)
        with self._lock:
            before = self._services.get(name, ())
            if ports:
                self._services[name] = ports
            else:
                self._services.pop(name, None)
        if ports != before:
            self.changed.set()

    def slice_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """An informer's event about an EndpointSlice."""
        name = _identity(new)
        value = None if kind == "DELETED" else slice_endpoints(new, self._hostname, self._version)
        with self._lock:
            before = self._slices.get(name)
            if value is None:
                self._slices.pop(name, None)
            else:
                self._slices[name] = value
        if value != before:
            self.changed.set()

    def view(self) -> View:
        """What is wanted now; slices of one Service are merged, addresses in several of them count once."""
        with self._lock:
            services = [p for ports in self._services.values() for p in ports]
            slices = list(self._slices.values())
        merged: dict[tuple[str, str, str, str], dict[tuple[str, int], Endpoint]] = {}
        for _service, groups in slices:
            for key, endpoints in groups:
                known = merged.setdefault(key, {})
                for endpoint in endpoints:
                    # A pod that moves between slices shows up in both for a moment; ready counts.
                    other = known.get((endpoint.ip, endpoint.port))
                    if other is None or (endpoint.ready and not other.ready):
                        known[endpoint.ip, endpoint.port] = endpoint
        return View(
            services=tuple(sorted(services, key=lambda p: (p.title, p.protocol))),
            endpoints={key: tuple(sorted(found.values())) for key, found in merged.items()},
        )


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
            source_ranges=tuple(r.strip() for r in spec.get("loadBalancerSourceRanges") or ()),
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
            if entry.get("addresses")
        )
        groups.append((key, found))
    return service, tuple(groups)


def _endpoint(entry: Mapping[str, Any], port: int, hostname: str) -> Endpoint:
    conditions = entry.get("conditions") or {}
    # Absent means ready; absent serving follows ready (discovery/v1 EndpointConditions).
    ready = conditions.get("ready") is not False
    serving = conditions.get("serving")
    return Endpoint(
        ip=entry["addresses"][0],
        port=port,
        ready=ready,
        serving=ready if serving is None else bool(serving),
        terminating=bool(conditions.get("terminating")),
        local=_node_of(entry) == hostname,
    )


def _node_of(entry: Mapping[str, Any]) -> str | None:
    """Its node; discovery/v1beta1 says it among the topology labels."""
    name: str | None = entry.get("nodeName")
    return name or (entry.get("topology") or {}).get("kubernetes.io/hostname")


def _identity(body: Object) -> tuple[str, str]:
    return body["metadata"].get("namespace") or "", body["metadata"]["name"]


def _family_ip(spec: Mapping[str, Any], version: int) -> str:
    candidates = list(spec.get("clusterIPs") or ()) or [spec.get("clusterIP")]
    for text in candidates:
        if text and text != "None" and ipaddress.ip_address(text).version == version:
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
    texts = [e["ip"] for e in entries if e.get("ip") and e.get("ipMode") != "Proxy"]
    return tuple(t for t in texts if ipaddress.ip_address(t).version == version)
