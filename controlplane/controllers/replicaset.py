"""Keeps as many pods alive as a ReplicaSet asks for.

What it has just created or deleted is remembered until the informer shows it (`Expectations`): acting on a
cache that lags behind would create a pod twice. Creation is slow-started (1, 2, 4 …), so that a pod that the
API refuses costs one request, not hundreds. Source: upstream's replicaset controller and controller_utils.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from controlplane.controllers.base import (
    Controller,
    Object,
    SharedInformers,
    controller_of,
    key_of,
    split_key,
)
from controlplane.controllers.pod_ownership import claim, owner_reference, selector_of
from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import PODS, REPLICA_SETS, Resource
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

EXPECTATION_SECONDS = 300.0
BURST = 500


class Expectations:
    """Creations and deletions on their way, by key; forgotten after five minutes at the latest."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._creating: dict[str, int] = {}
        self._deleting: dict[str, set[str]] = {}
        self._since: dict[str, float] = {}

    def expect(self, key: str, *, creations: int = 0, deletions: Sequence[str] = ()) -> None:
        with self._lock:
            self._creating[key] = creations
            self._deleting[key] = set(deletions)
            self._since[key] = self._clock()

    def created(self, key: str, count: int = 1) -> None:
        with self._lock:
            self._creating[key] = max(0, self._creating.get(key, 0) - count)

    def deleted(self, key: str, uid: str) -> None:
        with self._lock:
            self._deleting.get(key, set()).discard(uid)

    def fulfilled(self, key: str) -> bool:
        with self._lock:
            if not self._creating.get(key) and not self._deleting.get(key):
                return True
            return self._clock() - self._since.get(key, 0.0) > EXPECTATION_SECONDS

    def forget(self, key: str) -> None:
        with self._lock:
            for table in (self._creating, self._deleting, self._since):
                table.pop(key, None)


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_active(pod: Object) -> bool:
    """Neither finished nor on its way out."""
    phase = (pod.get("status") or {}).get("phase")
    return phase not in ("Succeeded", "Failed") and not pod["metadata"].get("deletionTimestamp")


