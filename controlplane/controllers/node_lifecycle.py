"""Notices nodes that fell silent, and taints nodes by their conditions.

A node speaks through its Lease (every 10 s) and its status. After 40 s of silence its conditions become
Unknown, its pods count as not Ready and leave their Services, and it gets the `unreachable` taints: the
scheduler keeps away from it, and taint_eviction.py takes the pods away in time. A node under pressure,
without network or cordoned gets a NoSchedule taint that says so. Silence is counted by our own clock and from
our own start: nodes' clocks may differ, and after an outage of the control plane every node has its 40 s.
Source: upstream's node_lifecycle_controller.go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from controlplane.controllers.node_taints import change_taints, sends_away, statuses_of
from controlplane.controllers.node_zones import Evictions, by_zone, zone_of
from controlplane.controllers.pod_readiness import is_ready
from controlplane.node_deadlines import Deadlines
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import LEASES, NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("controllers")

CONDITIONS = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
LEASE_NAMESPACE = "kube-node-lease"
STOPPED = ("NodeStatusUnknown", "Kubelet stopped posting node status.")
NEVER = ("NodeStatusNeverUpdated", "Kubelet never posted node status.")


def unknown_conditions(present: Sequence[Object], now: str) -> list[Object]:
    """What is said of a silent node: of each condition that it reported, and of those that it should have."""
    known = {c["type"]: c for c in present}
    found = []
    for kind in CONDITIONS:
        if known.get(kind, {}).get("status") == "Unknown":
            continue
        reason, message = STOPPED if kind in known else NEVER
        told = {"status": "Unknown", "reason": reason, "message": message}
        found.append({"type": kind, **told, "lastTransitionTime": now})
    return found


def heartbeat(obj: Object | None) -> str:
    """The time that a Node (in its Ready condition) or its Lease tells as that of its last sign of life."""
    found = obj or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    beats = [str(c.get("lastHeartbeatTime", "")) for c in conditions if c["type"] == "Ready"]
    return beats[0] if beats else str((found.get("spec") or {}).get("renewTime", ""))


class NodeLifecycle(Controller):
    name = "node-lifecycle"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.monotonic,
        deadlines: Deadlines | None = None,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._heard: dict[str, float] = {}  # node → our clock at its last sign of life
        self._evictions = Evictions(self._deadlines.rates, self._deadlines.grace, clock)
        self._nodes = informers.of(NODES, self._on_node)
        self._pods = informers.of(PODS)
        informers.of(LEASES, self._on_lease)

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        self._hear(kind, new, old)
        self.enqueue(kind, new)

    def _on_lease(self, kind: str, new: Object, old: Object | None) -> None:
        if new["metadata"]["namespace"] == LEASE_NAMESPACE:
            self._hear(kind, new, old)

    def _hear(self, kind: str, new: Object, old: Object | None) -> None:
        """The moment itself, not that of the next look: the 40 s count from here."""
        if kind != "DELETED" and (old is None or heartbeat(new) != heartbeat(old)):
            self._heard[new["metadata"]["name"]] = self._clock()

    def sync(self, key: str) -> None:
        _, name = split_key(key)
        node = self._nodes.get(name)
        if node is None:
            self._heard.pop(name, None)
            return
        statuses = statuses_of(node)
        now = self._clock()
        silence = now - self._heard.setdefault(name, now)
        grace = self._deadlines.grace if "Ready" in statuses else self._deadlines.startup
        if silence > grace:
            if statuses.get("Ready") != "Unknown":
                node = self._mark_unknown(node, silence)
                statuses = statuses_of(node)
            self._mark_pods_not_ready(name)
        retry = self._taint(node, statuses)
        left = grace - silence + 0.01 if silence <= grace else self._deadlines.period
        self.queue.add_after(key, min(self._deadlines.period, left, retry))

    def _mark_unknown(self, node: Object, silence: float) -> Object:
        name = node["metadata"]["name"]
        conditions = unknown_conditions((node.get("status") or {}).get("conditions") or [], _now())
        marked = self.client.patch(NODES, name, {"status": {"conditions": conditions}}, subresource="status")
        log.warning("Heard nothing from node node=%s seconds=%.0f", name, silence)
        self.recorder.event(node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady")
        return marked

    def _mark_pods_not_ready(self, name: str) -> None:
        """A silent node's pods leave their Services: nobody vouches for them any more."""
        for pod in self._pods.list():
            if pod["spec"].get("nodeName") != name or not is_ready(pod):
                continue
            metadata = pod["metadata"]
            condition = {"type": "Ready", "status": "False", "lastTransitionTime": _now()}
            body = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
            try:
                self.client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")
            except (NotFound, Conflict):
                continue
            self.recorder.event(pod, "Warning", "NodeNotReady", "Node is not ready")

    def _taint(self, node: Object, statuses: Mapping[str, str]) -> float:
        """Correct the node's taints; seconds after which to look again at the latest."""
        name, zone = node["metadata"]["name"], zone_of(node)
        zones = by_zone((n, self._is_ready(n, name, statuses)) for n in self._nodes.list())
        evict, wait = self._evictions.look(zones), 0.0
        fresh = statuses.get("Ready", "False") != "True" and not sends_away(node)
        if evict and fresh:
            wait = self._evictions.wait(zone, zones[zone])
            evict = wait == 0.0
        taints = change_taints(
            node["spec"].get("taints") or [],
            {"Ready": "False", **statuses},  # one that has not reported yet is not ready
            _now(),
            unschedulable=bool(node["spec"].get("unschedulable")),
            evict=evict,
        )
        if taints is not None:
            metadata = {"resourceVersion": node["metadata"]["resourceVersion"]}
            body = {"metadata": metadata, "spec": {"taints": taints or None}}
            self.client.patch(NODES, name, body, kind="merge")
            if evict and fresh:
                self._evictions.took(zone)
        return wait or self._deadlines.period

    @staticmethod
    def _is_ready(node: Object, name: str, statuses: Mapping[str, str]) -> bool:
        own = node["metadata"]["name"] == name
        return (statuses if own else statuses_of(node)).get("Ready") == "True"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
