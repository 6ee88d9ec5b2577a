"""Who may do what: built-in rules for the cluster's own parts, RBAC objects for everybody else.

Both speak in RBAC's terms: a rule allows verbs on resources of API groups, or on paths. The built-in
rules are the substance of upstream's bootstrap roles (plugin/pkg/auth/authorizer/rbac) for the users
that our own certificates name; they are not stored, so nobody can lock the node out by deleting them. A
kubelet is also held to its own node, as upstream's Node authorizer and NodeRestriction do: see `node_access`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver import issuer_discovery
from controlplane.apiserver.node_access import NodeAccess, pinned
from controlplane.apiserver.routing import Request
from controlplane.apiserver.users import AUTHENTICATED, MASTERS, User
from controlplane.storage.cache import Cache

Object = dict[str, Any]

_RBAC = "rbac.authorization.k8s.io"
_COLLECTIONS = ("roles", "rolebindings", "clusterroles", "clusterrolebindings")
ALL = ("*",)
_READ = ("get", "list", "watch")
_ALWAYS_OPEN = ("/healthz", "/livez", "/readyz", "/version")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is judged. Either `path` (no resource) or the rest."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    fields: str = ""  # the field selector of a list or watch

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class Rule:
    """A PolicyRule of RBAC; "*" in any part matches everything."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def allows(self, asked: Attributes) -> bool:
        if not _covers(self.verbs, asked.verb):
            return False
        if asked.path:
            return any(_path_matches(pattern, asked.path) for pattern in self.paths)
        if not _covers(self.groups, asked.group):
            return False
        if self.names and asked.name not in self.names:
            return False
        wildcard = f"*/{asked.subresource}" if asked.subresource else "*"
        return _covers(self.resources, asked.full_resource) or wildcard in self.resources


@dataclass(frozen=True, slots=True)
class _Grant:
    """A binding joined with its role: `namespace` None grants everywhere."""

    users: frozenset[str]
    groups: frozenset[str]
    namespace: str | None
    rules: tuple[Rule, ...]


def is_open(path: str) -> bool:
    """Health and version may be asked by anybody, without any credentials."""
    first = "/" + path.strip("/").partition("/")[0]
    return first in _ALWAYS_OPEN


def of_request(request: Request) -> Attributes:
    if request.info is None:
        return Attributes(request.verb, path=request.path)
    info = request.info
    namespace, name = request.namespace, request.name
    if info.plural == "namespaces":
        namespace = name
    fields = request.query.get("fieldSelector", "") if request.verb in ("list", "watch") else ""
    if not name:
        name = pinned(fields, "metadata.name")
    return Attributes(
        request.verb, info.group, info.plural, request.subresource, namespace, name, fields=fields
    )


