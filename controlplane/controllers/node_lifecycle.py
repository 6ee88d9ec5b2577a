"""Notices nodes that fell silent, taints nodes by their conditions, and takes pods away in time.

A node speaks through its Lease (every 10 s). After 40 s of silence its conditions become Unknown and it gets
the `unreachable` taints; pods leave when their tolerationSeconds are over (five minutes unless they say
otherwise). A node under pressure, without network or cordoned gets a NoSchedule taint that says so. Pods
bound to a Node object that no longer exists are deleted at once, since no agent will ever do it.
Source: upstream's node-lifecycle, taint-eviction and pod-garbage-collector controllers.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from controlplane.controllers.base import Controller, Object, SharedInformers, key_of, split_key
from controlplane.controllers.replicaset import seconds
from controlplane.scheduler.filters import UNSCHEDULABLE_TAINT, tolerated
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import LEASES, NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

GRACE_SECONDS = 40.0
CHECK_SECONDS = 5.0
CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
NOT_READY, UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
TAINTS = {"False": NOT_READY, "Unknown": UNREACHABLE}
# Condition, status, and the NoSchedule taint that follows (upstream: nodeConditionToTaintKeyStatusMap).
NO_SCHEDULE = (
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
)
OURS = frozenset(
    [(key, "NoSchedule") for _, _, key in NO_SCHEDULE]
    + [(key, "NoExecute") for key in TAINTS.values()]
    + [(UNSCHEDULABLE_TAINT, "NoSchedule")]
)


def wanted_taints(statuses: Mapping[str, str], unschedulable: bool) -> list[Object]:
    """The taints a node carries for its conditions (type → status) and its cordon, in upstream's order."""
    keys = [key for kind, status, key in NO_SCHEDULE if statuses.get(kind) == status]
    taints = [{"key": key, "effect": "NoSchedule"} for key in keys]
    if unschedulable:
        taints.append({"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"})
    silent = TAINTS.get(statuses.get("Ready", "False"))
    return [*taints, {"key": silent, "effect": "NoExecute"}] if silent else taints


def change_taints(
    present: Sequence[Object], statuses: Mapping[str, str], now: str, *, unschedulable: bool = False
) -> list[Object] | None:
    """The node's taints with ours corrected, or None where they are right already."""
    wanted = wanted_taints(statuses, unschedulable)
    have = {(t["key"], t["effect"]): t for t in present if (t["key"], t["effect"]) in OURS}
    if set(have) == {(t["key"], t["effect"]) for t in wanted}:
        return None
    stamped = [have.get((t["key"], t["effect"]), {**t, "timeAdded": now}) for t in wanted]
    return [t for t in present if (t["key"], t["effect"]) not in OURS] + stamped


def eviction_delay(pod: Object, taints: Sequence[Object]) -> float | None:
    """Seconds from the taint's start to the pod's end: 0 without a toleration, None for ever."""
    delays: list[float] = []
    for taint in taints:
        if taint["effect"] != "NoExecute":
            continue
        matching = [t for t in pod["spec"].get("tolerations") or [] if tolerated(taint, [t])]
        if not matching:
            return 0.0
        limits = [float(t["tolerationSeconds"]) for t in matching if t.get("tolerationSeconds") is not None]
        if limits:
            delays.append(max(0.0, min(limits)))
    return min(delays) if delays else None


