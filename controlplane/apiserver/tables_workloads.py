"""Rows of what makes pods: Deployments, ReplicaSets, Jobs and their siblings, and of autoscalers."""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.tables_text import (
    NONE,
    UNKNOWN,
    UNSET,
    age,
    columns,
    container_names,
    epoch,
    human_duration,
    labels,
    name,
    selector,
    since,
    true_false,
)

Object = dict[str, Any]

DEPLOYMENT = columns("Name|Ready|Up-to-date|Available|Age|Containers*|Images*|Selector*")
REPLICA_SET = columns("Name|Desired:integer|Current:integer|Ready:integer|Age|Containers*|Images*|Selector*")
STATEFUL_SET = columns("Name|Ready|Age|Containers*|Images*")
DAEMON_SET = columns(
    "Name|Desired:integer|Current:integer|Ready:integer|Up-to-date:integer|Available:integer|Node Selector"
    "|Age|Containers*|Images*|Selector*"
)
JOB = columns("Name|Status|Completions|Duration|Age|Containers*|Images*|Selector*")
CRON_JOB = columns(
    "Name|Schedule|Timezone|Suspend|Active:integer|Last Schedule|Age|Containers*|Images*|Selector*"
)
SCALE = columns("Name|Desired:integer|Available:integer|Age")
REVISION = columns("Name|Controller|Revision|Age")
AUTOSCALER = columns("Name|Reference|Targets|MinPods|MaxPods|Replicas|Age")

_JOB_CONDITIONS = (
    ("Complete", "Complete"),
    ("Failed", "Failed"),
    ("Suspended", "Suspended"),
    ("FailureTarget", "FailureTarget"),
    ("SuccessCriteriaMet", "SuccessCriteriaMet"),
)


def _parts(obj: Object) -> tuple[Object, Object, str, str]:
    spec = obj.get("spec") or {}
    names, images = container_names((spec.get("template") or {}).get("spec") or {})
    return spec, obj.get("status") or {}, names, images


def deployment(obj: Object, now: float) -> list[Any]:
    spec, status, names, images = _parts(obj)
    return [
        name(obj),
        f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}",
        status.get("updatedReplicas") or 0,
        status.get("availableReplicas") or 0,
        age(obj, now),
        names,
        images,
        selector(spec.get("selector")),
    ]


def replica_set(obj: Object, now: float) -> list[Any]:
    """Also ReplicationControllers, whose selector is a plain map."""
    spec, status, names, images = _parts(obj)
    found = spec.get("selector") or {}
    plain = obj.get("kind") == "ReplicationController"
    return [
        name(obj),
        spec.get("replicas") or 0,
        status.get("replicas") or 0,
        status.get("readyReplicas") or 0,
        age(obj, now),
        names,
        images,
        labels(found) if plain else selector(found),
    ]


def stateful_set(obj: Object, now: float) -> list[Any]:
    spec, status, names, images = _parts(obj)
    ready = f"{status.get('readyReplicas') or 0}/{spec.get('replicas') or 0}"
    return [name(obj), ready, age(obj, now), names, images]


def daemon_set(obj: Object, now: float) -> list[Any]:
    spec, status, names, images = _parts(obj)
    counts = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled")
    return [
        name(obj),
        *(status.get(key) or 0 for key in counts),
        status.get("numberAvailable") or 0,
        labels(((spec.get("template") or {}).get("spec") or {}).get("nodeSelector")),
        age(obj, now),
        names,
        images,
        selector(spec.get("selector")),
    ]


def job(obj: Object, now: float) -> list[Any]:
    spec, status, names, images = _parts(obj)
    succeeded = status.get("succeeded") or 0
    if spec.get("completions") is not None:
        done = f"{succeeded}/{spec['completions']}"
    elif (spec.get("parallelism") or 0) > 1:
        done = f"{succeeded}/1 of {spec['parallelism']}"
    else:
        done = f"{succeeded}/1"
    started, ended = epoch(status.get("startTime")), epoch(status.get("completionTime"))
    duration = "" if started is None else human_duration((now if ended is None else ended) - started)
    return [
        name(obj),
        _job_status(obj, status),
        done,
        duration,
        age(obj, now),
        names,
        images,
        selector(spec.get("selector")),
    ]


def _job_status(obj: Object, status: Object) -> str:
    true = {item.get("type") for item in status.get("conditions") or () if item.get("status") == "True"}
    if not true & {"Complete", "Failed"} and obj["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return next((word for kind, word in _JOB_CONDITIONS if kind in true), "Running")


def cron_job(obj: Object, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    inner = (spec.get("jobTemplate") or {}).get("spec") or {}
    names, images = container_names((inner.get("template") or {}).get("spec") or {})
    last = status.get("lastScheduleTime")
    return [
        name(obj),
        spec.get("schedule") or "",
        spec.get("timeZone") or NONE,
        true_false(spec.get("suspend")),
        len(status.get("active") or ()),
        since(last, now) if last else NONE,
        age(obj, now),
        names,
        images,
        selector(inner.get("selector")),
    ]


def scale(obj: Object, now: float) -> list[Any]:
    replicas = [(obj.get(part) or {}).get("replicas") or 0 for part in ("spec", "status")]
    return [name(obj), *replicas, age(obj, now)]


def revision(obj: Object, now: float) -> list[Any]:
    owners = obj["metadata"].get("ownerReferences") or ()
    owner = next((item for item in owners if item.get("controller")), None)
    shown = NONE
    if owner is not None:
        group = owner["apiVersion"].rpartition("/")[0]
        kind = owner["kind"].lower()
        shown = f"{kind}.{group}/{owner['name']}" if group else f"{kind}/{owner['name']}"
    return [name(obj), shown, obj.get("revision") or 0, age(obj, now)]


def autoscaler(obj: Object, now: float) -> list[Any]:
    """Both versions; v1 only knows a percentage of CPU."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    target = spec.get("scaleTargetRef") or {}
    low = spec.get("minReplicas")
    return [
        name(obj),
        f"{target.get('kind') or ''}/{target.get('name') or ''}",
        _targets(spec, status),
        UNSET if low is None else str(low),
        spec.get("maxReplicas") or 0,
        status.get("currentReplicas") or 0,
        age(obj, now),
    ]


def _targets(spec: Object, status: Object) -> str:
    if "targetCPUUtilizationPercentage" in spec:
        current = status.get("currentCPUUtilizationPercentage")
        shown = UNKNOWN if current is None else f"{current}%"
        return f"cpu: {shown}/{spec['targetCPUUtilizationPercentage']}%"
    wanted = spec.get("metrics") or ()
    if not wanted:
        return NONE
    current_by_name = {
        (item.get("resource") or {}).get("name"): (item.get("resource") or {}).get("current") or {}
        for item in status.get("currentMetrics") or ()
    }
    listed = []
    for metric in wanted[:2]:
        source = metric.get("resource") or metric.get("containerResource") or {}
        target, current = source.get("target") or {}, current_by_name.get(source.get("name"), {})
        label = f"{source['name']}: " if source.get("name") else ""
        if target.get("averageUtilization") is not None:
            have = current.get("averageUtilization")
            listed.append(f"{label}{UNKNOWN if have is None else f'{have}%'}/{target['averageUtilization']}%")
        else:
            listed.append(
                f"{label}{current.get('averageValue') or UNKNOWN}/{target.get('averageValue') or NONE}"
            )
    more = f" + {len(wanted) - 2} more..." if len(wanted) > 2 else ""
    return ", ".join(listed) + more
