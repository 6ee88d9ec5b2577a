"""PURE: a pod's status in the API, from its spec and what the runtime holds. Upstream's generateAPIPodStatus.

`compute_status` answers with the whole `status`; times of conditions are kept while the condition stays the
same, so that an unchanged pod gives an equal document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kubelet_py.pods import resources
from kubelet_py.pods.model import (
    NO_HEALTH,
    RUNTIME_NAME,
    ContainerView,
    Health,
    Object,
    PodView,
    Waiting,
    containers,
    ephemeral_containers,
    init_containers,
    is_restartable,
    timestamp,
)

OURS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
FINAL = ("Succeeded", "Failed")


def compute_status(
    pod: Object,
    view: PodView,
    *,
    waiting: Mapping[str, Waiting],
    health: Mapping[str, Health],
    host_ips: Sequence[str],
    now: float,
) -> Object:
    """`waiting` says why a container is held up, by name; `health` what its probes say."""
    before = pod.get("status") or {}
    main = _statuses(pod, containers(pod), "containerStatuses", view, waiting, health)
    init = _statuses(pod, init_containers(pod), "initContainerStatuses", view, waiting, health)
    ephemeral = _statuses(pod, ephemeral_containers(pod), "ephemeralContainerStatuses", view, waiting, health)
    status: dict[str, Any] = {"phase": phase(pod, init, main)}
    if before.get("phase") in FINAL and status["phase"] not in FINAL:
        status["phase"] = before["phase"]  # a finished pod never comes back
    status["conditions"] = _conditions(pod, view, status["phase"], init, main, now)
    for key in ("reason", "message"):
        if before.get(key):
            status[key] = before[key]
    if host_ips:
        status["hostIP"] = host_ips[0]
        status["hostIPs"] = [{"ip": ip} for ip in host_ips]
    ips = list(host_ips) if pod["spec"].get("hostNetwork") and view.sandboxes else list(view.ips)
    if not ips and status["phase"] in FINAL:
        ips = [entry["ip"] for entry in before.get("podIPs") or []]
    if ips:
        status["podIP"] = ips[0]
        status["podIPs"] = [{"ip": ip} for ip in ips]
    status["startTime"] = before.get("startTime") or timestamp(now)
    for key, entries in (
        ("initContainerStatuses", init),
        ("containerStatuses", main),
        ("ephemeralContainerStatuses", ephemeral),
    ):
        if entries:
            status[key] = entries
    status["qosClass"] = resources.qos_class(pod)
    return status


def _statuses(
    pod: Object,
    specs: Sequence[Object],
    key: str,
    view: PodView,
    waiting: Mapping[str, Waiting],
    health: Mapping[str, Health],
) -> list[Object]:
    before = {entry["name"]: entry for entry in (pod.get("status") or {}).get(key) or ()}
    init = key == "initContainerStatuses"
    default = _default_waiting(pod, view, init)
    return [
        _status(spec, before.get(spec["name"]), view, waiting.get(spec["name"]), health, default, init)
        for spec in specs
    ]


def _default_waiting(pod: Object, view: PodView, init: bool) -> str:
    """Main containers of a pod with unfinished init containers wait as PodInitializing."""
    if init or not init_containers(pod):
        return "PodInitializing" if init_containers(pod) else "ContainerCreating"
    return "PodInitializing"


def _status(
    spec: Object,
    before: Object | None,
    view: PodView,
    waiting: Waiting | None,
    health: Mapping[str, Health],
    default_reason: str,
    init: bool,
) -> Object:
    attempts = view.attempts(spec["name"])
    latest = attempts[0] if attempts else None
    previous = next((a for a in attempts[1:] if a.state == "EXITED"), None)
    state, last = _states(latest, previous, waiting, default_reason, before)
    probed = health.get(spec["name"], NO_HEALTH)
    running = latest is not None and latest.state == "RUNNING"
    done = latest is not None and latest.state == "EXITED" and latest.exit_code == 0
    ready = running and probed.ready and probed.started
    if init and not is_restartable(spec):
        ready = done
    entry: dict[str, Any] = {
        "name": spec["name"],
        "state": state,
        "lastState": last,
        "ready": ready,
        "restartCount": _restarts(latest, before),
        "image": (latest.image if latest else "") or spec.get("image", ""),
        "imageID": latest.image_id if latest else (before or {}).get("imageID", ""),
    }
    if latest is not None:
        entry["containerID"] = f"{RUNTIME_NAME}://{latest.id}"
    elif (before or {}).get("containerID"):
        entry["containerID"] = (before or {})["containerID"]
    entry["started"] = running and probed.started
    return entry


def _restarts(latest: ContainerView | None, before: Object | None) -> int:
    if latest is not None:
        return latest.attempt
    return int((before or {}).get("restartCount", 0))


def _states(
    latest: ContainerView | None,
    previous: ContainerView | None,
    waiting: Waiting | None,
    default_reason: str,
    before: Object | None,
) -> tuple[Object, Object]:
    """(state, lastState)."""
    last = {"terminated": _terminated(previous)} if previous is not None else {}
    if latest is None:
        reason = waiting or Waiting(default_reason)
        return {"waiting": _waiting(reason)}, _lost(before)
    if latest.state == "RUNNING":
        return {"running": {"startedAt": timestamp(latest.started_at or latest.created_at)}}, last
    if latest.state == "EXITED":
        ended = {"terminated": _terminated(latest)}
        return ({"waiting": _waiting(waiting)}, ended) if waiting is not None else (ended, last)
    return {"waiting": _waiting(waiting or Waiting("ContainerCreating"))}, last


def _lost(before: Object | None) -> Object:
    """A container that the runtime no longer knows (after a reboot): what the API remembers of its end."""
    if before is None or not before.get("containerID"):
        return {}
    if (before.get("state") or {}).get("terminated"):
        return {"terminated": before["state"]["terminated"]}
    if (before.get("state") or {}).get("running"):
        text = "The container could not be located when the pod was terminated"
        ended = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": text}
        return {
            "terminated": {
                **ended,
                "startedAt": None,
                "finishedAt": None,
                "containerID": before["containerID"],
            }
        }
    return dict(before.get("lastState") or {})


def _waiting(waiting: Waiting) -> Object:
    return {"reason": waiting.reason, **({"message": waiting.message} if waiting.message else {})}


def _terminated(container: ContainerView) -> Object:
    code = container.exit_code if container.exit_code is not None else 137
    reason = container.reason or ("Completed" if code == 0 else "Error")
    started = container.started_at or container.created_at
    return {
        "exitCode": code,
        "reason": reason,
        **({"message": container.message} if container.message else {}),
        "startedAt": timestamp(started),
        "finishedAt": timestamp(container.finished_at or started),
        "containerID": f"{RUNTIME_NAME}://{container.id}",
    }


def phase(pod: Object, init: Sequence[Object], main: Sequence[Object]) -> str:
    """Pending, Running, Succeeded or Failed, by upstream's getPhase."""
    policy = pod["spec"].get("restartPolicy", "Always")
    for spec, entry in zip(init_containers(pod), init, strict=True):
        if is_restartable(spec):
            if not entry["started"]:
                return "Pending"
            continue
        ended = entry["state"].get("terminated") or (entry["lastState"].get("terminated") or {})
        if ended and ended["exitCode"] == 0:
            continue
        if "terminated" in entry["state"] and policy == "Never":
            return "Failed"
        return "Pending"
    running = stopped = succeeded = 0
    for entry in main:
        state = entry["state"]
        if "running" in state:
            running += 1
        elif "terminated" in state:
            stopped += 1
            succeeded += state["terminated"]["exitCode"] == 0
        elif entry["lastState"].get("terminated"):
            stopped += 1
        else:
            return "Pending"
    if running:
        return "Running"
    if policy == "Always":
        return "Running"
    if stopped == succeeded:
        return "Succeeded"
    return "Failed" if policy == "Never" else "Running"


