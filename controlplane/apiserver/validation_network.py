"""Services and what hangs on them: ports, addresses, slices, Ingresses, NetworkPolicies.

Upstream: pkg/apis/core/validation (ValidateService), pkg/apis/discovery/validation,
pkg/apis/networking/validation. Whether an address lies in the Service range and is free is the allocator's
business, not decided here.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver import service_families
from controlplane.apiserver.validation_addresses import (
    CIDR_DETAIL,
    IP_DETAIL,
    check_endpoint_ip,
    is_ip,
    read_range,
)
from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    check_labels,
    dns_label,
    dns_subdomain,
    port_name,
    qualified_name,
)
from kubeclient.addresses import read_ip

Object = dict[str, Any]

_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_MAX_SLICE_ENDPOINTS = 1000
_MAX_AFFINITY_SECONDS = 86400
_KUBELET_PORT = 10250
_MAX_ENDPOINT_ADDRESSES = 100


def service(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    kind = spec.get("type") or ""
    headless = spec.get("clusterIP") == "None"
    if not spec.get("ports") and not headless and kind != "ExternalName":
        causes.required("spec.ports")
    _check_type(causes, spec, headless)
    _check_ports(causes, spec)
    check_labels(causes, "spec.selector", spec.get("selector") or {})
    causes.one_of("spec.sessionAffinity", spec.get("sessionAffinity"), ("ClientIP", "None"))
    seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
    if seconds is not None and not 0 < seconds <= _MAX_AFFINITY_SECONDS:
        path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
        causes.invalid(path, seconds, f"must be greater than 0 and less than {_MAX_AFFINITY_SECONDS}")
    causes.one_of("spec.type", kind, _TYPES)
    for index, address in enumerate(spec.get("externalIPs") or ()):
        check_endpoint_ip(causes, f"spec.externalIPs[{index}]", address)
    _check_addresses(causes, spec, kind)
    _check_policies(causes, spec, kind)
    _check_load_balancer(causes, spec, kind)


def _check_type(causes: Causes, spec: Object, headless: bool) -> None:
    kind = spec.get("type")
    if kind in ("NodePort", "LoadBalancer") and headless:
        causes.invalid("spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services")
    if kind == "LoadBalancer":
        for index, port in enumerate(spec.get("ports") or ()):
            if port.get("port") == _KUBELET_PORT:
                detail = f"may not expose port {_KUBELET_PORT} externally since it is used by kubelet"
                causes.invalid(f"spec.ports[{index}]", _KUBELET_PORT, detail)
    if kind == "ExternalName":
        if spec.get("clusterIP"):
            causes.forbidden("spec.clusterIPs", "may not be set when `type` is 'ExternalName'")
        name = (spec.get("externalName") or "").rstrip(".")
        if name:
            causes.each("spec.externalName", name, dns_subdomain(name))
        else:
            causes.required("spec.externalName")


def _check_ports(causes: Causes, spec: Object) -> None:
    ports = spec.get("ports") or []
    names: set[str] = set()
    taken: set[tuple[str, Any]] = set()
    node_ports: set[tuple[str, Any]] = set()
    for index, port in enumerate(ports):
        where = f"spec.ports[{index}]"
        name, protocol = port.get("name") or "", port.get("protocol") or ""
        if not name and len(ports) > 1:
            causes.required(f"{where}.name")
        elif name:
            causes.each(f"{where}.name", name, dns_label(name))
            if name in names:
                causes.duplicate(f"{where}.name", name)
            names.add(name)
        causes.port(f"{where}.port", port.get("port") or 0)
        causes.one_of(f"{where}.protocol", protocol, _PROTOCOLS)
        target = port.get("targetPort")
        if target is not None:
            causes.port_or_name(f"{where}.targetPort", target)
        _check_app_protocol(causes, where, port)
        key = (protocol, port.get("port"))
        if key in taken:
            causes.duplicate(where, {"protocol": protocol, "port": port.get("port")})
        taken.add(key)
        _check_node_port(causes, where, spec, port, node_ports)


def _check_app_protocol(causes: Causes, path: str, port: Object) -> None:
    if port.get("appProtocol") is not None:
        causes.each(f"{path}.appProtocol", port["appProtocol"], qualified_name(port["appProtocol"]))


def _check_node_port(
    causes: Causes, path: str, spec: Object, port: Object, taken: set[tuple[str, Any]]
) -> None:
    node_port = port.get("nodePort")
    if not node_port:
        return
    if spec.get("type") in ("ClusterIP", "ExternalName"):
        causes.forbidden(f"{path}.nodePort", f"may not be used when `type` is '{spec['type']}'")
        return
    causes.port(f"{path}.nodePort", node_port)
    key = (port.get("protocol") or "", node_port)
    if key in taken:
        causes.duplicate(f"{path}.nodePort", node_port)
    taken.add(key)


def _check_addresses(causes: Causes, spec: Object, kind: str) -> None:
    first, every = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if kind != "ExternalName":
        service_families.check(causes, spec)
    for index, address in enumerate(every or ([first] if first else [])):
        if address in ("None", "") and index == 0:
            continue
        if not is_ip(address):
            causes.invalid(f"spec.clusterIPs[{index}]", address, IP_DETAIL)


def _check_load_balancer(causes: Causes, spec: Object, kind: str) -> None:
    """What only a load balancer reads, and a class that is a name."""
    only = "may only be used when `type` is 'LoadBalancer'"
    ranges = spec.get("loadBalancerSourceRanges") or ()
    if ranges and kind != "LoadBalancer":
        causes.forbidden("spec.LoadBalancerSourceRanges", only)
    for index, text in enumerate(ranges):
        if read_range(text.strip()) is None:
            causes.invalid(f"spec.LoadBalancerSourceRanges[{index}]", text, CIDR_DETAIL)
    if kind != "LoadBalancer":
        if spec.get("allocateLoadBalancerNodePorts") is not None:
            causes.forbidden("spec.allocateLoadBalancerNodePorts", only)
        if spec.get("loadBalancerClass"):
            causes.forbidden("spec.loadBalancerClass", only)
    elif spec.get("loadBalancerClass") is not None:
        name = spec["loadBalancerClass"]
        causes.each("spec.loadBalancerClass", name, qualified_name(name))
    port = spec.get("healthCheckNodePort")
    if port and (kind != "LoadBalancer" or spec.get("externalTrafficPolicy") != "Local"):
        detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"
        causes.invalid("spec.healthCheckNodePort", port, detail)
    if spec.get("trafficDistribution") is not None:
        causes.one_of("spec.trafficDistribution", spec["trafficDistribution"], ("PreferClose",))


def _check_policies(causes: Causes, spec: Object, kind: str) -> None:
    external = spec.get("externalTrafficPolicy")
    if kind in ("NodePort", "LoadBalancer") or (spec.get("externalIPs") and kind == "ClusterIP"):
        causes.one_of("spec.externalTrafficPolicy", external, ("Cluster", "Local"), empty_ok=True)
    elif external:
        causes.invalid(
            "spec.externalTrafficPolicy", external, "may only be set for externally-accessible services"
        )
    causes.one_of(
        "spec.internalTrafficPolicy", spec.get("internalTrafficPolicy"), ("Cluster", "Local"), empty_ok=True
    )


def service_update(causes: Causes, new: Object, old: Object) -> None:
    """A virtual IP stays while the type keeps one, and what a balancer was told while it stays one."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    if new.get("status") != old.get("status"):
        _check_status(causes, new.get("status") or {}, after.get("type") or "")
    if after.get("type") == before.get("type") == "LoadBalancer":
        if after.get("loadBalancerClass") != before.get("loadBalancerClass"):
            name = after.get("loadBalancerClass")
            causes.invalid("spec.loadBalancerClass", name, "may not change once set")
        port, had = after.get("healthCheckNodePort"), before.get("healthCheckNodePort")
        policies = {after.get("externalTrafficPolicy"), before.get("externalTrafficPolicy")}
        if had and port != had and policies == {"Local"}:
            causes.forbidden("spec.healthCheckNodePort", IMMUTABLE)
    if "ExternalName" in (after.get("type"), before.get("type")):
        return
    service_families.check_update(causes, after, before)


