"""The table of kinds: what is served under which path, with which verbs and short names.

Discovery, OpenAPI, routing and printing all follow from these rows, so a kind that is not here does not
exist for any client. No package carries short names and categories; they are upstream's
(pkg/registry/*/rest). A row without a controller behind it is honest storage: the object is kept, served
and watched, as etcd would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CREATE_ONLY = ("create",)
GET_LIST = ("get", "list")
GET_PATCH_UPDATE = ("get", "patch", "update")


@dataclass(frozen=True, slots=True)
class Subresource:
    """A path below one object; `kind` (with group and version when they differ from the parent's) is its
    body.
    """

    kind: str
    group: str
    version: str
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResourceInfo:
    """One row: a resource in one group and version.

    `definition` is the name in the OpenAPI file. `storage_version` is the (group, version) under which the
    objects are kept: events.k8s.io/v1 and autoscaling/v1 are views on another row's objects (see
    conversion.py).
    """

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    list_kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: Mapping[str, Subresource] = field(default_factory=lambda: MappingProxyType({}))
    definition: str = ""
    storage_version: tuple[str, str] = ("", "v1")
    measured: bool = False  # answered from what the kubelets measure, see usage_api.py

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path_prefix(self) -> str:
        """`/api/v1` or `/apis/apps/v1`."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def stored(self) -> bool:
        """False for reviews and bindings, which are answered and forgotten, and for what is measured."""
        return "get" in self.verbs and not self.measured

    @property
    def is_view(self) -> bool:
        """True when the objects are kept in the form of another group or version."""
        return self.storage_version != (self.group, self.version)


def definition_name(group: str, version: str, kind: str) -> str:
    """The OpenAPI name of a built-in kind, e.g. io.k8s.api.rbac.v1.Role."""
    package = "core" if not group else "rbac" if group.startswith("rbac.") else group.split(".", 1)[0]
    return f"io.k8s.api.{package}.{version}.{kind}"


def _row(
    group_version: str,
    plural: str,
    kind: str,
    short: str = "",
    *,
    namespaced: bool = True,
    everything: bool = False,
    verbs: tuple[str, ...] = ALL_VERBS,
    subresources: Mapping[str, tuple[str, tuple[str, ...]]] | None = None,
    storage: str = "",
    measured: bool = False,
) -> ResourceInfo:
    group, _, version = group_version.rpartition("/")
    stored_group, _, stored_version = (storage or group_version).rpartition("/")
    subs: dict[str, Subresource] = {}
    for name, (typed, sub_verbs) in (subresources or {}).items():
        prefix, _, sub_kind = typed.rpartition("/")
        sub_group, _, sub_version = prefix.rpartition("/")
        subs[name] = Subresource(sub_kind, sub_group, sub_version or version, sub_verbs)
        if not prefix:
            subs[name] = Subresource(sub_kind, group, version, sub_verbs)
    return ResourceInfo(
        group=group,
        version=version,
        plural=plural,
        singular="" if measured else kind.lower(),  # as metrics-server has it
        kind=kind,
        list_kind=f"{kind}List",
        namespaced=namespaced,
        short_names=tuple(short.split()),
        categories=("all",) if everything else (),
        verbs=verbs,
        subresources=MappingProxyType(subs),
        definition=definition_name(group, version, kind),
        storage_version=(stored_group, stored_version),
        measured=measured,
    )


