"""Keeps as many pods alive as a ReplicaSet asks for.

Pods are made one after the other, and none after one that the API refuses. Source: upstream's replicaset
controller.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

from controlplane.controllers.base import (
    Object,
    SharedInformers,
    controller_of,
    key_of,
    split_key,
)
from controlplane.controllers.pod_keeper import PodKeeper
from controlplane.controllers.pod_ownership import claim, pod_from_template, selector_of
from controlplane.controllers.pod_readiness import available_in, is_active, is_ready
from controlplane.controllers.stamps import seconds
from kubeclient.errors import ApiError, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import PODS, REPLICA_SETS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

BURST = 500


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


class ReplicaSets(PodKeeper):
    name = "replicaset"
    kind = "ReplicaSet"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
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
        self._seen(kind, new)

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
            count = min(difference, BURST)
            self._expectations.expect(key, creations=count)
            body = pod_from_template(replica_set["spec"]["template"], replica_set, REPLICA_SETS)
            return self._create(replica_set, key, [body] * count)[1]
        if difference < 0:
            now = time.time()
            doomed = sorted(active, key=lambda pod: deletion_order(pod, now))[: min(-difference, BURST)]
            self._expectations.expect(key, deletions=[pod["metadata"]["uid"] for pod in doomed])
            for pod in doomed:
                self._delete(replica_set, key, pod)
        return None

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
