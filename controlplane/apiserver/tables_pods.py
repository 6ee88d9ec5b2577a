"""Rows of Pods: the STATUS that everybody reads first.

The phase alone says little; the column shows the most telling reason of any container, as upstream's printPod
does (pkg/printers/internalversion/printers.go): init containers first, in order, then the regular ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controlplane.apiserver.tables_text import NONE, age, columns, epoch, human_duration, name

Object = dict[str, Any]

COLUMNS = columns("Name|Ready|Status|Restarts|Age|IP*|Node*|Nominated Node*|Readiness Gates*")
_FINISHED = {
    "Succeeded": ("Succeeded", "The pod has completed successfully."),
    "Failed": ("Failed", "The pod failed."),
}


@dataclass(slots=True)
class _Summary:
    """What is gathered on the way through a pod's containers; `restarted_at` is epoch seconds."""

    reason: str
    ready: int = 0
    restarts: int = 0
    restarted_at: float | None = None
    sidecar_restarts: int = 0
    sidecar_restarted_at: float | None = None
    initializing: bool = field(default=False)


def conditions(pod: Object) -> list[Object]:
    """The row's conditions: kubectl may hide pods that have run to completion."""
    found = _FINISHED.get((pod.get("status") or {}).get("phase") or "")
    if found is None:
        return []
    return [{"type": "Completed", "status": "True", "reason": found[0], "message": found[1]}]


def cells(pod: Object, now: float) -> list[Any]:
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    summary = _Summary(status.get("reason") or status.get("phase") or "")
    if any(
        item.get("type") == "PodScheduled" and item.get("reason") == "SchedulingGated"
        for item in status.get("conditions") or ()
    ):
        summary.reason = "SchedulingGated"
    sidecars = {
        item["name"] for item in spec.get("initContainers") or () if item.get("restartPolicy") == "Always"
    }
    _init_containers(summary, spec, status, sidecars)
    if not summary.initializing or _condition(status, "Initialized"):
        _containers(summary, status)
    if pod["metadata"].get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            summary.reason = "Unknown"
        elif status.get("phase") not in _FINISHED:
            summary.reason = "Terminating"
    total = len(spec.get("containers") or ()) + len(sidecars)
    restarts = str(summary.restarts)
    if summary.restarts and summary.restarted_at is not None:
        restarts = f"{restarts} ({human_duration(now - summary.restarted_at)} ago)"
    return [
        name(pod),
        f"{summary.ready}/{total}",
        summary.reason,
        restarts,
        age(pod, now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        _gates(spec, status),
    ]


def _init_containers(summary: _Summary, spec: Object, status: Object, sidecars: set[str]) -> None:
    for index, item in enumerate(status.get("initContainerStatuses") or ()):
        sidecar = item.get("name") in sidecars
        count = item.get("restartCount") or 0
        finished = _last_finished(item)
        summary.restarts += count
        summary.restarted_at = _later(summary.restarted_at, finished)
        if sidecar:
            summary.sidecar_restarts += count
            summary.sidecar_restarted_at = _later(summary.sidecar_restarted_at, finished)
        state = item.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting") or {}
        if terminated is not None and not terminated.get("exitCode"):
            continue
        if sidecar and item.get("started"):
            summary.ready += bool(item.get("ready"))
            continue
        if terminated is not None:
            summary.reason = "Init:" + _ended(terminated)
        elif waiting.get("reason") and waiting["reason"] != "PodInitializing":
            summary.reason = f"Init:{waiting['reason']}"
        else:
            summary.reason = f"Init:{index}/{len(spec.get('initContainers') or ())}"
        summary.initializing = True
        break


def _containers(summary: _Summary, status: Object) -> None:
    summary.restarts, summary.restarted_at = summary.sidecar_restarts, summary.sidecar_restarted_at
    running = False
    for item in reversed(status.get("containerStatuses") or ()):
        summary.restarts += item.get("restartCount") or 0
        summary.restarted_at = _later(summary.restarted_at, _last_finished(item))
        state = item.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting") or {}
        if waiting.get("reason"):
            summary.reason = waiting["reason"]
        elif terminated is not None:
            summary.reason = _ended(terminated)
        elif item.get("ready") and state.get("running") is not None:
            running = True
            summary.ready += 1
    if summary.reason == "Completed" and running:
        summary.reason = "Running" if _condition(status, "Ready") else "NotReady"


def _ended(terminated: Object) -> str:
    if terminated.get("reason"):
        return str(terminated["reason"])
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode') or 0}"


def _last_finished(item: Object) -> float | None:
    return epoch(((item.get("lastState") or {}).get("terminated") or {}).get("finishedAt"))


def _later(left: float | None, right: float | None) -> float | None:
    return right if left is None else left if right is None else max(left, right)


def _condition(status: Object, kind: str) -> bool:
    return any(
        item.get("type") == kind and item.get("status") == "True" for item in status.get("conditions") or ()
    )


def _gates(spec: Object, status: Object) -> str:
    gates = spec.get("readinessGates") or ()
    if not gates:
        return NONE
    passed = sum(_condition(status, gate.get("conditionType") or "") for gate in gates)
    return f"{passed}/{len(gates)}"