def _conditions(
    pod: Object, view: PodView, phase_: str, init: Sequence[Object], main: Sequence[Object], now: float
) -> list[Object]:
    sandbox = view.sandbox
    has_network = sandbox is not None and sandbox.ready and (bool(sandbox.ips) or sandbox.host_network)
    ready = _containers_ready(phase_, main)
    wanted = [
        {"type": "PodReadyToStartContainers", "status": _word(has_network)},
        _initialized(pod, phase_, init),
        _ready(pod, ready),
        {"type": "ContainersReady", **ready},
        {"type": "PodScheduled", "status": "True"},
    ]
    before = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
    conditions = []
    for condition in wanted:
        old = before.get(condition["type"])
        same = old is not None and old["status"] == condition["status"]
        since = old["lastTransitionTime"] if old is not None and same else timestamp(now)
        conditions.append({**condition, "lastProbeTime": None, "lastTransitionTime": since})
    return conditions + [c for kind, c in before.items() if kind not in OURS]


def _word(value: bool) -> str:
    return "True" if value else "False"


def _initialized(pod: Object, phase_: str, init: Sequence[Object]) -> Object:
    unfinished = []
    for spec, entry in zip(init_containers(pod), init, strict=True):
        done = entry["started"] if is_restartable(spec) else entry["ready"]
        if not done:
            unfinished.append(spec["name"])
    if phase_ == "Succeeded":
        return {"type": "Initialized", "status": "True", "reason": "PodCompleted"}
    if unfinished:
        message = f"containers with incomplete status: [{' '.join(unfinished)}]"
        return {
            "type": "Initialized",
            "status": "False",
            "reason": "ContainersNotInitialized",
            "message": message,
        }
    return {"type": "Initialized", "status": "True"}


def _containers_ready(phase_: str, main: Sequence[Object]) -> Object:
    if phase_ == "Succeeded":
        return {"status": "False", "reason": "PodCompleted"}
    if phase_ == "Failed":
        return {"status": "False", "reason": "PodFailed"}
    unready = [entry["name"] for entry in main if not entry["ready"]]
    if unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        return {"status": "False", "reason": "ContainersNotReady", "message": message}
    return {"status": "True"}


def _ready(pod: Object, ready: Object) -> Object:
    if ready["status"] != "True":
        return {"type": "Ready", **ready}
    present = {c["type"]: c["status"] for c in (pod.get("status") or {}).get("conditions") or ()}
    missing = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        if present.get(kind) is None:
            missing.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif present[kind] != "True":
            missing.append(f'the status of pod readiness gate "{kind}" is not "True", but {present[kind]}')
    if missing:
        return {
            "type": "Ready",
            "status": "False",
            "reason": "ReadinessGatesNotReady",
            "message": ", ".join(missing),
        }
    return {"type": "Ready", "status": "True"}
