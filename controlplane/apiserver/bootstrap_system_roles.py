"""The roles of a cluster's programs under upstream's names, and who is bound to them from the beginning.

Charts bind their accounts to some of them (system:auth-delegator, system:kubelet-api-admin) and would be
refused where they are missing. What our own parts may do does not hang on them: see authorization.
Source: upstream's plugin/pkg/auth/authorizer/rbac/bootstrappolicy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Object = dict[str, Any]

_K8S = "k8s.io"
RBAC = "rbac.authorization.k8s.io"
WRITES = ("create", "delete", "deletecollection", "patch", "update")
READS = ("get", "list", "watch")
_LISTS = ("list", "watch")
_CHANGES = ("patch", "update")
_REQUESTS = "certificatesigningrequests"
_SIGNERS = ("kube-apiserver-client", "kube-apiserver-client-kubelet", "kubelet-serving", "legacy-unknown")
_HEALTH = ("/healthz", "/livez", "/readyz")
_VERSION = ("/version", "/version/")
_METADATA: dict[str, dict[str, str]] = {
    "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
    "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
}


def rule(verbs: Iterable[str], group: str, resources: str, *names: str) -> Object:
    """A PolicyRule about the resources that `resources` lists with blanks, `names`: only these objects."""
    found = {"apiGroups": [group], "resources": resources.split(), "verbs": list(verbs)}
    return {**found, "resourceNames": list(names)} if names else found


def cluster_role(name: str, rules: Iterable[Object], **labels: str) -> Object:
    """A ClusterRole as the server makes it: later versions may add to it."""
    metadata = {"name": name, **{part: dict(values) for part, values in _METADATA.items()}}
    metadata["labels"] = {**_METADATA["labels"], **labels}
    return {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": list(rules)}


def system_roles() -> Iterator[Object]:
    """Every role whose name begins with "system:" but for the parts of admin, edit and view."""
    yield from _everybodys()
    yield from _watchers()
    yield from _signing()
    yield from _node()
    yield from _control_plane()
    yield from _storage()


def bindings() -> Iterator[Object]:
    """Which of them are bound from the beginning, and to whom."""
    everybody, strangers = _group("system:authenticated"), _group("system:unauthenticated")
    yield _binding("cluster-admin", _group("system:masters"))
    yield _binding("system:basic-user", everybody)
    yield _binding("system:discovery", everybody)
    yield _binding("system:public-info-viewer", everybody, strangers)
    yield _binding("system:monitoring", _group("system:monitoring"))
    yield _binding("system:service-account-issuer-discovery", _group("system:serviceaccounts"))
    yield _binding("system:node-proxier", _user("system:kube-proxy"))
    yield _binding("system:kube-controller-manager", _user("system:kube-controller-manager"))
    yield _binding("system:kube-scheduler", _user("system:kube-scheduler"))
    yield _binding("system:volume-scheduler", _user("system:kube-scheduler"))
    yield _binding(
        "system:kube-dns", {"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"}
    )
    yield _binding("system:node")  # to nobody: kubelets are judged one by one


def _everybodys() -> Iterator[Object]:
    found = ("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*")
    yield cluster_role("system:discovery", [_paths(*found, *_HEALTH, *_VERSION)])
    yield cluster_role("system:public-info-viewer", [_paths(*_HEALTH, *_VERSION)])
    own = rule(("create",), f"authorization.{_K8S}", "selfsubjectaccessreviews selfsubjectrulesreviews")
    yield cluster_role(
        "system:basic-user", [own, rule(("create",), f"authentication.{_K8S}", "selfsubjectreviews")]
    )
    issuer = _paths("/.well-known/openid-configuration", "/openid/v1/jwks")
    yield cluster_role("system:service-account-issuer-discovery", [issuer])


def _watchers() -> Iterator[Object]:
    below = tuple(f"{path}/*" for path in _HEALTH)
    yield cluster_role("system:monitoring", [_paths(*_HEALTH, *below, "/metrics", "/metrics/slis")])
    whole = rule(("*",), "", "nodes/log nodes/metrics nodes/proxy nodes/stats")
    # The finer ones let a monitor ask for one thing without entering pods.
    finer = rule(("*",), "", "nodes/configz nodes/healthz nodes/pods")
    nodes = [rule(READS, "", "nodes"), rule(("proxy",), "", "nodes"), whole, finer]
    yield cluster_role("system:kubelet-api-admin", nodes)
    problems = [rule(("get",), "", "nodes"), rule(("patch",), "", "nodes/status"), _events()]
    yield cluster_role("system:node-problem-detector", problems)
    seen = [rule(READS, "", "events namespaces nodes pods"), rule(READS, "extensions", "deployments")]
    yield cluster_role("system:heapster", seen)
    yield cluster_role("system:auth-delegator", [_token_reviews(), _access_reviews()])
    yield cluster_role("system:kube-aggregator", [rule(READS, "", "endpoints services")])
    names = [rule(_LISTS, "", "endpoints services"), rule(_LISTS, f"discovery.{_K8S}", "endpointslices")]
    yield cluster_role("system:kube-dns", names)


def _signing() -> Iterator[Object]:
    group = f"certificates.{_K8S}"
    yield cluster_role("system:node-bootstrapper", [rule(("create", *READS), group, _REQUESTS)])
    # The last is our own: see controllers/csr_approving.
    for client in ("nodeclient", "selfnodeclient", "selfnodeserver"):
        asked = rule(("create",), group, f"{_REQUESTS}/{client}")
        yield cluster_role(f"system:{group}:{_REQUESTS}:{client}", [asked])
    for signer in _SIGNERS:
        approving = rule(("approve",), group, "signers", f"kubernetes.io/{signer}")
        yield cluster_role(f"system:{group}:{signer}-approver", [approving])


def _node() -> Iterator[Object]:
    core = [
        rule(READS, "", "services"),
        rule(("create", *READS, *_CHANGES), "", "nodes"),
        rule(_CHANGES, "", "nodes/status pods/status"),
        rule(("create", *_CHANGES), "", "events"),
        rule(("create", "delete", *READS), "", "pods"),
        rule(("create",), "", "pods/eviction serviceaccounts/token"),
        rule(READS, "", "configmaps secrets"),
        rule(("get",), "", "endpoints persistentvolumeclaims persistentvolumes"),
        rule(("get", *_CHANGES), "", "persistentvolumeclaims/status"),
    ]
    others = [
        _token_reviews(),
        _access_reviews("localsubjectaccessreviews"),
        rule(("create", *READS), f"certificates.{_K8S}", _REQUESTS),
        rule(("create", "delete", "get", *_CHANGES), f"coordination.{_K8S}", "leases"),
        rule(("get",), f"storage.{_K8S}", "volumeattachments"),
        rule(READS, f"storage.{_K8S}", "csidrivers"),
        rule(("create", "delete", "get", *_CHANGES), f"storage.{_K8S}", "csinodes"),
        rule(READS, f"node.{_K8S}", "runtimeclasses"),
    ]
    yield cluster_role("system:node", [*core, *others])
    yield cluster_role("system:node-proxier", [*_proxier()])


def _proxier() -> Iterator[Object]:
    yield rule(_LISTS, "", "endpoints services")
    yield rule(READS, "", "nodes")
    yield _events()
    yield rule(_LISTS, f"discovery.{_K8S}", "endpointslices")
    yield rule(_LISTS, f"networking.{_K8S}", "servicecidrs")
    # Upstream's role ends here; our proxy serves names and enforces policies, too.
    yield rule(_LISTS, "", "namespaces pods")
    yield rule(_LISTS, f"networking.{_K8S}", "networkpolicies")


def _control_plane() -> Iterator[Object]:
    manager = [
        rule(("create",), "", "secrets serviceaccounts serviceaccounts/token"),
        rule(("delete",), "", "secrets"),
        rule(("get",), "", "configmaps namespaces secrets serviceaccounts"),
        rule(("update",), "", "secrets serviceaccounts"),
        rule(_LISTS, "*", "*"),
    ]
    yield cluster_role("system:kube-controller-manager", [*_leader("kube-controller-manager"), *manager])
    scheduler = [
        rule(READS, "", "namespaces nodes persistentvolumeclaims persistentvolumes"),
        rule(("delete", *READS), "", "pods"),
        rule(("create",), "", "bindings pods/binding"),
        rule(_CHANGES, "", "pods/status"),
        rule(READS, "", "replicationcontrollers services"),
        rule(READS, "extensions", "replicasets"),
        rule(READS, "apps", "replicasets statefulsets"),
        rule(READS, "policy", "poddisruptionbudgets"),
        rule(READS, f"storage.{_K8S}", "csidrivers csinodes csistoragecapacities volumeattachments"),
    ]
    yield cluster_role("system:kube-scheduler", [*_leader("kube-scheduler"), *scheduler])


def _storage() -> Iterator[Object]:
    classes = rule(READS, f"storage.{_K8S}", "storageclasses")
    changed = rule((*READS, *_CHANGES), "", "persistentvolumeclaims persistentvolumes")
    yield cluster_role("system:volume-scheduler", [changed, classes])
    provisioner = [
        rule(("create", "delete", *READS), "", "persistentvolumes"),
        rule(("update", *READS), "", "persistentvolumeclaims"),
        classes,
        rule(("watch",), "", "events"),
        _events(),
    ]
    yield cluster_role("system:persistent-volume-provisioner", provisioner)


def _leader(name: str) -> Iterator[Object]:
    """What every program has of which one at a time works."""
    yield _events()
    yield rule(("create",), f"coordination.{_K8S}", "leases")
    yield rule(("get", "update"), f"coordination.{_K8S}", "leases", name)
    yield _token_reviews()
    yield _access_reviews()


def _events() -> Object:
    return {**rule(("create", *_CHANGES), "", "events"), "apiGroups": ["", f"events.{_K8S}"]}


def _token_reviews() -> Object:
    return rule(("create",), f"authentication.{_K8S}", "tokenreviews")


def _access_reviews(more: str = "") -> Object:
    return rule(("create",), f"authorization.{_K8S}", f"subjectaccessreviews {more}")


def _paths(*paths: str) -> Object:
    return {"nonResourceURLs": list(paths), "verbs": ["get"]}


def _binding(role: str, *subjects: Object) -> Object:
    metadata = {"name": role, **{part: dict(values) for part, values in _METADATA.items()}}
    reference = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
    found = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": metadata}
    return {**found, "roleRef": reference, "subjects": list(subjects)}


def _group(name: str) -> Object:
    return {"apiGroup": RBAC, "kind": "Group", "name": name}


def _user(name: str) -> Object:
    return {"apiGroup": RBAC, "kind": "User", "name": name}