def _status(kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {"status": (kind, GET_PATCH_UPDATE)}


def _scaled(kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {"scale": ("autoscaling/v1/Scale", GET_PATCH_UPDATE), **_status(kind)}


_STREAM = ("create", "get")
_PROXY = ("create", "delete", "get", "patch", "update")

_POD_SUBRESOURCES = {
    "attach": ("PodAttachOptions", _STREAM),
    "binding": ("Binding", CREATE_ONLY),
    "ephemeralcontainers": ("Pod", GET_PATCH_UPDATE),
    "eviction": ("policy/v1/Eviction", CREATE_ONLY),
    "exec": ("PodExecOptions", _STREAM),
    "log": ("Pod", ("get",)),
    "portforward": ("PodPortForwardOptions", _STREAM),
    "proxy": ("PodProxyOptions", _PROXY),
    "resize": ("Pod", GET_PATCH_UPDATE),
    **_status("Pod"),
}

_NAMESPACE_VERBS = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")

RESOURCES: tuple[ResourceInfo, ...] = (
    _row("v1", "bindings", "Binding", verbs=CREATE_ONLY),
    _row("v1", "configmaps", "ConfigMap", "cm"),
    _row("v1", "endpoints", "Endpoints", "ep"),
    _row("v1", "events", "Event", "ev"),
    _row("v1", "limitranges", "LimitRange", "limits"),
    _row(
        "v1",
        "namespaces",
        "Namespace",
        "ns",
        namespaced=False,
        verbs=_NAMESPACE_VERBS,
        subresources={"finalize": ("Namespace", ("update",)), **_status("Namespace")},
    ),
    _row("v1", "nodes", "Node", "no", namespaced=False, subresources=_status("Node")),
    _row(
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        "pvc",
        subresources=_status("PersistentVolumeClaim"),
    ),
    _row(
        "v1",
        "persistentvolumes",
        "PersistentVolume",
        "pv",
        namespaced=False,
        subresources=_status("PersistentVolume"),
    ),
    _row("v1", "pods", "Pod", "po", everything=True, subresources=_POD_SUBRESOURCES),
    _row("v1", "podtemplates", "PodTemplate"),
    _row(
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        "rc",
        everything=True,
        subresources=_scaled("ReplicationController"),
    ),
    _row("v1", "resourcequotas", "ResourceQuota", "quota", subresources=_status("ResourceQuota")),
    _row("v1", "secrets", "Secret"),
    _row(
        "v1",
        "serviceaccounts",
        "ServiceAccount",
        "sa",
        subresources={"token": ("authentication.k8s.io/v1/TokenRequest", CREATE_ONLY)},
    ),
    _row("v1", "services", "Service", "svc", everything=True, subresources=_status("Service")),
    _row("apps/v1", "controllerrevisions", "ControllerRevision"),
    _row("apps/v1", "daemonsets", "DaemonSet", "ds", everything=True, subresources=_status("DaemonSet")),
    _row(
        "apps/v1", "deployments", "Deployment", "deploy", everything=True, subresources=_scaled("Deployment")
    ),
    _row("apps/v1", "replicasets", "ReplicaSet", "rs", everything=True, subresources=_scaled("ReplicaSet")),
    _row(
        "apps/v1", "statefulsets", "StatefulSet", "sts", everything=True, subresources=_scaled("StatefulSet")
    ),
    _row("events.k8s.io/v1", "events", "Event", "ev", storage="v1"),
    _row(
        "authentication.k8s.io/v1",
        "selfsubjectreviews",
        "SelfSubjectReview",
        namespaced=False,
        verbs=CREATE_ONLY,
    ),
    _row("authentication.k8s.io/v1", "tokenreviews", "TokenReview", namespaced=False, verbs=CREATE_ONLY),
    _row(
        "authorization.k8s.io/v1", "localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=CREATE_ONLY
    ),
    _row(
        "authorization.k8s.io/v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        namespaced=False,
        verbs=CREATE_ONLY,
    ),
    _row(
        "authorization.k8s.io/v1",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
        namespaced=False,
        verbs=CREATE_ONLY,
    ),
    _row(
        "authorization.k8s.io/v1",
        "subjectaccessreviews",
        "SubjectAccessReview",
        namespaced=False,
        verbs=CREATE_ONLY,
    ),
    _row(
        "autoscaling/v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "hpa",
        everything=True,
        subresources=_status("HorizontalPodAutoscaler"),
    ),
    _row(
        "autoscaling/v1",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        "hpa",
        everything=True,
        subresources=_status("HorizontalPodAutoscaler"),
        storage="autoscaling/v2",
    ),
    _row("batch/v1", "cronjobs", "CronJob", "cj", everything=True, subresources=_status("CronJob")),
    _row("batch/v1", "jobs", "Job", everything=True, subresources=_status("Job")),
    _row(
        "certificates.k8s.io/v1",
        "certificatesigningrequests",
        "CertificateSigningRequest",
        "csr",
        namespaced=False,
        subresources={
            "approval": ("CertificateSigningRequest", GET_PATCH_UPDATE),
            **_status("CertificateSigningRequest"),
        },
    ),
    _row("networking.k8s.io/v1", "ingressclasses", "IngressClass", namespaced=False),
    _row("networking.k8s.io/v1", "ingresses", "Ingress", "ing", subresources=_status("Ingress")),
    _row("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", "netpol"),
    _row(
        "policy/v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        "pdb",
        subresources=_status("PodDisruptionBudget"),
    ),
    _row("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    _row("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", namespaced=False),
    _row("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding"),
    _row("rbac.authorization.k8s.io/v1", "roles", "Role"),
    _row("storage.k8s.io/v1", "storageclasses", "StorageClass", "sc", namespaced=False),
    _row("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "pc", namespaced=False),
    _row("coordination.k8s.io/v1", "leases", "Lease"),
    _row("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", namespaced=False),
    _row("discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
    _row("metrics.k8s.io/v1beta1", "nodes", "NodeMetrics", namespaced=False, verbs=GET_LIST, measured=True),
    _row("metrics.k8s.io/v1beta1", "pods", "PodMetrics", verbs=GET_LIST, measured=True),
)

_BY_PATH = {(info.group, info.version, info.plural): info for info in RESOURCES}
_BY_KIND = {(info.api_version, info.kind): info for info in RESOURCES}


def lookup(group: str, version: str, plural: str) -> ResourceInfo | None:
    """The row behind /apis/{group}/{version}/{plural}; group "" is the core group."""
    return _BY_PATH.get((group, version, plural))


def by_kind(api_version: str, kind: str) -> ResourceInfo | None:
    """The row of an object's apiVersion and kind, e.g. ("apps/v1", "Deployment")."""
    return _BY_KIND.get((api_version, kind))


def group_versions() -> list[tuple[str, str]]:
    """Every (group, version) served, in discovery's order: the preferred version of a group comes first."""
    return list(dict.fromkeys((info.group, info.version) for info in RESOURCES))


def in_group(group: str, version: str) -> list[ResourceInfo]:
    """The rows of one group and version."""
    return [info for info in RESOURCES if info.group == group and info.version == version]
