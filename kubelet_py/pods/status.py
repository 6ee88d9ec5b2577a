"""PURE: what the API shows of a pod: phase, conditions and container states.

Rules from upstream's kubelet_pods.go (convertToAPIContainerStatuses), status/generate.go (conditions); the
phase is in phase.py. Input: the pod's JSON with its last status, what the runtime holds, why containers wait,
and what the probes say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from kubelet_py.pods import resources
from kubelet_py.pods.actions import restart_policy, should_restart
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
    host_network,
    init_containers,
    is_restartable,
    is_static,
    timestamp,
)
from kubelet_py.pods.phase import LOST, close, phase
from kubelet_py.pods.resize import IN_PROGRESS, PENDING, Progress
from kubelet_py.pods.resize import conditions as conditions_of_resize

OURS = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
MESSAGES_BYTES = 12 * 1024  # upstream: MaxPodTerminationMessageLogLength


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything besides the pod and the runtime that its status depends on."""

    now: float
    host_ips: tuple[str, ...] = ()
    started_at: float = 0.0  # when this node first saw the pod
    waiting: Mapping[str, Waiting] = field(default_factory=dict)
    health: Mapping[str, Health] = field(default_factory=dict)
    finished: bool = False  # nothing of it will run again
    failure: Waiting | None = None  # why the node ended the pod: reason and message
    disruption: str = ""  # the text of its DisruptionTarget condition
    resources: Mapping[str, Object] = field(default_factory=dict)  # of the containers' statuses
    resize: Progress = field(default_factory=Progress)
    returning: Collection[str] = ()  # ids of the attempts that were killed to come back


def generate(pod: Object, view: PodView, situation: Situation) -> Object:
    """The whole status of the pod as this node sees it (conditions of others are not in it)."""
    old = pod.get("status") or {}
    status: Object = {}
    init = [_container_status(pod, view, c, situation, "initContainerStatuses") for c in init_containers(pod)]
    main = [_container_status(pod, view, c, situation, "containerStatuses") for c in containers(pod)]
    extra = [
        _container_status(pod, view, c, situation, "ephemeralContainerStatuses")
        for c in ephemeral_containers(pod)
    ]
    _share_messages([*init, *main, *extra])
    closed = situation.finished and not any(c.state == "RUNNING" for c in view.containers)
    returning = {c.name for c in view.containers if c.id in situation.returning and c == view.latest(c.name)}
    computed = phase(pod, init, main, situation.finished, returning)
    if closed and not is_static(pod):
        computed = computed if computed == "Succeeded" else "Failed"
        close(pod, init, main)
    status["phase"] = _final_phase(old, view, situation, computed)
    if status["phase"] == "Failed" and situation.failure is not None:
        status |= {"reason": situation.failure.reason, "message": situation.failure.message}
    elif old.get("phase") == "Failed":
        status |= {key: old[key] for key in ("reason", "message") if key in old}
    refused = situation.failure is not None or old.get("phase") == "Failed"
    if refused and status["phase"] == "Failed" and not view.containers and not old.get("containerStatuses"):
        # Refused at the door (now, or by an earlier agent): there is nothing else to tell of it.
        start = old.get("startTime") or timestamp(situation.started_at)
        disrupted = _disrupted(old, situation)
        if disrupted:
            status["conditions"] = disrupted
        return status | {"startTime": start, "qosClass": old.get("qosClass") or resources.qos_class(pod)}
    status["conditions"] = _conditions(pod, view, status["phase"], init, main, situation)
    status["conditions"] += _disrupted(old, situation) + _resized(old, situation)
    if situation.host_ips:
        status["hostIP"] = situation.host_ips[0]
        status["hostIPs"] = [{"ip": ip} for ip in situation.host_ips]
    ips = situation.host_ips if host_network(pod) else view.ips
    if not ips and (situation.finished or pod["metadata"].get("deletionTimestamp")):
        ips = tuple(entry["ip"] for entry in old.get("podIPs") or ())
    if ips:
        status["podIP"] = ips[0]
        status["podIPs"] = [{"ip": ip} for ip in ips]
    status["startTime"] = old.get("startTime") or timestamp(situation.started_at)
    if init:
        status["initContainerStatuses"] = init
    status["containerStatuses"] = main
    if extra:
        status["ephemeralContainerStatuses"] = extra
    status["qosClass"] = old.get("qosClass") or resources.qos_class(pod)
    return status


