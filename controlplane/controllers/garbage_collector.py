"""Deletes what nobody owns any more, and carries out foreground and orphan deletion.

An object whose `ownerReferences` all name objects that are gone is deleted. Whether an owner is gone is never
concluded from a cache alone: before anything is deleted the owner is asked for at the API, by name, and
its UID compared. Source: upstream's garbagecollector (attemptToDeleteItem, the two deletion finalizers).
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict

from controlplane.controllers.base import Controller, Handler, Object, SharedInformers
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    JOBS,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    REPLICA_SETS,
    SECRETS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
RETRY_SECONDS = 5.0  # events say when a dependent goes; this is for those that were missed

WATCHED: tuple[Resource, ...] = (
    PODS, REPLICA_SETS, DEPLOYMENTS, SERVICES, ENDPOINT_SLICES, CONFIG_MAPS, SECRETS, NODES,
    DAEMON_SETS, STATEFUL_SETS, CONTROLLER_REVISIONS, JOBS, CRON_JOBS, PERSISTENT_VOLUME_CLAIMS,
)  # fmt: skip


class GarbageCollector(Controller):
    name = "garbage-collector"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._lock = threading.Lock()
        self._dependents: dict[str, set[str]] = defaultdict(set)  # owner uid → keys
        self._by_kind = {(r.api_version, r.kind): r for r in WATCHED}
        self._by_plural = {r.plural: r for r in WATCHED}
        self._informers = {r.plural: informers.of(r, self._handler(r)) for r in WATCHED}

    def _handler(self, resource: Resource) -> Handler:
        def handle(kind: str, new: Object, old: Object | None) -> None:
            metadata = new["metadata"]
            key = f"{resource.plural}|{metadata.get('namespace', '')}|{metadata['name']}"
            with self._lock:
                for reference in ((old or new)["metadata"].get("ownerReferences")) or []:
                    self._dependents[reference["uid"]].discard(key)
                if kind != "DELETED":
                    for reference in metadata.get("ownerReferences") or []:
                        self._dependents[reference["uid"]].add(key)
                waiting = set(self._dependents.get(metadata["uid"], ())) if kind == "DELETED" else set()
                if kind == "DELETED" and not waiting:
                    self._dependents.pop(metadata["uid"], None)
            for dependent in waiting:
                self.queue.add(dependent)
            kept = [] if kind == "DELETED" else metadata.get("ownerReferences") or []
            for reference in ((old or new)["metadata"].get("ownerReferences")) or []:
                if reference not in kept:
                    # An owner that waits in the foreground for this one can perhaps go now.
                    self._enqueue_owner(reference, metadata.get("namespace", ""))
            if kind != "DELETED" and (metadata.get("ownerReferences") or metadata.get("deletionTimestamp")):
                self.queue.add(key)

        return handle

    def _enqueue_owner(self, reference: Object, namespace: str) -> None:
        resource = self._by_kind.get((reference["apiVersion"], reference["kind"]))
        if resource is not None:
            place = namespace if resource.namespaced else ""
            self.queue.add(f"{resource.plural}|{place}|{reference['name']}")

    def sync(self, key: str) -> None:
        plural, namespace, name = key.split("|")
        resource = self._by_plural[plural]
        obj = self._informers[plural].get(name, namespace or None)
        if obj is None:
            return
        finalizers = obj["metadata"].get("finalizers") or []
        if obj["metadata"].get("deletionTimestamp"):
            if ORPHAN in finalizers:
                self._orphan(resource, obj, key)
            elif FOREGROUND in finalizers:
                self._foreground(resource, obj, key)
            return
        if obj["metadata"].get("ownerReferences"):
            self._check_owners(resource, obj)

    def _check_owners(self, resource: Resource, obj: Object) -> None:
        metadata = obj["metadata"]
        solid, dangling, waiting = [], [], []
        for reference in metadata["ownerReferences"]:
            owner = self._owner(reference, metadata.get("namespace"))
            if owner is None:
                dangling.append(reference)
            elif _in_foreground(owner) and reference.get("blockOwnerDeletion"):
                waiting.append(reference)
            else:
                solid.append(reference)
        if solid and (dangling or waiting):
            self._keep_owners(resource, obj, solid)
        elif not solid:
            policy = "Foreground" if waiting and self._dependents.get(metadata["uid"]) else "Background"
            self._delete(resource, obj, policy)

    def _owner(self, reference: Object, namespace: str | None) -> Object | None:
        """The owner as it is, or None when it is certainly gone; kinds we cannot ask for count as there."""
        resource = self._by_kind.get((reference["apiVersion"], reference["kind"]))
        if resource is None:
            return {"metadata": {}}
        cached = self._informers[resource.plural].get(
            reference["name"], namespace if resource.namespaced else None
        )
        if cached is not None and cached["metadata"]["uid"] == reference["uid"]:
            return cached
        try:
            live = self.client.get(resource, reference["name"], namespace if resource.namespaced else None)
        except NotFound:
            return None
        return live if live["metadata"]["uid"] == reference["uid"] else None

    def _delete(self, resource: Resource, obj: Object, policy: str) -> None:
        """As it was looked at: our copy may lag behind its owner's letting go, whose event is to come."""
        metadata = obj["metadata"]
        try:
            self.client.delete(
                resource,
                metadata["name"],
                metadata.get("namespace"),
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
                propagation_policy=policy,
            )
        except (NotFound, Conflict):
            return
        log.info(
            "Deleted ownerless object kind=%s namespace=%s name=%s",
            resource.kind,
            metadata.get("namespace", ""),
            metadata["name"],
        )

    def _keep_owners(self, resource: Resource, obj: Object, references: list[Object]) -> None:
        metadata = {"uid": obj["metadata"]["uid"], "ownerReferences": references}
        body = {"metadata": metadata | {"resourceVersion": obj["metadata"]["resourceVersion"]}}
        name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace")
        try:
            self.client.patch(resource, name, body, namespace, kind="merge")
        except NotFound:
            return

    def _foreground(self, resource: Resource, obj: Object, key: str) -> None:
        """Delete the dependents that block; when none is left, let the owner go."""
        blocking = 0
        for other, dependent in self._owned(obj):
            for reference in dependent["metadata"].get("ownerReferences") or []:
                blocking += reference["uid"] == obj["metadata"]["uid"] and bool(
                    reference.get("blockOwnerDeletion")
                )
            if not dependent["metadata"].get("deletionTimestamp"):
                self._check_owners(other, dependent)
        if blocking:
            self.queue.add_after(key, RETRY_SECONDS)
        else:
            self._drop_finalizer(resource, obj, FOREGROUND)

    def _orphan(self, resource: Resource, obj: Object, key: str) -> None:
        """Take the owner out of its dependents, then let it go."""
        owned = self._owned(obj)
        for other, dependent in owned:
            others = dependent["metadata"].get("ownerReferences") or []
            rest = [reference for reference in others if reference["uid"] != obj["metadata"]["uid"]]
            self._keep_owners(other, dependent, rest)
        self._drop_finalizer(resource, obj, ORPHAN)

    def _owned(self, obj: Object) -> list[tuple[Resource, Object]]:
        with self._lock:
            keys = sorted(self._dependents.get(obj["metadata"]["uid"], ()))
        found = []
        for key in keys:
            plural, namespace, name = key.split("|")
            dependent = self._informers[plural].get(name, namespace or None)
            if dependent is not None:
                found.append((self._by_plural[plural], dependent))
        return found

    def _drop_finalizer(self, resource: Resource, obj: Object, finalizer: str) -> None:
        metadata = obj["metadata"]
        rest = [f for f in metadata["finalizers"] if f != finalizer]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": rest}}
        try:
            self.client.patch(resource, metadata["name"], body, metadata.get("namespace"), kind="merge")
        except NotFound:
            return


def _in_foreground(owner: Object) -> bool:
    metadata = owner["metadata"]
    return bool(metadata.get("deletionTimestamp")) and FOREGROUND in (metadata.get("finalizers") or [])
