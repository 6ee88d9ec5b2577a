"""PURE: status.phase, the one word that Jobs, `kubectl wait` and people judge a pod by.

Rules from upstream's getPhase (pkg/kubelet/kubelet_pods.go): what still has to happen before the main
containers outweighs what they do, and a pod is only over when nothing of it will run again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubelet_py.pods.actions import restart_policy
from kubelet_py.pods.model import Object, init_containers, is_restartable

# How a container ended that nobody has seen ending.
LOST: Object = {
    "exitCode": 137,
    "reason": "ContainerStatusUnknown",
    "message": "The container could not be located when the pod was terminated",
    "startedAt": None,
    "finishedAt": None,
}


@dataclass(slots=True)
class _Count:
    """How many containers are in which state; `pending` and `failed` are init containers only."""

    pending: int = 0
    pending_sidecars: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    stopped: int = 0
    succeeded: int = 0


def phase(
    pod: Object,
    init: Iterable[Object],
    main: Iterable[Object],
    over: bool,
    returning: Collection[str] = (),
) -> str:
    """The phase from the statuses of the containers; `over`: nothing of the pod will run again. `returning`:
    the names of those that were killed to come back, and so count as if they still ran."""
    count, main = _Count(), list(main)
    sidecars = {c["name"] for c in init_containers(pod) if is_restartable(c)}
    for entry in init:
        if entry["name"] in sidecars:
            _count_sidecar(count, entry)
        elif entry["name"] in returning and not over:
            count.pending += 1
        else:
            _count_init(count, entry)
    for entry in main:
        if entry["name"] in returning and not over:
            count.running += 1
        else:
            _count_main(count, entry)
    policy = restart_policy(pod)
    if count.failed and policy == "Never":
        return "Failed"
    initialized = any({"running", "terminated"} & set(entry["state"]) for entry in main)
    if count.pending or count.waiting or (count.pending_sidecars and not initialized):
        return "Pending"
    if count.running:
        return "Running"
    if not count.stopped:
        return "Pending"
    if policy == "Always" and not over:
        return "Running"
    if count.stopped == count.succeeded:
        return "Succeeded"
    return "Failed" if over or policy == "Never" else "Running"


def close(pod: Object, init: list[Object], main: list[Object]) -> None:
    """Nothing of the pod runs or will run: say of every container that could have run how it ended.

    What nobody knows the end of has failed (upstream: status_manager's TerminatePod): a Job that waits for
    the end of a pod that was deleted during its pull would otherwise wait for ever.
    """
    if _initialized(pod, init, main):
        _close(main)
    begun = [index for index, entry in enumerate(init) if _has_begun(entry)]
    _close(init[: begun[-1] + 1] if begun else init[:1])


def _close(entries: Iterable[Object]) -> None:
    for entry in entries:
        if "terminated" not in entry["state"]:
            entry |= {"state": {"terminated": dict(LOST)}, "ready": False, "started": False}


def _has_begun(entry: Object) -> bool:
    return "waiting" not in entry["state"] or _ended(entry) is not None


def _initialized(pod: Object, init: Sequence[Object], main: Sequence[Object]) -> bool:
    """Did the main containers' turn come?"""
    if not init or any(_has_begun(entry) for entry in main):
        return True
    ended = _ended(init[-1])
    return not is_restartable(init_containers(pod)[-1]) and ended is not None and ended["exitCode"] == 0


def _ended(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How its last attempt ended: of one that waits for its restart, too."""
    state = entry["state"]
    last = (entry.get("lastState") or {}).get("terminated") if "running" not in state else None
    found: Mapping[str, Any] | None = state.get("terminated") or last
    return found


def _count_init(count: _Count, entry: Object) -> None:
    ended = _ended(entry)
    if ended is None:
        count.pending += 1
    elif ended["exitCode"] != 0:
        count.failed += 1


def _count_sidecar(count: _Count, entry: Object) -> None:
    """One that has ended, for good or until its restart, says nothing of the pod."""
    if "running" in entry["state"]:
        count.running += 1
        count.pending_sidecars += int(not entry.get("started"))
    elif _ended(entry) is None:
        count.waiting += 1
        count.pending_sidecars += 1


def _count_main(count: _Count, entry: Object) -> None:
    if "running" in entry["state"]:
        count.running += 1
    elif _ended(entry) is None:
        count.waiting += 1
    else:
        count.stopped += 1
        # Of one that waits for its restart, upstream does not ask how it ended.
        count.succeeded += int(entry["state"].get("terminated", {}).get("exitCode") == 0)
