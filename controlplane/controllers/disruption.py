"""Keeps the status of PodDisruptionBudgets, which every eviction asks: how many pods may go now?

Without it a budget would never allow anything and `kubectl drain` would wait for ever. An eviction that was
granted is written into `disruptedPods` by the API server, and counts against the budget until the pod's
deletion is seen here or two minutes have passed. Source: upstream's disruption controller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from controlplane.controllers.base import Controller, Object, SharedInformers, controller_of, split_key
from controlplane.controllers.pod_readiness import is_ready
from controlplane.controllers.rollout import scaled
from controlplane.controllers.stamps import seconds
from kubeclient.errors import NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import DEPLOYMENTS, POD_DISRUPTION_BUDGETS, PODS, REPLICA_SETS, STATEFUL_SETS
from kubeclient.rest import RestClient
from kubeclient.selectors import LabelSelector

FORGOTTEN_SECONDS = 120.0
UNMANAGED = (
    "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the "
    "status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account "
    'for these pods please set ".spec.minAvailable" field of the PDB to an integer value.'
)


def budget_status(
    budget: Object, pods: Sequence[Object], scale_of: Callable[[Object], tuple[str, int] | None], now: float
) -> Object:
    """The status that the budget should have, without conditions. Pure.

    `pods` are those that it selects; `scale_of` gives a pod's workload (uid) and that one's wanted replicas.
    """
    spec = budget["spec"]
    disrupted = _still_disrupted(budget, pods, now)
    healthy = sum(
        1
        for pod in pods
        if is_ready(pod)
        and not pod["metadata"].get("deletionTimestamp")
        and pod["metadata"]["name"] not in disrupted
    )
    expected, desired = _bounds(spec, pods, scale_of)
    status: Object = {
        "observedGeneration": budget["metadata"].get("generation", 0),
        "expectedPods": expected,
        "desiredHealthy": desired,
        "currentHealthy": healthy,
        "disruptionsAllowed": max(0, healthy - desired) if expected > 0 else 0,
    }
    return status | ({"disruptedPods": disrupted} if disrupted else {})


def remarks(budget: Object, pods: Sequence[Object]) -> list[tuple[str, str, str]]:
    """Why the budget may not count as its author thinks: (type, reason, message) of events. Pure."""
    spec, found = budget["spec"], []
    if not pods:
        found.append(("Normal", "NoPods", "No matching pods found"))
    counts_workloads = spec.get("maxUnavailable") is not None or isinstance(spec.get("minAvailable"), str)
    if counts_workloads and any(controller_of(pod) is None for pod in pods):
        found.append(("Warning", "UnmanagedPods", UNMANAGED.format(json.dumps(spec.get("selector")))))
    return found


def _bounds(
    spec: Mapping[str, Any], pods: Sequence[Object], scale_of: Callable[[Object], tuple[str, int] | None]
) -> tuple[int, int]:
    """(pods there should be, pods that have to be healthy)."""
    least, most = spec.get("minAvailable"), spec.get("maxUnavailable")
    if most is None and not isinstance(least, str):
        return len(pods), int(least or 0)
    expected = sum(dict(filter(None, map(scale_of, pods))).values())
    if most is not None:
        return expected, max(0, expected - scaled(most, expected, up=True))
    return expected, scaled(str(least), expected, up=True)


def _still_disrupted(budget: Object, pods: Sequence[Object], now: float) -> dict[str, str]:
    """Granted evictions whose deletion has not been seen yet."""
    waiting = {p["metadata"]["name"] for p in pods if not p["metadata"].get("deletionTimestamp")}
    granted = (budget.get("status") or {}).get("disruptedPods") or {}
    return {
        name: stamp
        for name, stamp in granted.items()
        if name in waiting and now - seconds(stamp) < FORGOTTEN_SECONDS
    }


class Disruption(Controller):
    name = "disruption"

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._budgets = informers.of(POD_DISRUPTION_BUDGETS, self.enqueue)
        self._pods = informers.of(PODS, self._on_pod)
        self._workloads = {
            resource.kind: informers.of(resource, self._on_workload)
            for resource in (REPLICA_SETS, DEPLOYMENTS, STATEFUL_SETS)
        }

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        for budget in self._budgets.list():
            if _selects(budget, new) or (old is not None and _selects(budget, old)):
                self.enqueue(kind, budget)

    def _on_workload(self, kind: str, new: Object, old: Object | None) -> None:
        """Another number of replicas is another number of pods that there should be."""
        if old is None or old["spec"].get("replicas") != new["spec"].get("replicas"):
            for budget in self._budgets.list():
                if budget["metadata"]["namespace"] == new["metadata"]["namespace"]:
                    self.enqueue(kind, budget)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        budget = self._budgets.get(name, namespace)
        if budget is None or budget["metadata"].get("deletionTimestamp"):
            return
        now = datetime.now(UTC)
        pods = [pod for pod in self._pods.list() if _selects(budget, pod) and _unfinished(pod)]
        for kind, reason, message in remarks(budget, pods):
            self.recorder.event(budget, kind, reason, message)
        old = budget.get("status") or {}
        status = budget_status(budget, pods, self._scale_of, now.timestamp())
        status["conditions"] = [_condition(status, old, now)]
        if status.get("disruptedPods"):
            self.queue.add_after(key, FORGOTTEN_SECONDS)
        if status == old:
            return
        try:
            self.client.update(POD_DISRUPTION_BUDGETS, budget | {"status": status}, subresource="status")
        except NotFound:
            return

    def _scale_of(self, pod: Object) -> tuple[str, int] | None:
        """The topmost workload behind the pod that has a number of replicas."""
        found, owned = None, pod
        while (reference := controller_of(owned)) is not None:
            informer = self._workloads.get(reference["kind"])
            owner = informer.get(reference["name"], pod["metadata"]["namespace"]) if informer else None
            if owner is None or owner["metadata"]["uid"] != reference["uid"]:
                break
            found, owned = (reference["uid"], int(owner["spec"].get("replicas", 1))), owner
        return found


def _selects(budget: Object, pod: Object) -> bool:
    """An empty selector takes every pod of the namespace, a missing one none (policy/v1)."""
    selector = budget["spec"].get("selector")
    if selector is None or budget["metadata"]["namespace"] != pod["metadata"]["namespace"]:
        return False
    return LabelSelector.from_object(selector).matches(pod["metadata"].get("labels") or {})


def _unfinished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


def _condition(status: Object, old: Object, now: datetime) -> Object:
    allowed = status["disruptionsAllowed"] > 0
    word = "True" if allowed else "False"
    before = next((c for c in old.get("conditions") or [] if c["type"] == "DisruptionAllowed"), None)
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    if before is not None and before["status"] == word:
        since = before["lastTransitionTime"]
    return {
        "type": "DisruptionAllowed",
        "status": word,
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
        "observedGeneration": status["observedGeneration"],
        "lastTransitionTime": since,
    }