def available_in(pod: Object, min_ready_seconds: int, now: float) -> float | None:
    """Seconds until the pod counts as available (0: it does), or None while it is not Ready."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            since = condition.get("lastTransitionTime")
            if not min_ready_seconds or not since:
                return 0.0
            return max(0.0, min_ready_seconds - (now - seconds(since)))
    return None


def seconds(stamp: str) -> float:
    """RFC 3339 text as seconds since the epoch."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def deletion_order(pod: Object, now: float) -> tuple[Any, ...]:
    """Sort key: who goes first when there are too many (upstream's ActivePodsWithRanks)."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    phases = {"Pending": 0, "Unknown": 1, "Running": 2}
    cost = int(
        (metadata.get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", "0") or 0
    )
    restarts = max((int(c.get("restartCount", 0)) for c in status.get("containerStatuses") or []), default=0)
    ready_since = 0.0
    for condition in status.get("conditions") or []:
        if (
            condition["type"] == "Ready"
            and condition["status"] == "True"
            and condition.get("lastTransitionTime")
        ):
            ready_since = now - seconds(condition["lastTransitionTime"])
    age = now - seconds(metadata["creationTimestamp"]) if metadata.get("creationTimestamp") else 0.0
    return (
        bool(pod["spec"].get("nodeName")),
        phases.get(status.get("phase", "Pending"), 0),
        is_ready(pod),
        cost,
        ready_since,
        -restarts,
        age,
    )


def pod_from_template(template: Object, owner: Object, resource: Resource) -> Object:
    """A pod of the template, named after and controlled by its owner."""
    metadata = template.get("metadata") or {}
    kept = {
        key: copy.deepcopy(metadata[key])
        for key in ("labels", "annotations", "finalizers")
        if metadata.get(key)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{owner['metadata']['name']}-",
            "ownerReferences": [owner_reference(owner, resource)],
            **kept,
        },
        "spec": copy.deepcopy(template["spec"]),
    }


class ReplicaSets(Controller):
    name = "replicaset"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._expectations = Expectations()
        self._sets = informers.of(REPLICA_SETS, self._on_set)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_set(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._expectations.forget(key_of(new))
        self.enqueue(kind, new)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        reference = controller_of(new)
        if reference is None:
            if kind != "DELETED":
                self._enqueue_matching(new)
            return
        if reference["kind"] != "ReplicaSet":
            return
        key = f"{new['metadata']['namespace']}/{reference['name']}"
        if kind == "ADDED":
            self._expectations.created(key)
        if kind == "DELETED" or new["metadata"].get("deletionTimestamp"):
            self._expectations.deleted(key, new["metadata"]["uid"])
        self.queue.add(key)

    def _enqueue_matching(self, pod: Object) -> None:
        """An orphan may be adopted by a set whose selector matches it."""
        for candidate in self._sets.list():
            same = candidate["metadata"]["namespace"] == pod["metadata"]["namespace"]
            if same and selector_of(candidate).matches(pod["metadata"].get("labels") or {}):
                self.queue.add(key_of(candidate))

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        replica_set = self._sets.get(name, namespace)
        if replica_set is None:
            return
        pods = claim(self.client, replica_set, REPLICA_SETS, self._pods.list())
        active = [pod for pod in pods if is_active(pod)]
        failure: ApiError | None = None
        if self._expectations.fulfilled(key) and not replica_set["metadata"].get("deletionTimestamp"):
            failure = self._manage(replica_set, key, active)
        self._update_status(replica_set, key, active, f"Error creating: {failure}" if failure else None)
        if failure is not None:
            raise failure  # to be tried again, later each time

    def _manage(self, replica_set: Object, key: str, active: list[Object]) -> ApiError | None:
        """Create or delete the difference; the refusal of a creation, if any."""
        difference = int(replica_set["spec"].get("replicas", 1)) - len(active)
        if difference > 0:
            return self._create(replica_set, key, min(difference, BURST))
        if difference < 0:
            now = time.time()
            doomed = sorted(active, key=lambda pod: deletion_order(pod, now))[: min(-difference, BURST)]
            self._expectations.expect(key, deletions=[pod["metadata"]["uid"] for pod in doomed])
            for pod in doomed:
                self._delete(replica_set, key, pod)
        return None

    def _create(self, replica_set: Object, key: str, count: int) -> ApiError | None:
        self._expectations.expect(key, creations=count)
        body = pod_from_template(replica_set["spec"]["template"], replica_set, REPLICA_SETS)
        made, batch = 0, 1
        while made < count:
            for _ in range(min(batch, count - made)):
                try:
                    pod = self.client.create(PODS, body, replica_set["metadata"]["namespace"])
                except ApiError as error:
                    # What was not asked for any more will never be seen.
                    self._expectations.created(key, count - made)
                    if any(cause.get("reason") == "NamespaceTerminating" for cause in error.causes):
                        return None  # the whole namespace goes, this set with it
                    self.recorder.event(replica_set, "Warning", "FailedCreate", f"Error creating: {error}")
                    return error
                made += 1
                name = pod["metadata"]["name"]
                self.recorder.event(replica_set, "Normal", "SuccessfulCreate", f"Created pod: {name}")
            batch *= 2
        return None

    def _delete(self, replica_set: Object, key: str, pod: Object) -> None:
        metadata = pod["metadata"]
        try:
            self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            self._expectations.deleted(key, metadata["uid"])
            return
        except ApiError as error:
            self._expectations.deleted(key, metadata["uid"])
            self.recorder.event(replica_set, "Warning", "FailedDelete", f"Error deleting: {error}")
            raise
        self.recorder.event(replica_set, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    def _update_status(
        self, replica_set: Object, key: str, active: list[Object], failure: str | None
    ) -> None:
        spec, old = replica_set["spec"], replica_set.get("status") or {}
        now = time.time()
        waits = [available_in(pod, int(spec.get("minReadySeconds", 0)), now) for pod in active]
        labels = ((spec["template"].get("metadata") or {}).get("labels") or {}).items()
        new: Object = {
            "replicas": len(active),
            "fullyLabeledReplicas": sum(
                1 for pod in active if labels <= (pod["metadata"].get("labels") or {}).items()
            ),
            "readyReplicas": sum(1 for wait in waits if wait is not None),
            "availableReplicas": sum(1 for wait in waits if wait == 0.0),
            "observedGeneration": replica_set["metadata"].get("generation", 0),
        }
        if failure:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
            # One that is there stays, whatever it says: the message names the pod that was refused, which has
            # another name each time, and to write it down would wake this controller, which would try again.
            same = (c for c in old.get("conditions") or [] if condition.items() <= c.items())
            previous = next(same, None)
            new["conditions"] = [previous or condition | {"message": failure, "lastTransitionTime": stamp}]
        pending = [wait for wait in waits if wait]
        if pending:
            self.queue.add_after(key, min(pending))
        if all(old.get(name, 0) == value for name, value in new.items()) and bool(failure) == bool(
            old.get("conditions")
        ):
            return
        body = replica_set | {"status": {name: value for name, value in new.items() if value}}
        body["status"]["replicas"] = new["replicas"]
        try:
            self.client.update(REPLICA_SETS, body, subresource="status")
        except NotFound:
            return