def _check_status(causes: Causes, status: Object, kind: str) -> None:
    """Where a balancer says that it answers (ValidateLoadBalancerStatus)."""
    where, entries = "status.loadBalancer.ingress", (status.get("loadBalancer") or {}).get("ingress") or ()
    if entries and kind != "LoadBalancer":
        causes.forbidden(where, 'may only be used when `spec.type` is "LoadBalancer"')
        return
    for index, entry in enumerate(entries):
        path, address, mode = f"{where}[{index}]", entry.get("ip"), entry.get("ipMode")
        if address and not is_ip(address):
            causes.invalid(f"{path}.ip", address, IP_DETAIL)
        if address and mode is not None:
            causes.one_of(f"{path}.ipMode", mode, ("Proxy", "VIP"))
        elif mode is not None:
            causes.forbidden(f"{path}.ipMode", "may not be specified when `ip` is not set")
        name = entry.get("hostname")
        if name and is_ip(name):
            causes.invalid(f"{path}.hostname", name, "must be a DNS name, not an IP address")
        elif name:
            causes.each(f"{path}.hostname", name, dns_subdomain(name))


def _check_endpoint_port(causes: Causes, path: str, port: Object, *, named: bool) -> None:
    name = port.get("name") or ""
    if not name and named:
        causes.required(f"{path}.name")
    elif name:
        causes.each(f"{path}.name", name, dns_label(name))
    causes.port(f"{path}.port", port.get("port") or 0)
    causes.one_of(f"{path}.protocol", port.get("protocol"), _PROTOCOLS)
    _check_app_protocol(causes, path, port)


