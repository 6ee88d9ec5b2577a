"""Binds pods to nodes: one at a time, by the pure filters and scores, over a watched view of the cluster.

A decision counts from the moment it is made: the pod is *assumed* on its node while the binding is on
its way, else the next decision would give the same room away again. An informer's event replaces the
assumption.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from controlplane.claims import claim_names
from controlplane.scheduler.claim_binding import ClaimBinding
from controlplane.scheduler.filters import NodeView, Requests, explain, node_view, pod_requests, why_not
from controlplane.scheduler.pod_affinity import Neighbours, Placed, rules_of
from controlplane.scheduler.queue import SchedulingQueue
from controlplane.scheduler.scores import best
from controlplane.scheduler.topology_spread import Spread
from controlplane.scheduler.volumes import Choice, Storage, before_nodes, on_node
from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.informer import Informer
from kubeclient.resources import NAMESPACES, NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("scheduler")

Object = dict[str, Any]
NAME = "default-scheduler"
FINISHED = ("Succeeded", "Failed")


class Scheduler:
    """One thread that schedules, and two informers that feed it; `start` returns at once."""

    def __init__(self, client: RestClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._changed = threading.Condition()
        self._queue = SchedulingQueue()
        self._taken: dict[str, Placed] = {}  # by pod uid
        self._nodes: dict[str, Object] = {}
        self._stopping = False
        self._pods_informer = Informer(client, PODS, on_event=self._on_pod)
        self._nodes_informer = Informer(client, NODES, on_event=self._on_node)
        self._namespaces_informer = Informer(client, NAMESPACES)
        self._events = EventRecorder(client, NAME, "")
        self._claims = ClaimBinding(client, self._on_storage)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._nodes_informer.start()
        self._pods_informer.start()
        self._namespaces_informer.start()
        self._claims.start()
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._pods_informer.stop()
        self._nodes_informer.stop()
        self._namespaces_informer.stop()
        self._claims.stop()
        self._thread.join(timeout=1.0)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        uid, spec = new["metadata"]["uid"], new["spec"]
        finished = kind == "DELETED" or (new.get("status") or {}).get("phase") in FINISHED
        with self._changed:
            if finished:
                self._queue.drop(uid)
                if self._taken.pop(uid, None) is not None:
                    self._queue.changed()
            elif spec.get("nodeName"):
                self._queue.drop(uid)
                before = self._taken.get(uid)
                self._taken[uid] = placed = placed_on(new, spec["nodeName"], pod_requests(new))
                if before is None or (before.labels, before.ending) != (placed.labels, placed.ending):
                    self._queue.changed(minds_others)
            elif uid not in self._taken and self._ours(new):
                self._queue.put(new, self._clock())
            self._changed.notify()

    @staticmethod
    def _ours(pod: Object) -> bool:
        gates = pod["spec"].get("schedulingGates")
        name = pod["spec"].get("schedulerName", NAME)
        return name == NAME and not gates and not pod["metadata"].get("deletionTimestamp")

    def _on_storage(self) -> None:
        with self._changed:
            self._queue.changed()
            self._changed.notify()

    def _on_node(self, kind: str, new: Object, old: Object | None) -> None:
        with self._changed:
            if kind == "DELETED":
                self._nodes.pop(new["metadata"]["name"], None)
                return
            self._nodes[new["metadata"]["name"]] = new
            if old is None or _what_counts(old) != _what_counts(new):
                self._queue.changed()
                self._changed.notify()

    def _run(self) -> None:
        informers = (
            self._nodes_informer,
            self._pods_informer,
            self._namespaces_informer,
            self._claims,
        )
        synced = all(informer.wait_synced(30.0) for informer in informers)
        log.info("Started scheduling synced=%s", synced)
        while True:
            with self._changed:
                pod = self._queue.next(self._clock())
                while pod is None and not self._stopping:
                    self._changed.wait(self._queue.wait(self._clock()))
                    pod = self._queue.next(self._clock())
                if self._stopping or pod is None:
                    return
                requests = pod_requests(pod)
                chosen, choices, message = self._choose(pod, requests)
                if chosen is not None:
                    self._claims.promise(choices)
                    self._taken[pod["metadata"]["uid"]] = placed_on(pod, chosen.name, requests)
                    self._queue.drop(pod["metadata"]["uid"])
                else:
                    self._queue.refuse(pod["metadata"]["uid"], self._clock())
            if chosen is not None and choices:
                arguments = (pod, chosen.name, choices)
                threading.Thread(target=self._bind_claims, args=arguments, daemon=True).start()
            elif chosen is not None:
                self._bind(pod, chosen.name)
            else:
                self._refuse(pod, message)

    def _choose(self, pod: Object, requests: Requests) -> tuple[NodeView | None, list[Choice], str]:
        """The best node that fits and what to bind first, or None and upstream's explanation."""
        storage = self._claims.storage() if claim_names(pod) else Storage()
        problem = before_nodes(pod, storage)
        if problem:
            return None, [], f"0/{len(self._nodes)} nodes are available: {problem}."
        by_node: dict[str, list[Requests]] = {}
        siblings: Counter[str] = Counter()
        mine = owner(pod)
        placed = [*self._taken.values()]
        for other in placed:
            by_node.setdefault(other.node, []).append(other.requests)
            siblings[other.node] += bool(mine) and other.owner == mine
        views = [node_view(node, by_node.get(name, [])) for name, node in self._nodes.items()]
        spread = Spread(pod, placed, views)
        nodes = {view.name: view.node["metadata"].get("labels") or {} for view in views}
        neighbours = Neighbours(pod, placed, nodes, self._namespaces())
        refusals, choices = [], {}
        for view in views:
            reasons = why_not(pod, requests, view)
            if not reasons:
                reasons, choices[view.name] = on_node(pod, view.node, storage)
            if not reasons:
                reasons = spread.why_not(view.name) or neighbours.why_not(view.name)
            refusals.append((view, reasons))
        fitting = [view for view, reasons in refusals if not reasons]
        if not fitting:
            return None, [], explain(len(views), [reasons for _, reasons in refusals])
        names = [view.name for view in fitting]
        own = pod["spec"].get("topologySpreadConstraints")
        crowding = spread.crowding(names) if own else [float(siblings[name]) for name in names]
        found = best(pod, requests, fitting, crowding, neighbours.points(names))
        return found, choices[found.name], ""

    def _namespaces(self) -> dict[str, dict[str, str]]:
        """Labels by namespace."""
        found = self._namespaces_informer.list()
        return {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in found}

    def _bind_claims(self, pod: Object, node: str, choices: Sequence[Choice]) -> None:
        problem = self._claims.bind(choices, node)
        if not problem:
            self._bind(pod, node)
            return
        metadata = pod["metadata"]
        log.warning(
            "Failed to bind volumes pod=%s/%s node=%s error=%s",
            metadata["namespace"], metadata["name"], node, problem,
        )  # fmt: skip
        text = f'running PreBind plugin "VolumeBinding": {problem}'
        self._events.event(pod, "Warning", "FailedScheduling", text)
        self._forget(metadata["uid"])

    def _bind(self, pod: Object, node: str) -> None:
        metadata = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {k: metadata[k] for k in ("name", "namespace", "uid")},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        try:
            self._client.create(
                PODS, binding, metadata["namespace"], subresource="binding", name=metadata["name"]
            )
        except (Conflict, NotFound) as error:
            # Bound by somebody else, or gone: the informer says which.
            log.info("Dropped binding pod=%s/%s reason=%s", metadata["namespace"], metadata["name"], error)
            self._forget(metadata["uid"])
            return
        except ApiError as error:
            log.warning(
                "Failed to bind pod=%s/%s node=%s error=%s",
                metadata["namespace"],
                metadata["name"],
                node,
                error,
            )
            with self._changed:
                self._taken.pop(metadata["uid"], None)
                self._queue.put(pod, self._clock())
                self._queue.retry(metadata["uid"], self._clock())
            return
        log.info("Bound pod=%s/%s node=%s", metadata["namespace"], metadata["name"], node)
        message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node}"
        self._events.event(pod, "Normal", "Scheduled", message)

    def _forget(self, uid: str) -> None:
        """Give assumed room back, unless the informer has seen the pod bound meanwhile."""
        current = next((p for p in self._pods_informer.list() if p["metadata"]["uid"] == uid), None)
        if current is None or not current["spec"].get("nodeName"):
            with self._changed:
                self._taken.pop(uid, None)
                if current is not None and self._ours(current):
                    self._queue.put(current, self._clock())
                    self._queue.retry(uid, self._clock())

    def _refuse(self, pod: Object, message: str) -> None:
        """Say in an event and in the PodScheduled condition why the pod stays pending."""
        metadata = pod["metadata"]
        self._events.event(pod, "Warning", "FailedScheduling", message)
        conditions = (pod.get("status") or {}).get("conditions") or []
        if any(c["type"] == "PodScheduled" and c.get("message") == message for c in conditions):
            return
        log.info("Found no node pod=%s/%s reason=%s", metadata["namespace"], metadata["name"], message)
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": None,
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        try:
            self._client.patch(
                PODS,
                metadata["name"],
                {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}},
                metadata["namespace"],
                subresource="status",
            )
        except (Conflict, NotFound):
            return
        except ApiError as error:
            log.warning("Failed to say why a pod is pending pod=%s error=%s", metadata["name"], error)


def placed_on(pod: Object, node: str, requests: Requests) -> Placed:
    """What others have to know of a pod on that node."""
    metadata = pod["metadata"]
    return Placed(
        node,
        requests,
        owner(pod),
        metadata["namespace"],
        metadata.get("labels") or {},
        rules_of(pod),
        bool(metadata.get("deletionTimestamp")),
    )


def minds_others(pod: Object) -> bool:
    """Whether it matters to the pod which other pods there are."""
    affinity = pod["spec"].get("affinity") or {}
    own = affinity.get("podAffinity") or affinity.get("podAntiAffinity")
    return bool(own or pod["spec"].get("topologySpreadConstraints"))


def owner(pod: Object) -> str:
    """UID of the pod's controller, or ""."""
    references = pod["metadata"].get("ownerReferences") or []
    return next((str(r["uid"]) for r in references if r.get("controller")), "")


def _what_counts(node: Object) -> tuple[Any, ...]:
    """What of a node can make a refused pod fit; heartbeats change none of it."""
    spec = node.get("spec") or {}
    return (
        spec.get("taints"),
        spec.get("unschedulable"),
        node["metadata"].get("labels"),
        (node.get("status") or {}).get("allocatable"),
    )