def _share_messages(entries: list[Object]) -> None:
    """Cut the termination messages so that all of a pod's together have MESSAGES_BYTES at most."""
    most = MESSAGES_BYTES // max(1, len(entries))
    for entry in entries:
        for key in ("state", "lastState"):
            ended = entry.get(key, {}).get("terminated") or {}
            message = ended.get("message", "").encode()
            if len(message) > most:
                # The state may be the API's own from before: it is not changed in place.
                cut = message[:most].decode(errors="ignore")
                entry[key] = {**entry[key], "terminated": {**ended, "message": cut}}


def _final_phase(old: Object, view: PodView, situation: Situation, computed: str) -> str:
    """A pod that is over stays over; one that the node ended has failed; neither while something runs."""
    if old.get("phase") in ("Succeeded", "Failed"):
        return str(old["phase"])
    if situation.failure is not None:
        computed = "Failed"
    if computed in ("Succeeded", "Failed") and any(c.state == "RUNNING" for c in view.containers):
        return str(old.get("phase") or "Pending")
    return computed


def _container_status(
    pod: Object, view: PodView, container: Object, situation: Situation, key: str
) -> Object:
    name = container["name"]
    attempts = view.attempts(name)
    old = _old_status(pod, name, key)
    entry: Object = {"name": name, "state": {}, "lastState": {}, "ready": False, "restartCount": 0}
    entry |= situation.resources.get(name, {})
    entry |= {"image": container.get("image", ""), "imageID": ""}
    if container.get("volumeMounts"):
        entry["volumeMounts"] = [_volume_mount(mount) for mount in container["volumeMounts"]]
    latest = attempts[0] if attempts else None
    if latest is None:
        _without_attempt(pod, container, entry, old, situation, key)
        return entry
    entry["state"] = _state(latest)
    if len(attempts) > 1:
        entry["lastState"] = _state(attempts[1]) if attempts[1].state == "EXITED" else {}
    elif old is not None and latest.attempt > 0 and int(old.get("restartCount", 0)) == latest.attempt:
        entry["lastState"] = dict(old.get("lastState") or {})
    reason = situation.waiting.get(name)
    comes_back = situation.failure is None and (
        latest.id in situation.returning or _comes_back(pod, container, latest, key)
    )
    if latest.state == "EXITED" and reason is not None and comes_back:
        entry["lastState"] = entry["state"]
        entry["state"] = {"waiting": _waiting(reason)}
    elif latest.state in ("CREATED", "UNKNOWN"):
        entry["state"] = {"waiting": _waiting(reason or _default_waiting(pod))}
    entry["restartCount"] = latest.attempt
    entry["image"] = latest.image or entry["image"]
    entry["imageID"] = latest.image_id
    entry["containerID"] = f"{RUNTIME_NAME}://{latest.id}"
    if latest.user is not None:
        user = latest.user
        entry["user"] = {"linux": {"uid": user.uid, "gid": user.gid, "supplementalGroups": list(user.groups)}}
    health = situation.health.get(name, NO_HEALTH)
    running = latest.state == "RUNNING"
    entry["started"] = running and health.started
    sidecar = key == "initContainerStatuses" and is_restartable(container)
    if key == "containerStatuses" or sidecar:
        entry["ready"] = running and health.started and health.ready
    elif key == "initContainerStatuses":
        entry["ready"] = latest.state == "EXITED" and latest.exit_code == 0
    return entry


def _volume_mount(mount: Object) -> Object:
    """A mount as it is: for a read-only one it says whether what lies below it is read-only, too."""
    entry: Object = {"name": mount["name"], "mountPath": mount["mountPath"]}
    if mount.get("readOnly"):
        recursive = mount.get("recursiveReadOnly") in ("Enabled", "IfPossible")
        entry |= {"readOnly": True, "recursiveReadOnly": "Enabled" if recursive else "Disabled"}
    return entry


