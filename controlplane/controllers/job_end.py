"""When a Job has ended, and how. Pure.

The end comes in two steps: FailureTarget or SuccessCriteriaMet says that it is decided, and when the last pod
is gone Failed or Complete says that it is over. Source: upstream's syncJob, KEP-3939 and KEP-3998.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.controllers import job_indexes, job_policies
from controlplane.controllers.base import Object
from controlplane.controllers.job_pods import Tally, phase
from controlplane.controllers.stamps import seconds

DECIDED = {"FailureTarget": "Failed", "SuccessCriteriaMet": "Complete"}


@dataclass(frozen=True, slots=True)
class End:
    """The condition that decides the Job's end: FailureTarget or SuccessCriteriaMet."""

    kind: str
    reason: str
    message: str


def condition(job: Object, kind: str) -> Object | None:
    """The Job's condition of that type if it is True."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)


def over(job: Object) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def decide(job: Object, pods: Sequence[Object], counted: Tally, now: float) -> End | None:
    """How the Job ends, or None while it goes on. What was decided once stays."""
    for kind in DECIDED:
        if found := condition(job, kind):
            return End(kind, found["reason"], found.get("message", ""))
    return (
        _by_failed_pod(job, pods)
        or _by_limits(job, pods, counted)
        or _by_deadline(job, now)
        or _by_indexes(job, counted)
        or _by_success_policy(job, counted)
        or _by_completions(job, counted)
    )


def _by_success_policy(job: Object, counted: Tally) -> End | None:
    text = job_policies.success(job, counted.completed)
    return End("SuccessCriteriaMet", "SuccessPolicy", text) if text else None


def _by_failed_pod(job: Object, pods: Sequence[Object]) -> End | None:
    texts = (job_policies.message(job, pod) for pod in pods)
    text = next((text for text in texts if text), None)
    return End("FailureTarget", "PodFailurePolicy", text) if text else None


def _by_limits(job: Object, pods: Sequence[Object], counted: Tally) -> End | None:
    limit = int(job["spec"].get("backoffLimit", 6))
    failed = counted.failed + len(counted.new_failed)
    restarts = _restarts(job, pods)
    if failed > limit or (restarts >= limit if limit else restarts > 0):
        return End("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    return None


def _restarts(job: Object, pods: Sequence[Object]) -> int:
    """Restarts of containers that the node starts again by itself; 0 where it does not."""
    if job["spec"]["template"]["spec"].get("restartPolicy") != "OnFailure":
        return 0
    total = 0
    for pod in pods:
        if phase(pod) not in ("Running", "Pending"):
            continue
        status = pod.get("status") or {}
        for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            total += int(entry.get("restartCount", 0))
    return total


def deadline(job: Object) -> float | None:
    """When the Job has been active for too long (epoch seconds); None without such a limit."""
    limit, started = job["spec"].get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
    if limit is None or not started or job["spec"].get("suspend"):
        return None
    return seconds(started) + float(limit)


def _by_deadline(job: Object, now: float) -> End | None:
    at = deadline(job)
    if at is None or now < at:
        return None
    return End("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")


def _by_indexes(job: Object, counted: Tally) -> End | None:
    spec, lost = job["spec"], len(counted.failed_indexes)
    if not job_indexes.indexed(job) or not lost:
        return None
    most = spec.get("maxFailedIndexes")
    if most is not None and lost > int(most):
        text = "Job has exceeded the specified maximal number of failed indexes"
        return End("FailureTarget", "MaxFailedIndexesExceeded", text)
    if lost + len(counted.completed) >= int(spec["completions"]):
        return End("FailureTarget", "FailedIndexes", "Job has failed indexes")
    return None


def _by_completions(job: Object, counted: Tally) -> End | None:
    wanted = job["spec"].get("completions")
    succeeded = counted.succeeded + len(counted.new_succeeded)
    if wanted is None:
        done = succeeded > 0 and not counted.active
    else:
        done = succeeded >= int(wanted) and not counted.active
    if not done:
        return None
    return End("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