def endpoints(causes: Causes, obj: Object) -> None:
    for index, subset in enumerate(obj.get("subsets") or ()):
        where = f"subsets[{index}]"
        if not subset.get("addresses") and not subset.get("notReadyAddresses"):
            causes.required(where, "must specify `addresses` or `notReadyAddresses`")
        for kind in ("addresses", "notReadyAddresses"):
            for position, address in enumerate(subset.get(kind) or ()):
                check_endpoint_ip(causes, f"{where}.{kind}[{position}].ip", address.get("ip") or "")
        ports = subset.get("ports") or []
        for position, port in enumerate(ports):
            _check_endpoint_port(causes, f"{where}.ports[{position}]", port, named=len(ports) > 1)


def endpoint_slice(causes: Causes, obj: Object) -> None:
    causes.one_of("addressType", obj.get("addressType"), _ADDRESS_TYPES)
    every = obj.get("endpoints") or []
    if len(every) > _MAX_SLICE_ENDPOINTS:
        causes.too_many("endpoints", len(every), _MAX_SLICE_ENDPOINTS)
    for index, endpoint in enumerate(every):
        addresses = endpoint.get("addresses") or []
        if not addresses:
            causes.required(f"endpoints[{index}].addresses", "must contain at least 1 address")
        if len(addresses) > _MAX_ENDPOINT_ADDRESSES:
            causes.too_many(f"endpoints[{index}].addresses", len(addresses), _MAX_ENDPOINT_ADDRESSES)
        for position, address in enumerate(addresses):
            where = f"endpoints[{index}].addresses[{position}]"
            _check_slice_address(causes, where, address, obj.get("addressType"))
    names: set[str] = set()
    for index, port in enumerate(obj.get("ports") or ()):
        name = port.get("name") or ""
        if name in names:
            causes.duplicate(f"ports[{index}].name", name)
        names.add(name)
        if name:
            causes.each(f"ports[{index}].name", name, dns_label(name))
        causes.one_of(f"ports[{index}].protocol", port.get("protocol"), _PROTOCOLS)
        _check_app_protocol(causes, f"ports[{index}]", port)


def _check_slice_address(causes: Causes, path: str, address: str, kind: Any) -> None:
    if kind == "FQDN":
        causes.each(path, address, dns_subdomain(address))
    elif kind in ("IPv4", "IPv6"):
        found = read_ip(address)
        if found is None or kind != f"IPv{found.version}":
            causes.invalid(path, address, f"must be a valid {kind} address")
        else:
            check_endpoint_ip(causes, path, address)


def endpoint_slice_update(causes: Causes, new: Object, old: Object) -> None:
    if new.get("addressType") != old.get("addressType"):
        causes.invalid("addressType", new.get("addressType"), IMMUTABLE)


def ingress(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    if not spec.get("rules") and spec.get("defaultBackend") is None:
        causes.invalid("spec", spec.get("rules"), "either `defaultBackend` or `rules` must be specified")
    if spec.get("defaultBackend") is not None:
        _check_backend(causes, "spec.defaultBackend", spec["defaultBackend"])
    for index, rule in enumerate(spec.get("rules") or ()):
        http = rule.get("http")
        host = (rule.get("host") or "").removeprefix("*.")
        if host:
            causes.each(f"spec.rules[{index}].host", rule["host"], dns_subdomain(host))
        if http is None:
            continue
        where = f"spec.rules[{index}].http.paths"
        if not http.get("paths"):
            causes.required(where)
        for position, path in enumerate(http.get("paths") or ()):
            _check_ingress_path(causes, f"{where}[{position}]", path)


def _check_ingress_path(causes: Causes, path: str, item: Object) -> None:
    kind, value = item.get("pathType"), item.get("path") or ""
    if not kind:
        causes.required(f"{path}.pathType", "pathType must be specified")
    elif kind not in _PATH_TYPES:
        causes.not_supported(f"{path}.pathType", kind, _PATH_TYPES)
    elif kind != "ImplementationSpecific" and not value.startswith("/"):
        causes.invalid(f"{path}.path", value, "must be an absolute path")
    _check_backend(causes, f"{path}.backend", item.get("backend") or {})


def _check_backend(causes: Causes, path: str, backend: Object) -> None:
    target = backend.get("service")
    if target is None:
        if backend.get("resource") is None:
            causes.required(path, "must specify a service or resource backend")
        return
    if not target.get("name"):
        causes.required(f"{path}.service.name")
    port = target.get("port") or {}
    if port.get("name"):
        causes.each(f"{path}.service.port.name", port["name"], port_name(port["name"]))
    elif not port.get("number"):
        causes.required(f"{path}.service", "port name or number is required")
