"""PURE: status.phase, the one word that Jobs, `kubectl wait` and people judge a pod by.

Rules from upstream's getPhase (pkg/kubelet/kubelet_pods.go): what still has to happen before the main
containers outweighs what they do, and a pod is only over when nothing of it will run again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kubelet_py.pods.actions import restart_policy
from kubelet_py.pods.model import Object, init_containers, is_restartable


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


def phase(pod: Object, init: Iterable[Object], main: Iterable[Object], over: bool) -> str:
    """The phase from the statuses of the containers; `over`: nothing of the pod will run again."""
    count, main = _Count(), list(main)
    sidecars = {c["name"] for c in init_containers(pod) if is_restartable(c)}
    for entry in init:
        (_count_sidecar if entry["name"] in sidecars else _count_init)(count, entry)
    for entry in main:
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
