"""What a cluster has so that nodes can join it: cluster-info, the network's ranges, and the rights to ask.

These are the objects that kubeadm makes, under its names, so that its `join` and ours find the same things.
Bindings are made where they are missing and then left alone: who wants no certificate approved without a
person empties the `subjects` of the binding (deleting it would only last until the next start).
One binding is our own: kubelets may see what a proxy has to see, because the proxy of a joined node logs in
as its kubelet. The roles whose names begin with "system:" are in bootstrap_system_roles.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import orjson

from controlplane.bootstrap_tokens import CLUSTER_INFO, CLUSTER_INFO_NAMESPACE, DEFAULT_GROUP
from controlplane.signers import NODES_GROUP

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_APPROVE = "system:certificates.k8s.io:certificatesigningrequests"
KUBEADM_CONFIG = "kubeadm-config"


def cluster_info(server: str, ca: bytes) -> Object:
    """The ConfigMap that strangers may read: a kubeconfig without a user. It is JSON, which is YAML too."""
    cluster = {"certificate-authority-data": base64.b64encode(ca).decode(), "server": server}
    kubeconfig: Object = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": cluster}],
        "contexts": None,
        "current-context": "",
        "preferences": {},
        "users": None,
    }
    text = orjson.dumps(kubeconfig, option=orjson.OPT_INDENT_2).decode() + "\n"
    return _config_map(CLUSTER_INFO, CLUSTER_INFO_NAMESPACE, {"kubeconfig": text})


def cluster_configuration(server: str, version: str, pods: str, services: str) -> Object:
    """kubeadm's ClusterConfiguration, as far as a joining node needs it."""
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "clusterName": "kubernetes",
        "controlPlaneEndpoint": server.removeprefix("https://"),
        "kubernetesVersion": version,
        "networking": {"podSubnet": pods, "serviceSubnet": services},
    }
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n"
    return _config_map(KUBEADM_CONFIG, "kube-system", {"ClusterConfiguration": text})


def rights() -> Iterator[Object]:
    """Roles and bindings of bootstrap tokens, kubelets and strangers."""
    group, nodes = _subject("Group", DEFAULT_GROUP), _subject("Group", NODES_GROUP)
    yield _role("kubeadm:get-nodes", _rule(("get",), "", "nodes"))
    yield _binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", group)
    yield _binding("kubeadm:node-autoapprove-bootstrap", f"{_APPROVE}:nodeclient", group)
    yield _binding("kubeadm:node-autoapprove-certificate-rotation", f"{_APPROVE}:selfnodeclient", nodes)
    yield _binding("kubelet-py:node-autoapprove-serving", f"{_APPROVE}:selfnodeserver", nodes)
    yield _binding("kubeadm:get-nodes", "kubeadm:get-nodes", group)
    yield _binding("kubelet-py:node-proxier", "system:node-proxier", nodes)
    name = "kubeadm:bootstrap-signer-clusterinfo"
    yield from _readable(CLUSTER_INFO_NAMESPACE, name, CLUSTER_INFO, [_subject("User", "system:anonymous")])
    yield from _readable("kube-system", "kubeadm:nodes-kubeadm-config", KUBEADM_CONFIG, [group, nodes])


def _readable(namespace: str, role: str, config_map: str, subjects: list[Object]) -> Iterator[Object]:
    """A Role to get one ConfigMap, and its binding."""
    rule = {**_rule(("get",), "", "configmaps"), "resourceNames": [config_map]}
    yield _object(f"{_RBAC}/v1", "Role", role, namespace, rules=[rule])
    reference = {"apiGroup": _RBAC, "kind": "Role", "name": role}
    yield _object(f"{_RBAC}/v1", "RoleBinding", role, namespace, roleRef=reference, subjects=subjects)


def _object(api_version: str, kind: str, name: str, namespace: str, **parts: Any) -> Object:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


def _config_map(name: str, namespace: str, data: dict[str, str]) -> Object:
    return _object("v1", "ConfigMap", name, namespace, data=data)


def _role(name: str, *rules: Object) -> Object:
    return _object(f"{_RBAC}/v1", "ClusterRole", name, "", rules=list(rules))


def _binding(name: str, role: str, subject: Object) -> Object:
    reference = {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role}
    return _object(f"{_RBAC}/v1", "ClusterRoleBinding", name, "", roleRef=reference, subjects=[subject])


def _rule(verbs: tuple[str, ...], group: str, *resources: str) -> Object:
    return {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}


def _subject(kind: str, name: str) -> Object:
    return {"apiGroup": _RBAC, "kind": kind, "name": name}
