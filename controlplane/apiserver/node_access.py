"""What a kubelet may see and touch beyond its role: only what concerns its own node.

A node that was broken into should not be able to read every Secret of the cluster. So a kubelet gets Secrets
and ConfigMaps one by one, by name, and only those that a pod bound to its node refers to; it sees and changes
such pods only, and its own Lease, and changes its own Node (upstream: plugin/pkg/auth/authorizer/node, with
the feature AuthorizeNodeWithSelectors for pods). Other Nodes it may read: their addresses and ranges are what
routes between nodes are made of. And as long as the cluster has a NetworkPolicy it may list and watch all
pods, because whom a policy lets in is said by the labels of pods everywhere, and each node's proxy (which
logs in as its kubelet) enforces for its own pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.selection import selectable_fields
from controlplane.claims import claim_names
from controlplane.storage.cache import Cache

Object = dict[str, Any]
Reference = tuple[str, str, str]  # (kind, namespace, name)

_GUARDED = {
    "secrets": "Secret",
    "configmaps": "ConfigMap",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "persistentvolumes": "PersistentVolume",
}


class NodeAccess:
    """Judges one kubelet's request about one object; what pods refer to is read again when a pod changed."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._version: tuple[int, ...] = ()
        self._references: dict[str, set[Reference]] = {}

    def allowed(
        self,
        node: str,
        verb: str,
        resource: str,
        subresource: str,
        namespace: str,
        name: str,
        fields: str = "",
    ) -> bool:
        """Called after the role of system:nodes has allowed the verb on the resource; `fields` is the field
        selector of a list or watch.
        """
        if resource in _GUARDED and verb in ("get", "list", "watch"):
            return bool(name) and (_GUARDED[resource], namespace, name) in self._of_node(node)
        if resource == "nodes" and verb not in ("get", "list", "watch", "create"):
            return name == node
        if resource == "leases":
            return namespace == "kube-node-lease" and (verb == "create" or name == node)
        if resource == "pods" and verb in ("list", "watch"):
            return pinned(fields, "spec.nodeName") == node or self._any_policy()
        if resource == "pods" and (verb in ("get", "delete") or subresource):
            entry = self._cache.latest("core/pods", namespace, name)
            return entry is None or selectable_fields(_PODS, entry)["spec.nodeName"] == node
        return True

    def _any_policy(self) -> bool:
        return bool(self._cache.collection("networking.k8s.io/networkpolicies").entries)

    def _of_node(self, node: str) -> set[Reference]:
        watched = ("core/pods", "core/persistentvolumeclaims")
        version = tuple(self._cache.collection(each).touched for each in watched)
        if version != self._version:
            self._version = version
            self._references = {}
        found = self._references.get(node)
        if found is None:
            found = self._references[node] = set(self._read(node))
        return found

    def _read(self, node: str) -> Iterator[Reference]:
        wanted = f'"nodeName":"{node}"'.encode()
        for entry in self._cache.collection("core/pods").present():
            if wanted not in entry.raw:
                continue
            pod = entry.parse()
            if pod["spec"].get("nodeName") == node:
                for kind, name in references(pod["spec"]):
                    yield kind, entry.namespace, name
                for name in claim_names(pod):
                    yield from self._of_claim(entry.namespace, name)

    def _of_claim(self, namespace: str, name: str) -> Iterator[Reference]:
        """The claim and, through it, the volume that it has."""
        yield "PersistentVolumeClaim", namespace, name
        entry = self._cache.latest("core/persistentvolumeclaims", namespace, name)
        volume = entry.parse()["spec"].get("volumeName") if entry is not None else None
        if volume:
            yield "PersistentVolume", "", volume


def pinned(field_selector: str, wanted: str) -> str:
    """The one value that a field selector allows for a field, or "": such a list is about that object."""
    for part in field_selector.split(","):
        field, operator, value = part.partition("=")
        if field.strip() == wanted and operator:
            return value.lstrip("=").strip()
    return ""


def references(spec: Object) -> Iterator[tuple[str, str]]:
    """(kind, name) of every Secret and ConfigMap that a pod's spec names, pull secrets included."""
    for secret in spec.get("imagePullSecrets") or ():
        yield "Secret", secret.get("name", "")
    for volume in spec.get("volumes") or ():
        yield from _of_source(volume, "secretName")
        for source in (volume.get("projected") or {}).get("sources") or ():
            yield from _of_source(source, "name")
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind) or ():
            for source in container.get("envFrom") or ():
                yield from _of_environment(source, "secretRef", "configMapRef")
            for variable in container.get("env") or ():
                yield from _of_environment(variable.get("valueFrom") or {}, "secretKeyRef", "configMapKeyRef")


def _of_source(source: Object, secret_key: str) -> Iterator[tuple[str, str]]:
    if source.get("secret"):
        yield "Secret", source["secret"].get(secret_key, "")
    if source.get("configMap"):
        yield "ConfigMap", source["configMap"].get("name", "")


def _of_environment(source: Object, secret: str, config_map: str) -> Iterator[tuple[str, str]]:
    if source.get(secret):
        yield "Secret", source[secret].get("name", "")
    if source.get(config_map):
        yield "ConfigMap", source[config_map].get("name", "")


def _pods() -> ResourceInfo:
    info = lookup("", "v1", "pods")
    assert info is not None
    return info


_PODS = _pods()
