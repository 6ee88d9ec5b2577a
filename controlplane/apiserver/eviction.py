"""What an eviction asks before it becomes a delete: does a PodDisruptionBudget allow it now?

The budget's status is counted by the disruption controller. A granted eviction takes one from
`disruptionsAllowed` in the same step that checks it, so two at once cannot share the last one. Source:
upstream's pkg/registry/core/pod/storage/eviction.go.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.errors import Cause, StatusError, too_many_requests
from controlplane.apiserver.registry import Registry, Write
from controlplane.apiserver.resources import lookup
from controlplane.storage.cache import Entry
from kubeclient.selectors import LabelSelector

Object = dict[str, Any]

_COUNTED_SECONDS = 10  # by then the controller has seen a new budget, whatever else it does


async def respect_budgets(registry: Registry, pod: Object, write: Write, now: str) -> None:
    """Take the eviction from the budget that covers the pod, if one does. Raises StatusError (429, 500)."""
    if not _protected(pod):
        return
    budgets = _covering(registry, pod)
    if len(budgets) > 1:
        text = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not"
        raise StatusError(500, "InternalError", f"{text} support.")
    for entry in budgets:
        budget = entry.parse()
        if not _ready(pod) and _unhealthy_may_go(budget):
            continue
        _check(budget)

        def spend(obj: Object) -> Object:
            obj["status"]["disruptionsAllowed"] -= 1
            obj["status"].setdefault("disruptedPods", {})[pod["metadata"]["name"]] = now
            return obj

        await registry.amend(_BUDGETS, entry.namespace, entry.name, spend, write)


def announce_eviction(pod: Object, now: str) -> Object:
    """The pod with the condition that says why it goes (upstream: addConditionAndDeletePod)."""
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    target = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": now,
    }
    conditions[:] = [part for part in conditions if part["type"] != "DisruptionTarget"] + [target]
    return pod


def _covering(registry: Registry, pod: Object) -> list[Entry]:
    labels = pod["metadata"].get("labels") or {}
    found = []
    for entry in registry.collection(_BUDGETS).present(pod["metadata"]["namespace"]):
        selector = entry.parse().get("spec", {}).get("selector")
        if selector is not None and LabelSelector.from_object(selector).matches(labels):
            found.append(entry)
    return found


def _protected(pod: Object) -> bool:
    """Pods that are finished or on their way out cost nobody's budget anything."""
    phase = pod.get("status", {}).get("phase")
    return phase not in ("Succeeded", "Failed", "Pending") and "deletionTimestamp" not in pod["metadata"]


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(part["type"] == "Ready" and part["status"] == "True" for part in conditions)


def _unhealthy_may_go(budget: Object) -> bool:
    """A pod that is not Ready costs nothing where enough others are (or always, where the budget says so)."""
    if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    status = budget.get("status") or {}
    desired = int(status.get("desiredHealthy", 0))
    return desired > 0 and int(status.get("currentHealthy", 0)) >= desired


def _check(budget: Object) -> None:
    name, status = budget["metadata"]["name"], budget.get("status") or {}
    if status.get("observedGeneration", 0) < budget["metadata"].get("generation", 0):
        text = f"The disruption budget {name} is still being processed by the server."
        raise _refusal(text, retry_after=_COUNTED_SECONDS)
    if status.get("disruptionsAllowed", 0) <= 0:
        text = f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods and has"
        # Without Retry-After: client-go would repeat the request by itself for minutes, past drain's timeout.
        raise _refusal(f"{text} {status.get('currentHealthy', 0)} currently", retry_after=None)


def _refusal(text: str, *, retry_after: int | None) -> StatusError:
    return too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_after=retry_after,
        causes=[Cause("DisruptionBudget", "", text)],
    )


_found = lookup("policy", "v1", "poddisruptionbudgets")
assert _found is not None
_BUDGETS = _found
