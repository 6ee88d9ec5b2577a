"""Empties a namespace that is being deleted, then removes its finalizer so that it goes.

Which kinds there are is asked of discovery each time, so that no kind is forgotten. Pods end gracefully: the
namespace stays Terminating until the last is gone, which the watches tell; other kinds that a finalizer
keeps are looked for again every few seconds. Source: upstream's namespaced resources deleter.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from controlplane.controllers.namespace_conditions import Left, conditions
from kubeclient.errors import NotFound, from_response
from kubeclient.events import EventRecorder
from kubeclient.resources import DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, SERVICES, Resource
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

RETRY_SECONDS = 5.0
TOGETHER_SECONDS = 0.02  # many pods that end at once cost one look
WATCHED = (PODS, REPLICA_SETS, DEPLOYMENTS, SERVICES)  # what others of this process watch anyway
FINALIZER = "kubernetes"


class NamespaceController(Controller):
    name = "namespace"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._told: dict[str, float] = {}
        self._namespaces = informers.of(NAMESPACES, self.enqueue)
        for resource in WATCHED:
            informers.of(resource, self._on_content)

    def _on_content(self, kind: str, new: Object, old: Object | None) -> None:
        """Perhaps that was the last one."""
        name = new["metadata"]["namespace"]
        namespace = self._namespaces.get(name) if kind == "DELETED" else None
        if namespace is not None and namespace["metadata"].get("deletionTimestamp"):
            self.queue.add_after(f"/{name}", TOGETHER_SECONDS)

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        namespace = self._namespaces.get(name)
        if namespace is None or not namespace["metadata"].get("deletionTimestamp"):
            return
        if FINALIZER not in (namespace["spec"].get("finalizers") or []):
            return
        left = self._delete_contents(name)
        if left:
            log.info("Emptied namespace partly namespace=%s left=%d", name, len(left))
            self._tell(namespace, left)
            self.queue.add_after(key, RETRY_SECONDS)
            return
        self._told.pop(name, None)
        rest = [f for f in namespace["spec"]["finalizers"] if f != FINALIZER]
        body = namespace | {"spec": namespace["spec"] | {"finalizers": rest}}
        try:
            self.client.update(NAMESPACES, body, subresource="finalize")
        except NotFound:
            return
        log.info("Emptied namespace namespace=%s", name)

    def _tell(self, namespace: Object, left: list[Left]) -> None:
        """Say in the status what is left, for whoever wonders why the namespace stays.

        Not for each pod that ends: every write wakes this controller again.
        """
        name, now = namespace["metadata"]["name"], self._clock()
        if now - self._told.get(name, 0.0) < RETRY_SECONDS / 2:
            return
        self._told[name] = now
        present = namespace["status"].get("conditions") or []
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        wanted = conditions(present, left, stamp)
        if wanted == present:
            return
        body = {"status": {"conditions": wanted}}
        with contextlib.suppress(NotFound):
            self.client.patch(NAMESPACES, name, body, kind="merge", subresource="status")

    def _delete_contents(self, namespace: str) -> list[Left]:
        """Ask every object of the namespace to go; returns what is still there."""
        left: list[Left] = []
        for resource in self._deletable_kinds():
            found = self.client.list(resource, namespace)["items"]
            for obj in found:
                if not obj["metadata"].get("deletionTimestamp"):
                    self._delete(resource, obj["metadata"]["name"], namespace)
            if found:
                kind = f"{resource.plural}.{resource.group}"
                for obj in self.client.list(resource, namespace)["items"]:
                    left.append(Left(kind, tuple(obj["metadata"].get("finalizers") or ())))
        return left

    def _delete(self, resource: Resource, name: str, namespace: str) -> None:
        try:
            self.client.delete(resource, name, namespace, propagation_policy="Background")
        except NotFound:
            return

    def _deletable_kinds(self) -> list[Resource]:
        """Every namespaced kind that can be listed and deleted, one version of each group."""
        found: dict[tuple[str, str], Resource] = {}
        for group, version in [("", "v1"), *self._groups()]:
            prefix = f"/apis/{group}/{version}" if group else f"/api/{version}"
            for entry in self._get(prefix)["resources"]:
                verbs = set(entry.get("verbs", []))
                if entry.get("namespaced") and "/" not in entry["name"] and {"list", "delete"} <= verbs:
                    kind = Resource(group, version, entry["name"], entry["kind"], True)
                    found.setdefault((group, entry["name"]), kind)
        found.pop(("events.k8s.io", "events"), None)  # the same objects as core events
        return list(found.values())

    def _groups(self) -> list[tuple[str, str]]:
        pairs = []
        for group in self._get("/apis")["groups"]:
            preferred = group["preferredVersion"]["version"]
            others = [v["version"] for v in group["versions"] if v["version"] != preferred]
            pairs += [(group["name"], version) for version in (preferred, *others)]
        return pairs

    def _get(self, path: str) -> dict[str, Any]:
        status, headers, body = self.client.raw("GET", path, headers={"Accept": "application/json"})
        if status != 200:
            # A kind that is not known of would stay behind in a namespace that is gone.
            raise from_response(status, headers, body)
        return dict(orjson.loads(body))