def _comes_back(pod: Object, container: Object, latest: ContainerView, key: str) -> bool:
    if key == "containerStatuses":
        return should_restart(pod, latest)
    if key == "initContainerStatuses":
        return is_restartable(container) or (restart_policy(pod) != "Never" and latest.exit_code != 0)
    return False


def _without_attempt(
    pod: Object, container: Object, entry: Object, old: Object | None, situation: Situation, key: str
) -> None:
    """Never started, or the runtime has forgotten it: then the API's memory counts."""
    entry["started"] = False
    reason = situation.waiting.get(container["name"])
    state = (old or {}).get("state") or {}
    if old is not None and "terminated" in state and reason is None:
        entry |= {
            k: old[k] for k in ("state", "lastState", "ready", "restartCount", "containerID") if k in old
        }
        entry |= {"image": old.get("image", entry["image"]), "imageID": old.get("imageID", "")}
        return
    entry["state"] = {"waiting": _waiting(reason or _default_waiting(pod))}
    if old is None:
        return
    entry["restartCount"] = int(old.get("restartCount", 0))
    entry["lastState"] = dict(old.get("lastState") or {})
    comes_back = not situation.finished and restart_policy(pod) != "Never"
    if "running" in state and not comes_back:
        entry["state"] = {"terminated": dict(LOST)}
    elif "running" in state:
        entry["lastState"] = {"terminated": dict(LOST)}
    elif "terminated" in state:
        entry["lastState"] = dict(state)
    if old.get("containerID") and comes_back and not pod["metadata"].get("deletionTimestamp"):
        entry["restartCount"] += 1  # once: the new entry has no containerID


def _default_waiting(pod: Object) -> Waiting:
    return Waiting("PodInitializing" if init_containers(pod) else "ContainerCreating")


def _waiting(reason: Waiting) -> Object:
    answer: Object = {"reason": reason.reason}
    if reason.message:
        answer["message"] = reason.message
    return answer


def _state(container: ContainerView) -> Object:
    if container.state == "RUNNING":
        return {"running": {"startedAt": timestamp(container.started_at or container.created_at)}}
    if container.state != "EXITED":
        return {"waiting": {"reason": "ContainerCreating"}}
    ended: Object = {
        "exitCode": container.exit_code if container.exit_code is not None else 137,
        "reason": container.reason or ("Completed" if container.exit_code == 0 else "Error"),
        "startedAt": timestamp(container.started_at or container.created_at),
        "finishedAt": timestamp(container.finished_at or container.created_at),
        "containerID": f"{RUNTIME_NAME}://{container.id}",
    }
    if container.message:
        ended["message"] = container.message
    return {"terminated": ended}


def _old_status(pod: Object, name: str, key: str) -> Object | None:
    for entry in (pod.get("status") or {}).get(key) or ():
        if entry.get("name") == name:
            return dict(entry)
    return None


def _conditions(
    pod: Object, view: PodView, pod_phase: str, init: list[Object], main: list[Object], situation: Situation
) -> list[Object]:
    sandbox = view.sandbox
    has_sandbox = sandbox is not None and sandbox.ready and (bool(sandbox.ips) or host_network(pod))
    specs = {c["name"]: c for c in init_containers(pod)}
    incomplete = []
    for entry in init:
        done = entry.get("started") if is_restartable(specs[entry["name"]]) else entry["ready"]
        if not done:
            incomplete.append(entry["name"])
    started = any("running" in e["state"] or e.get("containerID") for e in main)
    initialized: Object = {"status": "True"}
    if pod_phase == "Succeeded":
        initialized["reason"] = "PodCompleted"
    elif incomplete and not started:
        names = " ".join(incomplete)
        initialized = {
            "status": "False",
            "reason": "ContainersNotInitialized",
            "message": f"containers with incomplete status: [{names}]",
        }
    all_ready = _containers_ready(pod_phase, [*(e for e in init if is_restartable(specs[e["name"]])), *main])
    wanted = {
        "PodReadyToStartContainers": {"status": "True" if has_sandbox else "False"},
        "Initialized": initialized,
        "Ready": _with_gates(pod, all_ready),
        "ContainersReady": all_ready,
        "PodScheduled": {"status": "True"},
    }
    old = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
    return [_condition(kind, wanted[kind], old.get(kind), situation.now) for kind in OURS]


