"""Deletes pods that nobody else will: of nodes that are gone or out of service, never bound, long finished.

A pod is deleted for good by its node's agent, when its processes have ended. Where the Node object is gone
there is no agent; a pod that ends before it was bound has none either; and of a machine that is off a person
says so with the taint node.kubernetes.io/out-of-service. A Node may be deleted by mistake and registered
anew by its agent, so its pods wait for it for upstream's quarantine, and the API itself is asked at the end.
Source: upstream's pkg/controller/podgc.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of
from controlplane.controllers.disruption_target import FINISHED, announce
from controlplane.controllers.node_taints import OUT_OF_SERVICE, statuses_of
from controlplane.node_deadlines import KEPT_FINISHED
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

LOOK_SECONDS = 20.0
QUARANTINE_SECONDS = 40.0
REASON = "DeletionByPodGC"


def reason_to_go(pod: Object, node: Object | None) -> str:
    """Why the pod can be deleted for good now, or ""; `node`: the one that it is bound to, if that exists."""
    metadata = pod["metadata"]
    ending = bool(metadata.get("deletionTimestamp"))
    if ending and not metadata.get("deletionGracePeriodSeconds"):
        return ""  # it was; a finalizer keeps the object
    if not pod["spec"].get("nodeName"):
        return "PodGC: it was never bound to a node" if ending else ""
    if node is None:
        return "PodGC: node no longer exists"
    return "PodGC: node is out of service" if ending and out_of_service(node) else ""


def out_of_service(node: Object) -> bool:
    """A person said so, and the node does not contradict."""
    tainted = any(taint["key"] == OUT_OF_SERVICE for taint in node["spec"].get("taints") or [])
    return tainted and statuses_of(node).get("Ready") != "True"


def too_many(pods: Sequence[Object], most: int) -> list[Object]:
    """Finished pods over the number that is kept: the evicted first, then the oldest."""
    finished = [pod for pod in pods if (pod.get("status") or {}).get("phase") in FINISHED]

    def order(pod: Object) -> tuple[bool, str, str]:
        evicted = (pod.get("status") or {}).get("reason") == "Evicted"
        return not evicted, pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]

    return sorted(finished, key=order)[: max(0, len(finished) - most)] if most > 0 else []


class MissingNodes:
    """Since when nodes are missed that pods are bound to."""

    def __init__(self, clock: Callable[[], float], seconds: float = QUARANTINE_SECONDS) -> None:
        self._clock = clock
        self._seconds = seconds
        self._since: dict[str, float] = {}

    def look(self, names: Iterable[str]) -> None:
        """These are missing now; what is not among them is there, or nobody needs it."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in names}

    def overdue(self) -> list[str]:
        """Missed long enough to be given up."""
        now = self._clock()
        return [name for name, since in self._since.items() if now - since >= self._seconds]

    def wait(self) -> float:
        """Seconds until the next one is given up; infinite while none waits."""
        now = self._clock()
        left = [self._seconds - (now - since) for since in self._since.values()]
        return min((seconds for seconds in left if seconds > 0), default=math.inf)


class PodGc(Controller):
    """One key for the whole: every pass looks at all pods."""

    name = "pod-garbage-collector"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        kept_finished: int = KEPT_FINISHED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._kept_finished = kept_finished
        self._missing = MissingNodes(clock)
        self._nodes = informers.of(NODES, self._on_node)
        self._pods = informers.of(PODS, self._on_pod)

    def start(self) -> None:
        self.queue.add("/")
        super().start()

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED" or out_of_service(new):
            self.queue.add("/")

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        if kind != "DELETED" and reason_to_go(new, self._node_of(new)):
            self.queue.add("/")

    def sync(self, key: str) -> None:
        pods = self._pods.list()
        bound = {pod["spec"].get("nodeName") for pod in pods} - {None, ""}
        self._missing.look(name for name in sorted(bound) if self._nodes.get(name) is None)
        gone = {name for name in self._missing.overdue() if not self._exists(name)}
        for pod in pods:
            name, node = pod["spec"].get("nodeName"), self._node_of(pod)
            why = reason_to_go(pod, node)
            if why and (node is not None or not name or name in gone):
                self._delete(pod, why)
        for pod in too_many(pods, self._kept_finished):
            self._delete(pod, "")
        self.queue.add_after(key, min(LOOK_SECONDS, self._missing.wait()))

    def _node_of(self, pod: Object) -> Object | None:
        bound = pod["spec"].get("nodeName")
        return self._nodes.get(bound) if bound else None

    def _exists(self, name: str) -> bool:
        """As the API says: our copy may be behind."""
        try:
            self.client.get(NODES, name)
        except NotFound:
            return False
        return True

    def _delete(self, pod: Object, why: str) -> None:
        metadata = pod["metadata"]
        log.info("Deleted pod for good pod=%s reason=%s", key_of(pod), why or "finished long ago")
        try:
            if why and pod["spec"].get("nodeName"):
                announce(self.client, pod, REASON, why, failed=True)
            self.client.delete(
                PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_period_seconds=0
            )
        except (NotFound, Conflict):
            return
