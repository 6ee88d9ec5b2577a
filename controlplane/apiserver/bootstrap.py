"""What every cluster has from its first moment: namespaces, the `kubernetes` Service, the usual roles.

Pods reach the API server through a Service like any other, but nobody selects its endpoints: the server
writes them itself, at every start, because its address may have changed.
"""

from __future__ import annotations

import copy
import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver import bootstrap_joining
from controlplane.apiserver.deletion import DeleteOptions
from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.registry import Registry, Write
from controlplane.apiserver.resources import RESOURCES, ResourceInfo, by_kind
from controlplane.apiserver.users import SERVER

log = logging.getLogger(__name__)

Object = dict[str, Any]

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_RBAC = "rbac.authorization.k8s.io"
_WRITES = ["create", "delete", "deletecollection", "patch", "update"]
_READS = ["get", "list", "watch"]


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the first objects say of the cluster; `ca` is PEM, `address` and `port` are the API server's."""

    cluster_ip: str
    address: str
    port: int
    ca: bytes
    version: str
    pod_range: str
    service_range: str

    @property
    def server(self) -> str:
        return f"https://{f'[{self.address}]' if ':' in self.address else self.address}:{self.port}"


async def ensure(registry: Registry, facts: ClusterFacts) -> None:
    """Create what is missing and correct the endpoints. Raises StatusError if the store refuses."""
    address, port = facts.address, facts.port
    for name in NAMESPACES:
        await _ensure(registry, _object("v1", "Namespace", name))
        await registry.ensure_default_account(name)
    await _ensure(registry, _service(facts.cluster_ip))
    if ipaddress.ip_address(address).is_loopback:
        # A pod's loopback is its own, so such endpoints could only mislead (and are not valid).
        log.warning("Left the Service kubernetes without endpoints advertise_address=%s", address)
    else:
        await _ensure(registry, _endpoints(address, port), overwrite=True)
        await _ensure(registry, _endpoint_slice(address, port), overwrite=True)
    for obj in _cluster_roles():
        await _ensure(registry, obj)
    for obj in _priority_classes():
        await _ensure(registry, obj)
    await _ensure_joining(registry, facts)


async def _ensure_joining(registry: Registry, facts: ClusterFacts) -> None:
    for obj in bootstrap_joining.rights():
        await _ensure(registry, obj)
    ranges = (facts.pod_range, facts.service_range)
    settings = bootstrap_joining.cluster_configuration(facts.server, facts.version, *ranges)
    await _ensure(registry, settings, overwrite=True)
    info = bootstrap_joining.cluster_info(facts.server, facts.ca)
    namespace, name = info["metadata"]["namespace"], info["metadata"]["name"]
    present = registry.cache.latest("core/configmaps", namespace, name)
    # Its signatures are the token controller's; they are lost only when what they sign has changed.
    data = present.parse().get("data") or {} if present is not None else {}
    await _ensure(registry, info, overwrite=data.get("kubeconfig") != info["data"]["kubeconfig"])


async def _ensure(registry: Registry, obj: Object, *, overwrite: bool = False) -> None:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
    write = Write(SERVER)
    if registry.cache.latest(registry.collection_name(info), namespace, name) is None:
        await registry.create(info, namespace, obj, write)
    elif overwrite:
        try:
            # A write fills in what it is given, and this one may have to be made once more.
            await registry.update(info, namespace, name, copy.deepcopy(obj), write)
        except StatusError as error:
            if error.code != 422:
                raise
            # An immutable part differs (the address family of a slice): make it anew.
            await registry.delete(info, namespace, name, DeleteOptions(), write)
            await registry.create(info, namespace, obj, write)


def _object(api_version: str, kind: str, name: str, namespace: str = "", **parts: Any) -> Object:
    metadata: Object = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


def _service(cluster_ip: str) -> Object:
    ports = [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443}]
    spec = {"type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "ports": ports}
    service = _object("v1", "Service", "kubernetes", "default", spec=spec)
    service["metadata"]["labels"] = {"component": "apiserver", "provider": "kubernetes"}
    return service


def _endpoints(address: str, port: int) -> Object:
    subset = {"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}
    found = _object("v1", "Endpoints", "kubernetes", "default", subsets=[subset])
    found["metadata"]["labels"] = {"endpointslice.kubernetes.io/skip-mirror": "true"}
    return found


def _endpoint_slice(address: str, port: int) -> Object:
    found = _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "kubernetes",
        "default",
        addressType="IPv6" if ":" in address else "IPv4",
        endpoints=[{"addresses": [address], "conditions": {"ready": True}}],
        ports=[{"name": "https", "port": port, "protocol": "TCP"}],
    )
    found["metadata"]["labels"] = {"kubernetes.io/service-name": "kubernetes"}
    return found


def _priority_classes() -> Iterator[Object]:
    for name, value, text in (
        ("system-cluster-critical", 2_000_000_000, "Used for system critical pods of the whole cluster."),
        ("system-node-critical", 2_000_001_000, "Used for critical pods that must stay on their node."),
    ):
        yield _object("scheduling.k8s.io/v1", "PriorityClass", name, value=value, description=text)


def _cluster_roles() -> Iterator[Object]:
    """cluster-admin, admin, edit and view: what people bind their service accounts to."""
    everything = [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]
    yield _role("cluster-admin", everything)
    yield _role("admin", [*_rules(_named("admin"), [*_READS, *_WRITES]), *_rules(_read_only(), _READS)])
    yield _role("edit", [*_rules(_named("edit"), [*_READS, *_WRITES]), *_rules(_read_only(), _READS)])
    yield _role("view", [*_rules(_named("view"), _READS), *_rules(_read_only(), _READS)])


def _role(name: str, rules: list[Object]) -> Object:
    role = _object(f"{_RBAC}/v1", "ClusterRole", name, rules=rules)
    role["metadata"]["labels"] = {"kubernetes.io/bootstrapping": "rbac-defaults"}
    return role


def _named(role: str) -> dict[str, list[str]]:
    """Resources per group: view sees no secrets and enters no pods, only admin handles roles."""
    found: dict[str, list[str]] = {}
    for info in RESOURCES:
        if not info.namespaced or not info.stored or _kept_from(info, role):
            continue
        names = found.setdefault(info.group, [])
        names.append(info.plural)
        for subresource in info.subresources:
            harmless = subresource in ("log", "status", "scale")
            if harmless or (role != "view" and subresource not in ("binding", "ephemeralcontainers")):
                names.append(f"{info.plural}/{subresource}")
    return found


def _kept_from(info: ResourceInfo, role: str) -> bool:
    key = (info.group, info.plural)
    if key in {("", "resourcequotas"), ("", "limitranges"), ("", "events"), ("events.k8s.io", "events")}:
        return True  # everybody reads them, no tenant writes them: see _read_only
    if info.group == _RBAC:
        return role != "admin"
    return key == ("", "secrets") and role == "view"


def _read_only() -> dict[str, list[str]]:
    return {
        "": ["resourcequotas", "limitranges", "events", "namespaces", "namespaces/status"],
        "events.k8s.io": ["events"],
        "metrics.k8s.io": ["pods", "nodes"],  # metrics-server's system:aggregated-metrics-reader
    }


def _rules(resources: dict[str, list[str]], verbs: list[str]) -> list[Object]:
    return [
        {"apiGroups": [group], "resources": names, "verbs": verbs} for group, names in resources.items()
    ]