def _resized(old: Object, situation: Situation) -> list[Object]:
    known = {c["type"]: c for c in old.get("conditions") or ()}
    return [
        _condition(kind, value, known.get(kind), situation.now)
        for kind, value in conditions_of_resize(situation.resize).items()
    ]


def _disrupted(old: Object, situation: Situation) -> list[Object]:
    """Tells a Job that it was not the pod's own fault."""
    if not situation.disruption:
        return []
    value = {"status": "True", "reason": "TerminationByKubelet", "message": situation.disruption}
    known = {c["type"]: c for c in old.get("conditions") or ()}
    return [_condition("DisruptionTarget", value, known.get("DisruptionTarget"), situation.now)]


def _condition(kind: str, value: Object, old: Mapping[str, Any] | None, now: float) -> Object:
    since = timestamp(now)
    if old is not None and old.get("status") == value["status"] and old.get("lastTransitionTime"):
        since = old["lastTransitionTime"]
    return {"type": kind, "lastProbeTime": None, "lastTransitionTime": since, **value}


def _containers_ready(pod_phase: str, entries: list[Object]) -> Object:
    if pod_phase in ("Succeeded", "Failed"):
        return {"status": "False", "reason": "PodCompleted" if pod_phase == "Succeeded" else "PodFailed"}
    unready = [entry["name"] for entry in entries if not entry["ready"]]
    if unready:
        message = f"containers with unready status: [{' '.join(unready)}]"
        return {"status": "False", "reason": "ContainersNotReady", "message": message}
    return {"status": "True"}


def _with_gates(pod: Object, ready: Object) -> Object:
    """Ready also needs every readiness gate's condition."""
    if ready["status"] != "True":
        return ready
    present = {c["type"]: c.get("status") for c in (pod.get("status") or {}).get("conditions") or ()}
    missing = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        if kind not in present:
            missing.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif present[kind] != "True":
            missing.append(f'the status of pod readiness gate "{kind}" is not "True", but {present[kind]}')
    if missing:
        return {"status": "False", "reason": "ReadinessGatesNotReady", "message": ", ".join(missing)}
    return ready


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """A strategic merge patch for /status that turns `old` into `new`; {} when they say the same.

    Conditions merge by type, so those of other writers survive. podIPs and hostIPs merge by ip upstream:
    addresses that are gone must be deleted one by one.
    """
    patch: Object = {}
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if before == after or key in ("observedGeneration", "resize", "nominatedNodeName"):
            continue
        if key == "conditions":
            known = {c["type"]: c for c in before or ()}
            changed = [
                _without_old_reason(known.get(c["type"]), c)
                for c in after or ()
                if not _same_condition(known.get(c["type"]), c)
            ]
            present = {c["type"] for c in after or ()}
            # A resize that is over leaves no condition; the others only change.
            over = [kind for kind in (PENDING, IN_PROGRESS) if kind in known and kind not in present]
            changed += [{"$patch": "delete", "type": kind} for kind in over]
            if changed:
                patch[key] = changed
        elif key in ("podIPs", "hostIPs"):
            kept = {entry["ip"] for entry in after or ()}
            gone = [{"$patch": "delete", "ip": e["ip"]} for e in before or () if e["ip"] not in kept]
            patch[key] = [*(after or []), *gone]
        else:
            patch[key] = after
    return patch


def contradicted(shown: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether the API has another value of a condition than we told it. Other writers' conditions, and fields
    that the API fills in, are no contradiction: answering those would never end."""
    told = {c["type"]: c["status"] for c in said.get("conditions") or ()}
    return any(told.get(c["type"], c["status"]) != c["status"] for c in shown.get("conditions") or ())


def _without_old_reason(old: Mapping[str, Any] | None, new: Object) -> Object:
    """A merge keeps what the patch does not name: a reason that holds no more has to be taken away."""
    return {**{key: None for key in ("reason", "message") if (old or {}).get(key) and key not in new}, **new}


def _same_condition(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    keys = ("status", "reason", "message", "lastTransitionTime")
    return old is not None and all(old.get(key) == new.get(key) for key in keys)