def bound_since(pod: Object) -> float:
    """When the pod came to its node (epoch seconds): a toleration of an older taint counts from then."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition.get("lastTransitionTime"):
            return seconds(condition["lastTransitionTime"])
    return seconds(pod["metadata"]["creationTimestamp"])


class NodeLifecycle(Controller):
    name = "node-lifecycle"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.monotonic,
        grace: float = GRACE_SECONDS,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._grace = grace
        self._heard: dict[str, tuple[str, float]] = {}  # node → last renewal as written, our clock then
        self._untimed: dict[str, dict[tuple[str, str], float]] = {}  # node → NoExecute taint → first seen
        self._nodes = informers.of(NODES, self.enqueue)
        self._leases = informers.of(LEASES)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        """A pod came to a node: is the node there, and may the pod stay?"""
        bound = new["spec"].get("nodeName")
        if not bound or kind == "DELETED" or (old is not None and old["spec"].get("nodeName") == bound):
            return
        node = self._nodes.get(bound)
        if node is None or _no_execute(node):
            self.queue.add(f"/{bound}")

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        node = self._nodes.get(name)
        if node is None:
            self._heard.pop(name, None)
            self._untimed.pop(name, None)
            self._remove_orphans(name)
            return
        ready = self._ready(node)
        if self._silence(name) > self._grace and ready != "Unknown":
            ready = self._mark_unknown(node)
        self._taint(node, {**_statuses(node), "Ready": ready})
        next_eviction = self._evict(node)
        self.queue.add_after(key, min(CHECK_SECONDS, next_eviction))

    @staticmethod
    def _ready(node: Object) -> str:
        # A node that has not reported yet is not ready; only silence makes it unknown.
        return _statuses(node).get("Ready", "False")

    def _silence(self, name: str) -> float:
        """Seconds since the Lease last changed, by our own clock: nodes' clocks may differ."""
        lease = self._leases.get(name, "kube-node-lease")
        renewed = str((lease or {}).get("spec", {}).get("renewTime", ""))
        last = self._heard.get(name)
        if last is None or last[0] != renewed:
            self._heard[name] = (renewed, self._clock())
            return 0.0
        return self._clock() - last[1]

    def _mark_unknown(self, node: Object) -> str:
        name, now = node["metadata"]["name"], _now()
        conditions = [
            {
                "type": kind,
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastTransitionTime": now,
            }
            for kind in CONDITIONS
        ]
        self.client.patch(NODES, name, {"status": {"conditions": conditions}}, subresource="status")
        log.warning("Heard nothing from node node=%s seconds=%d", name, self._grace)
        self.recorder.event(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        for pod in self._pods_on(name):
            self._mark_not_ready(pod, now)
        return "Unknown"

    def _mark_not_ready(self, pod: Object, now: str) -> None:
        """A silent node's pods leave their Services: nobody vouches for them any more."""
        metadata = pod["metadata"]
        condition = {"type": "Ready", "status": "False", "lastTransitionTime": now}
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
        try:
            self.client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")
        except (NotFound, Conflict):
            return

    def _taint(self, node: Object, statuses: Mapping[str, str]) -> None:
        cordoned = bool(node["spec"].get("unschedulable"))
        present = node["spec"].get("taints") or []
        taints = change_taints(present, statuses, _now(), unschedulable=cordoned)
        if taints is None:
            return
        metadata = node["metadata"]
        body = {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "spec": {"taints": taints or None},
        }
        self.client.patch(NODES, metadata["name"], body, kind="merge")

    def _evict(self, node: Object) -> float:
        """Take away the pods whose time on the tainted node is over; returns seconds until the next one's."""
        name, taints, now = node["metadata"]["name"], _no_execute(node), time.time()
        since = self._tainted_since(name, taints, now)
        waits = [math.inf]
        for pod in self._pods_on(name) if taints else []:
            delay = eviction_delay(pod, taints)
            if delay is None or pod["metadata"].get("deletionTimestamp"):
                continue
            wait = max(since, bound_since(pod)) + delay - now if delay else 0.0
            if wait > 0:
                waits.append(wait)
                continue
            log.info("Evicted pod by taint pod=%s node=%s", key_of(pod), name)
            self.recorder.event(
                pod, "Normal", "TaintManagerEviction", f"Marking for deletion Pod {key_of(pod)}"
            )
            self._delete(pod, None)
        return min(waits)

    def _tainted_since(self, name: str, taints: Sequence[Object], now: float) -> float:
        """When the first of the taints came: as it says, or (`kubectl taint` writes no time) as we saw it."""
        untimed = {(t["key"], t.get("value", "")) for t in taints if not t.get("timeAdded")}
        before = self._untimed.get(name, {})
        self._untimed[name] = {taint: before.get(taint, now) for taint in untimed}
        timed = [seconds(t["timeAdded"]) for t in taints if t.get("timeAdded")]
        return min([*timed, *self._untimed[name].values()], default=now)

    def _remove_orphans(self, name: str) -> None:
        """Delete pods bound to a node that does not exist, after asking the API itself."""
        pods = self._pods_on(name)
        if not pods:
            return
        try:
            self.client.get(NODES, name)
        except NotFound:
            for pod in pods:
                log.info("Deleted pod of a node that is gone pod=%s node=%s", key_of(pod), name)
                self._delete(pod, 0)

    def _delete(self, pod: Object, grace: int | None) -> None:
        metadata = pod["metadata"]
        try:
            self.client.delete(
                PODS,
                metadata["name"],
                metadata["namespace"],
                uid=metadata["uid"],
                grace_period_seconds=grace,
            )
        except (NotFound, Conflict):
            return

    def _pods_on(self, name: str) -> list[Object]:
        return [pod for pod in self._pods.list() if pod["spec"].get("nodeName") == name]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _statuses(node: Object) -> dict[str, str]:
    """The node's conditions: type → status."""
    return {c["type"]: str(c["status"]) for c in (node.get("status") or {}).get("conditions") or []}


def _no_execute(node: Object) -> list[Object]:
    return [t for t in node["spec"].get("taints") or [] if t["effect"] == "NoExecute"]
