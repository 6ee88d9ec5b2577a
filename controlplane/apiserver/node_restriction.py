"""NodeRestriction: what a kubelet may write of the objects that it may write at all.

The authorizer lets a kubelet reach its own Node, Lease and pods; here is what it may say in them. A node that
was broken into must not draw other pods to itself by labels that stand for trust, name an owner whose
deletion would take the Node along, or use a mirror pod to get at Secrets that no pod of its own has.
Source: upstream's plugin/pkg/admission/noderestriction.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.errors import forbidden
from controlplane.apiserver.node_access import references
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.service_account_volume import is_mirror
from controlplane.apiserver.users import User
from controlplane.claims import claim_names

Object = dict[str, Any]

_POD, _NODE, _LEASE = ("", "pods"), ("", "nodes"), ("coordination.k8s.io", "leases")
_RESERVED = "node-restriction.kubernetes.io"
_OWN_LABELS = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
    }
)
_OWN_PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")


def forbidden_labels(changed: set[str]) -> list[str]:
    """PURE. Those label keys that are not a kubelet's to set, change or remove."""
    return sorted(key for key in changed if not _may_label(key))


def _may_label(key: str) -> bool:
    prefix, slash, _ = key.rpartition("/")
    if not slash:
        return True
    if prefix == _RESERVED or prefix.endswith(f".{_RESERVED}"):
        return False
    kubernetes = any(prefix == name or prefix.endswith(f".{name}") for name in ("kubernetes.io", "k8s.io"))
    if not kubernetes or key in _OWN_LABELS:
        return True
    return any(prefix == name or prefix.endswith(f".{name}") for name in _OWN_PREFIXES)


def restrict_create(info: ResourceInfo, name: str, obj: Object, user: User) -> None:
    """Raises StatusError (403)."""
    key = (info.group, info.plural)
    if key == _NODE:
        _own_node(info, name, user)
        if (obj.get("spec") or {}).get("configSource"):
            text = f'node "{user.node_name}" is not allowed to create pods with a non-nil configSource'
            raise forbidden(info, name, text)
        wrong = forbidden_labels(set(obj["metadata"].get("labels") or {}))
        if wrong:
            text = f'node "{user.node_name}" is not allowed to set the following labels: {", ".join(wrong)}'
            raise forbidden(info, name, text)
    elif key == _LEASE and name != user.node_name:
        raise forbidden(info, name, "can only access node lease with the same name as the requesting node")
    elif key == _POD:
        _mirror_pod(info, name, obj, user)


def restrict_node_update(info: ResourceInfo, new: Object, old: Object, user: User, subresource: str) -> None:
    """Raises StatusError (403)."""
    name = new["metadata"]["name"]
    _own_node(info, name, user)
    after, before = new["metadata"], old["metadata"]
    source = (new.get("spec") or {}).get("configSource")
    if source and source != (old.get("spec") or {}).get("configSource"):
        text = f'node "{user.node_name}" is not allowed to update configSource to a new non-nil configSource'
        raise forbidden(info, name, text)
    if (after.get("ownerReferences") or []) != (before.get("ownerReferences") or []):
        raise forbidden(info, name, f'node "{user.node_name}" is not allowed to modify ownerReferences')
    labels, present = after.get("labels") or {}, before.get("labels") or {}
    changed = {key for key in {*labels, *present} if labels.get(key) != present.get(key)}
    wrong = forbidden_labels(changed)
    if wrong:
        text = f'node "{user.node_name}" is not allowed to modify labels: {", ".join(wrong)}'
        raise forbidden(info, name, text)
    if not subresource and new.get("spec", {}).get("taints") != old.get("spec", {}).get("taints"):
        raise forbidden(info, name, f'node "{user.node_name}" is not allowed to modify taints')


def restrict_pod_status(info: ResourceInfo, new: Object, old: Object, user: User) -> None:
    """Raises StatusError (403): a status says nothing about labels."""
    if (new["metadata"].get("labels") or {}) != (old["metadata"].get("labels") or {}):
        text = f'node "{user.node_name}" cannot update labels through pod status'
        raise forbidden(info, new["metadata"]["name"], text)


def _own_node(info: ResourceInfo, name: str, user: User) -> None:
    if name != user.node_name:
        raise forbidden(info, name, f'node "{user.node_name}" is not allowed to modify node "{name}"')


def _mirror_pod(info: ResourceInfo, name: str, obj: Object, user: User) -> None:
    node, spec = f'node "{user.node_name}"', obj["spec"]
    if not is_mirror(obj):
        text = (
            f'pod does not have "kubernetes.io/config.mirror" annotation, {node} can only create mirror pods'
        )
        raise forbidden(info, name, text)
    if spec.get("nodeName") != user.node_name:
        raise forbidden(info, name, f"{node} can only create pods with spec.nodeName set to itself")
    owners = obj["metadata"].get("ownerReferences") or []
    ours = {"apiVersion": "v1", "kind": "Node", "name": user.node_name}
    if len(owners) != 1 or any(owners[0].get(key) != value for key, value in ours.items()):
        raise forbidden(info, name, f"{node} can only create pods with an owner reference set to itself")
    if spec.get("serviceAccountName"):
        raise forbidden(info, name, f"{node} can not create pods that reference a service account")
    named = {"Secret": "secrets", "ConfigMap": "configmaps"}
    for kind, _ in references(spec):
        raise forbidden(info, name, f"{node} can not create pods that reference {named[kind]}")
    if any(True for _ in claim_names(obj)):
        raise forbidden(info, name, f"{node} can not create pods that reference persistentvolumeclaims")
