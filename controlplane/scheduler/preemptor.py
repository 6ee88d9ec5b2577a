"""Ends the pods that preemption.py chooses, and promises their room to the pod they go for.

The pod waits until they are gone: its status names the node meanwhile (nominatedNodeName), and pods of lower
priority do not get that room. Source: upstream's framework/preemption.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from controlplane.controllers.disruption_target import announce
from controlplane.scheduler import filters, preemption
from controlplane.scheduler.filters import Requests
from controlplane.scheduler.pod_affinity import Placed
from controlplane.scheduler.snapshot import Snapshot, Verdict, obstacles
from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import POD_DISRUPTION_BUDGETS, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("scheduler")

Object = dict[str, Any]
REASON, WHY = "PreemptionByScheduler", "default-scheduler: preempting to accommodate a higher priority pod"


class Room(NamedTuple):
    """The node that makes room, "" for none, None for no change; where none does, upstream's words why."""

    node: str | None
    why_none: str = ""


class Preemptor:
    def __init__(self, client: RestClient, events: EventRecorder) -> None:
        self._client = client
        self._events = events

    def make_room(self, pod: Object, requests: Requests, snapshot: Snapshot, verdict: Verdict) -> Room:
        """End what has to go for the refused pod."""
        priority = preemption.priority_of(pod)
        if pod["spec"].get("preemptionPolicy") == "Never":
            return Room(self._give_up(pod), "not eligible due to preemptionPolicy=Never.")
        if preemption.waits_for_ends(pod, snapshot.placed, verdict.refused):
            return Room(None, "not eligible due to a terminating pod on the nominated node.")

        if not snapshot.nodes:
            return Room(self._give_up(pod))

        def why_not(node: str, placed: Sequence[Placed]) -> Sequence[str]:
            return obstacles(pod, requests, snapshot, node, placed)

        def why_empty(node: str) -> Sequence[str]:
            return filters.why_not(pod, requests, filters.node_view(snapshot.nodes[node], ()))

        try:
            lower = any(other.priority < priority for other in snapshot.placed)
            budgets = self._client.list(POD_DISRUPTION_BUDGETS)["items"] if lower and verdict.refused else ()
            found = preemption.choose(priority, verdict.refused, snapshot.placed, budgets, why_not)
            if found is None:
                told = preemption.why_none(priority, verdict.refused, snapshot.placed, why_not, why_empty)
                reasons = [told.get(name, [preemption.NO_HELP]) for name in snapshot.nodes]
                return Room(self._give_up(pod), filters.explain(len(reasons), reasons))
            self._nominate(pod, found.node)
            for victim in found.victims:
                if not victim.ending:
                    self._end(victim, pod["metadata"]["uid"])
        except ApiError as error:
            # The pod is refused for now and comes back; what ended meanwhile is seen then.
            log.warning("Failed to preempt for pod=%s error=%s", pod["metadata"]["name"], error)
            return Room(None)
        return Room(found.node)

    def _give_up(self, pod: Object) -> str:
        """No node makes room: one that was promised is not any more."""
        if (pod.get("status") or {}).get("nominatedNodeName"):
            try:
                self._nominate(pod, None)
            except (NotFound, Conflict):
                return ""
        return ""

    def _nominate(self, pod: Object, node: str | None) -> None:
        metadata = pod["metadata"]
        body = {"metadata": {"uid": metadata["uid"]}, "status": {"nominatedNodeName": node}}
        self._client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")

    def _end(self, victim: Placed, uid: str) -> None:
        reference = {"name": victim.name, "namespace": victim.namespace, "uid": victim.uid}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": reference}
        log.info("Preempted pod=%s/%s node=%s", victim.namespace, victim.name, victim.node)
        try:
            announce(self._client, body, REASON, WHY)
            self._client.delete(PODS, victim.name, victim.namespace, uid=victim.uid)
        except (NotFound, Conflict):
            return
        self._events.event(body, "Normal", "Preempted", f"Preempted by pod {uid} on node {victim.node}")