class Authorizer:
    """Judges requests. RBAC objects are compiled again when one of them changed."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._nodes = NodeAccess(cache)
        self._compiled: tuple[tuple[int, ...], tuple[_Grant, ...]] = ((), ())

    def allowed(self, user: User, asked: Attributes) -> bool:
        """May this user do that?"""
        if MASTERS in user.groups:
            return True
        if asked.path and asked.verb in ("get", "head") and is_open(asked.path):
            return True
        for rule in self.rules(user, asked.namespace):
            if rule.allows(asked):
                break
        else:
            return False
        node = user.node_name
        return (
            not node
            or bool(asked.path)
            or self._nodes.allowed(
                node, asked.verb, asked.resource, asked.subresource, asked.namespace, asked.name, asked.fields
            )
        )

    def may_use_signer(self, user: User, verb: str, signer: str) -> bool:
        """May this user approve (or sign) requests to that signer, or to all of its domain?"""
        names = (signer, f"{signer.partition('/')[0]}/*")
        asked = [Attributes(verb, "certificates.k8s.io", "signers", name=name) for name in names]
        return any(self.allowed(user, each) for each in asked)

    def rules(self, user: User, namespace: str) -> Iterator[Rule]:
        """Every rule that holds for this user in this namespace ("" for cluster-wide ones only)."""
        if MASTERS in user.groups:
            yield Rule(ALL, ALL, ALL)
            yield Rule(ALL, paths=ALL)
            return
        for subject in (user.name, *user.groups):
            yield from _BUILT_IN.get(subject, ())
        for grant in self._grants():
            if grant.namespace is not None and grant.namespace != namespace:
                continue
            if user.name in grant.users or not grant.groups.isdisjoint(user.groups):
                yield from grant.rules

    def _grants(self) -> tuple[_Grant, ...]:
        version = tuple(self._cache.collection(f"{_RBAC}/{name}").touched for name in _COLLECTIONS)
        if version != self._compiled[0]:
            self._compiled = (version, tuple(self._compile()))
        return self._compiled[1]

    def _compile(self) -> Iterator[_Grant]:
        for collection in ("rolebindings", "clusterrolebindings"):
            for entry in self._cache.collection(f"{_RBAC}/{collection}").present():
                binding = entry.parse()
                users, groups = _subjects(binding.get("subjects") or (), entry.namespace)
                rules = tuple(self.rules_of_role(binding.get("roleRef") or {}, entry.namespace) or ())
                yield _Grant(users, groups, entry.namespace or None, rules)

    def rules_of_role(self, reference: Object, namespace: str) -> list[Rule] | None:
        """What a binding in `namespace` ("" for a cluster's) to this role grants; None: no such role."""
        if reference.get("kind") == "ClusterRole":
            entry = self._cache.get(f"{_RBAC}/clusterroles", "", reference.get("name", ""))
        else:
            entry = self._cache.get(f"{_RBAC}/roles", namespace, reference.get("name", ""))
        if entry is None:
            return None
        return [
            Rule(
                tuple(rule.get("verbs") or ()),
                tuple(rule.get("apiGroups") or ()),
                tuple(rule.get("resources") or ()),
                tuple(rule.get("resourceNames") or ()),
                # Paths belong to no namespace, so only a cluster-wide binding grants them.
                () if namespace else tuple(rule.get("nonResourceURLs") or ()),
            )
            for rule in entry.parse().get("rules") or ()
        ]


def _subjects(subjects: Iterable[Object], namespace: str) -> tuple[frozenset[str], frozenset[str]]:
    users, groups = set(), set()
    for subject in subjects:
        name = subject.get("name", "")
        if subject.get("kind") == "User":
            users.add(name)
        elif subject.get("kind") == "Group":
            groups.add(name)
        elif subject.get("kind") == "ServiceAccount":
            users.add(f"system:serviceaccount:{subject.get('namespace') or namespace}:{name}")
    return frozenset(users), frozenset(groups)


def _covers(patterns: tuple[str, ...], value: str) -> bool:
    return value in patterns or "*" in patterns


def _path_matches(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.startswith(pattern[:-1])
    return path == pattern


_REVIEWS = Rule(
    ("create",),
    ("authentication.k8s.io", "authorization.k8s.io"),
    ("tokenreviews", "subjectaccessreviews", "localsubjectaccessreviews"),
)
_EVENTS = Rule(("create", "patch", "update"), ("", "events.k8s.io"), ("events",))

_BUILT_IN: dict[str, tuple[Rule, ...]] = {
    "system:serviceaccounts": (Rule(("get", "head"), paths=issuer_discovery.PATHS),),
    AUTHENTICATED: (
        Rule(
            ("get", "head"),
            paths=("/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*", "/", *_ALWAYS_OPEN),
        ),
        Rule(("create",), ("authorization.k8s.io",), ("selfsubjectaccessreviews", "selfsubjectrulesreviews")),
        Rule(("create",), ("authentication.k8s.io",), ("selfsubjectreviews",)),
    ),
    "system:nodes": (
        Rule(("get", "list", "watch", "create", "update", "patch", "delete"), ("",), ("nodes",)),
        Rule(("get", "update", "patch"), ("",), ("nodes/status",)),
        Rule((*_READ, "create", "delete"), ("",), ("pods",)),
        Rule(("get", "update", "patch"), ("",), ("pods/status",)),
        Rule(("create",), ("",), ("pods/eviction", "serviceaccounts/token")),
        Rule(
            _READ,
            ("",),
            (
                "services",
                "endpoints",
                "configmaps",
                "secrets",
                "serviceaccounts",
                "namespaces",
                "persistentvolumes",
                "persistentvolumeclaims",
            ),
        ),
        Rule(_READ, ("node.k8s.io",), ("runtimeclasses",)),
        Rule((*_READ, "create", "update", "patch", "delete"), ("coordination.k8s.io",), ("leases",)),
        Rule((*_READ, "create"), ("certificates.k8s.io",), ("certificatesigningrequests",)),
        _EVENTS,
        _REVIEWS,
    ),
    "system:kube-proxy": (
        Rule(_READ, ("",), ("services", "endpoints", "nodes", "namespaces", "pods")),
        Rule(_READ, ("discovery.k8s.io",), ("endpointslices",)),
        Rule(_READ, ("networking.k8s.io",), ("networkpolicies",)),
        _EVENTS,
    ),
    "system:kube-scheduler": (
        Rule((*_READ, "delete"), ("",), ("pods",)),
        Rule(("create",), ("",), ("pods/binding", "bindings")),
        Rule(("patch", "update"), ("",), ("pods/status", "persistentvolumes", "persistentvolumeclaims")),
        Rule(
            _READ,
            ("", "apps", "policy", "storage.k8s.io", "scheduling.k8s.io", "node.k8s.io"),
            (
                "nodes",
                "namespaces",
                "services",
                "replicationcontrollers",
                "replicasets",
                "statefulsets",
                "poddisruptionbudgets",
                "persistentvolumeclaims",
                "persistentvolumes",
                "storageclasses",
                "priorityclasses",
                "runtimeclasses",
            ),
        ),
        Rule((*_READ, "create", "update", "patch"), ("coordination.k8s.io",), ("leases",)),
        _EVENTS,
        _REVIEWS,
    ),
    # Upstream gives each controller a service account of its own; ours share this one user, and garbage
    # collection and namespace deletion need every kind anyway.
    "system:kube-controller-manager": (Rule(ALL, ALL, ALL), Rule(("get",), paths=ALL)),
}
