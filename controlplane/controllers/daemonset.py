"""Carries out what daemon_pods.py decides: one pod on every node that a DaemonSet means.

What was just created or deleted is remembered until the watch shows it, so that a copy that lags behind does
not give a node two pods. A pod that ended is deleted and made anew, after a time that doubles with each end.
Source: upstream's pkg/controller/daemon.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from controlplane.controllers import daemon_pods
from controlplane.controllers.base import (
    Object,
    SharedInformers,
    controller_of,
    key_of,
    split_key,
)
from controlplane.controllers.daemon_backoff import DaemonBackOff
from controlplane.controllers.daemon_pods import HASH
from controlplane.controllers.pod_keeper import PodKeeper
from controlplane.controllers.pod_ownership import claim, selector_of
from controlplane.controllers.pod_readiness import available_in
from controlplane.controllers.revisions import Revisions
from kubeclient.errors import ApiError, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS
from kubeclient.rest import RestClient


class DaemonSets(PodKeeper):
    name, kind = "daemonset", "DaemonSet"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._backoff = DaemonBackOff()
        self._sets = informers.of(DAEMON_SETS, self._on_set)
        self._pods = informers.of(PODS, self._on_pod)
        self._nodes = informers.of(NODES, self._on_node)
        self._history = Revisions(client, informers.of(CONTROLLER_REVISIONS), DAEMON_SETS, HASH)

    def _on_set(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._expectations.forget(key_of(new))
            self._backoff.forget_set(new["metadata"]["uid"])
        self.enqueue(kind, new)

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        """Heartbeats change nothing here; labels, taints, and the node's coming and going do."""
        if kind == "MODIFIED" and old is not None and _what_counts(new) == _what_counts(old):
            return
        if kind == "DELETED":
            self._backoff.forget_node(new["metadata"]["name"])
        for daemon_set in self._sets.list():
            self.enqueue(kind, daemon_set)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        reference = controller_of(new)
        if reference is None and kind != "DELETED":
            for candidate in self._sets.list():
                same = candidate["metadata"]["namespace"] == new["metadata"]["namespace"]
                if same and selector_of(candidate).matches(new["metadata"].get("labels") or {}):
                    self.enqueue(kind, candidate)
        self._seen(kind, new)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        found = self._sets.get(name, namespace)
        if found is None or found["metadata"].get("deletionTimestamp"):
            return
        if not found["spec"]["selector"].get("matchLabels") and not found["spec"]["selector"].get(
            "matchExpressions"
        ):
            text = "This daemon set is selecting all pods. A non-empty selector is required."
            self.recorder.event(found, "Warning", "SelectingAll", text)
            return
        revisions = self._history.owned(found)
        newest = self._history.ensure(found, revisions)
        revision = str(newest["metadata"]["labels"][HASH])
        nodes = {node["metadata"]["name"]: node for node in self._nodes.list()}
        pods = claim(self.client, found, DAEMON_SETS, self._pods.list())
        now = self._clock()
        problem = None
        if self._expectations.fulfilled(key):
            problem = self._act(found, key, nodes, pods, revision, now)
        self._write_status(found, daemon_pods.status(found, nodes, pods, revision, now))
        if problem is not None:
            raise problem  # now that the status says what there is
        live = {newest["metadata"]["name"]}
        live |= {f"{name}-{daemon_pods.revision_of(pod)}" for pod in pods}
        self._history.truncate(found, revisions, live)
        quiet = int(found["spec"].get("minReadySeconds", 0))
        if waits := [wait for pod in pods if (wait := available_in(pod, quiet, now))]:
            self.queue.add_after(key, min(waits))

    def _act(
        self,
        found: Object,
        key: str,
        nodes: dict[str, Object],
        pods: list[Object],
        revision: str,
        now: float,
    ) -> ApiError | None:
        """Make and delete what is due; what the API refused to make."""
        todo = daemon_pods.plan(found, nodes, pods, revision, now)
        ended = [pod for pod in todo.ended if self._may_go(found, key, pod, now)]
        if not todo.create and not todo.delete and not ended:
            todo = daemon_pods.update(found, nodes, pods, revision, now)
        doomed = [*todo.delete, *ended]
        uids = [pod["metadata"]["uid"] for pod in doomed]
        self._expectations.expect(key, creations=len(todo.create), deletions=uids)
        for pod in doomed:
            self._delete(found, key, pod)
        bodies = [daemon_pods.make_pod(found, node, revision) for node in todo.create]
        return self._create(found, key, bodies)[1]

    # pods

    def _may_go(self, found: Object, key: str, pod: Object, now: float) -> bool:
        """Whether a pod that ended is deleted now; an event says so. Each end doubles the next one's wait."""
        uid, node = found["metadata"]["uid"], daemon_pods.place_of(pod)
        if (left := self._backoff.left(uid, node, now)) > 0:
            self.queue.add_after(key, left)
            return False
        self._backoff.ended(uid, node, now)
        phase = pod["status"]["phase"]
        kind, end = ("Warning", "kill") if phase == "Failed" else ("Normal", "delete")
        text = f"Found {phase.lower()} daemon pod {key_of(pod)} on node {node}, will try to {end} it"
        self.recorder.event(found, kind, f"{phase}DaemonPod", text)
        return True

    def _write_status(self, found: Object, status: Object) -> None:
        old = found.get("status") or {}
        if old == status:
            return
        try:
            self.client.update(DAEMON_SETS, found | {"status": status}, subresource="status")
        except NotFound:
            return


def _what_counts(node: Object) -> tuple[object, object]:
    return node["metadata"].get("labels"), node["spec"].get("taints")
