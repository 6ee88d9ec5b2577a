"""Takes pods away from nodes with NoExecute taints, when the time that they tolerate them is over.

The time counts from the taint's `timeAdded`, so a control plane that was away goes on where it was. What is
deleted here stays Terminating while its node is silent: whether its processes ended only the node can say.
Source: upstream's pkg/controller/tainteviction.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from controlplane.controllers.disruption_target import announce
from controlplane.controllers.node_taints import eviction_delay, no_execute
from controlplane.controllers.stamps import seconds
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

REASON, WHY = "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"


def bound_since(pod: Object) -> float:
    """When the pod came to its node (epoch seconds): a toleration of an older taint counts from then."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("lastTransitionTime"):
            return seconds(condition["lastTransitionTime"])
    return seconds(pod["metadata"]["creationTimestamp"])


class TaintEviction(Controller):
    name = "taint-eviction"

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
        self._untimed: dict[str, dict[tuple[str, str], float]] = {}  # node → NoExecute taint → first seen
        self._waiting: dict[str, set[str]] = {}  # node → uids of pods whose time runs
        self._nodes = informers.of(NODES, self._on_node)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        if no_execute(new) or (old is not None and no_execute(old)):
            self.enqueue(kind, new)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        """A pod came to a node, or tolerates more than before: may it stay?"""
        bound = new["spec"].get("nodeName")
        if not bound or kind == "DELETED":
            return
        if old is not None and all(
            old["spec"].get(field) == new["spec"].get(field) for field in ("nodeName", "tolerations")
        ):
            return
        node = self._nodes.get(bound)
        if node is not None and no_execute(node):
            self.queue.add(f"/{bound}")

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        node = self._nodes.get(name)
        taints = no_execute(node) if node is not None else []
        now = self._clock()
        since = self._tainted_since(name, taints, now)
        pods = [p for p in self._pods.list() if p["spec"].get("nodeName") == name]
        waits = {}
        for pod in pods:
            delay = eviction_delay(pod, taints) if taints else None
            if delay is None or pod["metadata"].get("deletionTimestamp"):
                continue
            wait = max(since, bound_since(pod)) + delay - now if delay else 0.0
            if wait > 0:
                waits[pod["metadata"]["uid"]] = wait
            else:
                self._evict(pod, name)
        self._tell_spared(name, pods, set(waits))
        if waits:
            self.queue.add_after(key, min(waits.values()))

    def _tainted_since(self, name: str, taints: Sequence[Object], now: float) -> float:
        """When the first of the taints came: as it says, or (`kubectl taint` writes no time) as we saw it."""
        untimed = {(t["key"], t.get("value", "")) for t in taints if not t.get("timeAdded")}
        before = self._untimed.pop(name, {})
        if untimed:
            self._untimed[name] = {taint: before.get(taint, now) for taint in untimed}
        timed = [seconds(t["timeAdded"]) for t in taints if t.get("timeAdded")]
        return min([*timed, *self._untimed.get(name, {}).values()], default=math.inf)

    def _tell_spared(self, name: str, pods: Sequence[Object], waiting: set[str]) -> None:
        before = self._waiting.pop(name, set())
        if waiting:
            self._waiting[name] = waiting
        for pod in pods:
            uid, ending = pod["metadata"]["uid"], pod["metadata"].get("deletionTimestamp")
            if uid in before - waiting and not ending:
                text = f"Cancelling deletion of Pod {key_of(pod)}"
                self.recorder.event(pod, "Normal", "TaintManagerEviction", text)

    def _evict(self, pod: Object, node: str) -> None:
        metadata = pod["metadata"]
        self._waiting.get(node, set()).discard(metadata["uid"])
        log.info("Evicted pod by taint pod=%s node=%s", key_of(pod), node)
        self.recorder.event(pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {key_of(pod)}")
        try:
            announce(self.client, pod, REASON, WHY)
            self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            return
