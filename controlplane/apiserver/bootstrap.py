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

from controlplane.apiserver import bootstrap_joining, bootstrap_roles, bootstrap_system_roles
from controlplane.apiserver.deletion import DeleteOptions
from controlplane.apiserver.errors import StatusError
from controlplane.apiserver.registry import Registry, Write
from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.users import SERVER

log = logging.getLogger(__name__)

Object = dict[str, Any]

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


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
    await ensure_roles(registry)
    for obj in _priority_classes():
        await _ensure(registry, obj)
    await _ensure_joining(registry, facts)


async def ensure_roles(registry: Registry) -> None:
    """Create the roles that are missing, and add to those of an older version what they lack."""
    present = {
        entry.name: entry.parse()
        for entry in registry.cache.collection("rbac.authorization.k8s.io/clusterroles").present()
    }
    for obj in bootstrap_roles.cluster_roles():
        await _ensure_role(registry, obj, bootstrap_roles.kept_part(present, obj))
        await _complete_role(registry, obj)
    for obj in bootstrap_system_roles.bindings():
        await _ensure(registry, obj)


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


async def _ensure_role(registry: Registry, obj: Object, kept: Object) -> None:
    """`kept` has besides what `obj` has the rules that were somebody's own."""
    try:
        await _ensure(registry, kept)
    except StatusError as error:
        if kept is obj:
            raise
        # They are not what this version takes: no reason not to start.
        log.warning("Left out rules of a role name=%s error=%s", obj["metadata"]["name"], error)
        await _ensure(registry, obj)


async def _complete_role(registry: Registry, obj: Object) -> None:
    info = by_kind(obj["apiVersion"], obj["kind"])
    assert info is not None
    name = obj["metadata"]["name"]
    entry = registry.cache.latest(registry.collection_name(info), "", name)
    completed = bootstrap_roles.completed(entry.parse(), obj) if entry is not None else None
    if completed is None:
        return
    try:
        await registry.update(info, "", name, completed, Write(SERVER))
    except StatusError as error:
        # Somebody's own rules in it are not what this version takes: no reason not to start.
        log.warning("Left a role without rules that it lacks name=%s error=%s", name, error)
    else:
        log.info("Completed a role name=%s", name)


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
