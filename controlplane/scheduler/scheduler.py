"""Binds pods to nodes: one at a time, by the pure filters and scores, over a watched view of the cluster.

A decision counts from the moment it is made: the pod is *assumed* on its node while the binding is on
its way, else the next decision would give the same room away again. An informer's event replaces the
assumption.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from controlplane.claims import claim_names
from controlplane.controllers.base import SharedInformers
from controlplane.scheduler.claim_binding import ClaimBinding
from controlplane.scheduler.filters import Requests, pod_requests
from controlplane.scheduler.pod_affinity import Placed, rules_of
from controlplane.scheduler.preemption import priority_of
from controlplane.scheduler.preemptor import Preemptor
from controlplane.scheduler.queue import SchedulingQueue
from controlplane.scheduler.snapshot import Snapshot, Verdict, decide
from controlplane.scheduler.volumes import Choice, Storage
from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import NAMESPACES, NODES, PODS
from kubeclient.rest import RestClient

log = logging.getLogger("scheduler")

Object = dict[str, Any]
NAME = "default-scheduler"
FINISHED = ("Succeeded", "Failed")


class Scheduler:
    """One thread that schedules; `start` returns at once.

    It writes with a client of its own, and reads from the informers that the controllers have, whoever starts
    those: a second watch of all pods would have each change sent, decoded and kept twice.
    """

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._changed = threading.Condition()
        self._queue = SchedulingQueue()
        self._taken: dict[str, Placed] = {}  # by pod uid
        self._promised: dict[str, Placed] = {}  # by uid of a pod that others were ended for
        self._nodes: dict[str, Object] = {}
        self._stopping = False
        self._pods_informer = informers.of(PODS, self._on_pod)
        self._nodes_informer = informers.of(NODES, self._on_node)
        self._namespaces_informer = informers.of(NAMESPACES)
        self._events = EventRecorder(client, NAME, "")
        self._preemptor = Preemptor(client, self._events)
        self._claims = ClaimBinding(client, informers, self._on_storage)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=1.0)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        uid, spec = new["metadata"]["uid"], new["spec"]
        finished = kind == "DELETED" or (new.get("status") or {}).get("phase") in FINISHED
        with self._changed:
            ours = self._ours(new)
            if finished or spec.get("nodeName") or not ours:
                self._break_promise(uid)
            if finished:
                self._queue.drop(uid)
                if self._taken.pop(uid, None) is not None:
                    self._queue.changed()
            elif spec.get("nodeName"):
                self._queue.drop(uid)
                before = self._taken.get(uid)
                self._taken[uid] = placed = placed_on(new, spec["nodeName"], pod_requests(new))
                if before is not None and placed.requests.less_than(before.requests):
                    self._queue.changed()  # it was resized in place: there may be room now
                elif before is None or (before.labels, before.ending) != (placed.labels, placed.ending):
                    self._queue.changed(minds_others)
            elif not ours:
                self._queue.drop(uid)
            elif uid not in self._taken:
                self._queue.put(new, self._clock())
                node = (new.get("status") or {}).get("nominatedNodeName")
                if node and uid not in self._promised:  # by a scheduler before us
                    self._promised[uid] = placed_on(new, node, pod_requests(new))
            self._changed.notify()

    def _break_promise(self, uid: str) -> None:
        """Under the lock: the room that was kept for the pod is anybody's."""
        if self._promised.pop(uid, None) is not None:
            self._queue.changed()

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
                # Refused until it is decided: also if deciding fails.
                self._queue.refuse(pod["metadata"]["uid"], self._clock())
            try:
                self._schedule(pod)
            except Exception:
                # A defect in one pod's handling must not end the scheduler for all others.
                log.exception("Failed to schedule pod=%s", pod["metadata"]["name"])

    def _schedule(self, pod: Object) -> None:
        with self._changed:
            requests, uid = pod_requests(pod), pod["metadata"]["uid"]
            if not self._queue.knows(uid):
                return  # bound by another or gone in this moment
            snapshot = self._look(pod)
            verdict = decide(pod, requests, owner(pod), snapshot)
            if verdict.chosen is not None:
                self._claims.promise(verdict.choices)
                self._taken[uid] = placed_on(pod, verdict.chosen.name, requests)
                self._promised.pop(uid, None)
                self._queue.drop(uid)
        if verdict.chosen is not None and verdict.choices:
            arguments = (pod, verdict.chosen.name, verdict.choices)
            threading.Thread(target=self._bind_claims, args=arguments, daemon=True).start()
        elif verdict.chosen is not None:
            self._bind(pod, verdict.chosen.name)
        else:
            why_none = self._make_room(pod, requests, snapshot, verdict)
            self._refuse(pod, f"{verdict.message} preemption: {why_none}" if why_none else verdict.message)

    def _look(self, pod: Object) -> Snapshot:
        """The cluster as the pod sees it; room that was promised to pods no lower than it is taken."""
        storage = self._claims.storage() if claim_names(pod) else Storage()
        uid, priority = pod["metadata"]["uid"], priority_of(pod)
        promised = [p for p in self._promised.values() if p.uid != uid and p.priority >= priority]
        placed = [*self._taken.values(), *promised]
        return Snapshot(dict(self._nodes), placed, self._namespaces(), storage)

    def _make_room(self, pod: Object, requests: Requests, snapshot: Snapshot, verdict: Verdict) -> str:
        """Preempt for it; why that gives it no room, if so."""
        node, why_none = self._preemptor.make_room(pod, requests, snapshot, verdict)
        if node is None:
            return why_none
        uid = pod["metadata"]["uid"]
        with self._changed:
            # Unless it is gone or bound meanwhile: those are not in the queue.
            if node and self._queue.knows(uid):
                self._promised[uid] = placed_on(pod, node, requests)
            elif not node:
                self._break_promise(uid)
        return why_none

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
        priority_of(pod),
        _started(pod),
        metadata["name"],
        metadata["uid"],
        tuple(claim_names(pod)),
    )


def _started(pod: Object) -> float:
    """Epoch seconds; a pod that has not started yet is the youngest."""
    stamp = (pod.get("status") or {}).get("startTime")
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else math.inf


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
