"""What the pods of a Job come to, and which are to be made or to go. Pure.

Every pod carries a finalizer, so that none is gone before its end was counted: first the ends are written
into the Job's status (by uid, or by index), then the finalizers go, then the uids are replaced by numbers.
Whoever is killed in between goes on from what the status says. Source: upstream's pkg/controller/job
(job_controller.go, indexed_job_utils.go, backoff_utils.go).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.controllers import job_indexes, job_policies
from controlplane.controllers.base import Object
from controlplane.controllers.pod_ownership import pod_from_template
from controlplane.controllers.pod_readiness import is_active, is_ready
from controlplane.controllers.replicaset import deletion_order
from controlplane.controllers.stamps import seconds
from kubeclient.resources import JOBS

FINALIZER = "batch.kubernetes.io/job-tracking"
FAILURES = "batch.kubernetes.io/job-index-failure-count"
FIRST_DELAY, LONGEST_DELAY = 10.0, 600.0
"""Seconds after a failed pod until the next one is made; doubled with each failure in a row."""
AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Tally:
    """A Job's pods, counted. `succeeded` and `failed` hold what the status counted, and what is new.

    `new_succeeded` and `new_failed` are uids that the status does not count by number yet.
    """

    active: tuple[Object, ...]
    terminating: int
    succeeded: int
    failed: int
    new_succeeded: tuple[str, ...]
    new_failed: tuple[str, ...]
    completed: frozenset[int]
    failed_indexes: frozenset[int]

    @property
    def ready(self) -> int:
        return sum(is_ready(pod) for pod in self.active)


def tally(job: Object, pods: Sequence[Object]) -> Tally:
    """Count pods on top of what the status has counted already."""
    status = job.get("status") or {}
    uncounted = status.get("uncountedTerminatedPods") or {}
    tracked = {pod["metadata"]["uid"] for pod in pods if has_finalizer(pod)}
    succeeded, failed = int(status.get("succeeded", 0)), int(status.get("failed", 0))
    known_succeeded = list(uncounted.get("succeeded") or [])
    known_failed = list(uncounted.get("failed") or [])
    # The finalizers of these are off: from now on the number stands for them.
    if not job_indexes.indexed(job):
        succeeded += sum(uid not in tracked for uid in known_succeeded)
    failed += sum(uid not in tracked for uid in known_failed)
    new_succeeded = [uid for uid in known_succeeded if uid in tracked]
    new_failed = [uid for uid in known_failed if uid in tracked]
    # Numbers that an elastic Job has no more do not count.
    there = range(int(job["spec"].get("completions") or 0))
    completed = {n for n in job_indexes.read(status.get("completedIndexes")) if n in there}
    lost = {n for n in job_indexes.read(status.get("failedIndexes")) if n in there}
    for pod in pods:
        uid = pod["metadata"]["uid"]
        if not has_finalizer(pod) or uid in new_succeeded or uid in new_failed:
            continue
        if phase(pod) == "Succeeded":
            index = job_indexes.of(pod)
            if not job_indexes.indexed(job):
                new_succeeded.append(uid)
            elif index is not None and index in there:
                completed.add(index)
        elif failed_for_good(job, pod) and job_policies.counts(job, pod):
            new_failed.append(uid)
            if _index_lost(job, pod):
                lost.add(job_indexes.of(pod) or 0)
    if job_indexes.indexed(job):
        succeeded = len(completed)
        new_succeeded = []
    return Tally(
        tuple(pod for pod in pods if is_active(pod)),
        sum(bool(pod["metadata"].get("deletionTimestamp")) and not _over(pod) for pod in pods),
        succeeded,
        failed,
        tuple(new_succeeded),
        tuple(new_failed),
        frozenset(completed),
        frozenset(lost - completed),
    )


def failed_for_good(job: Object, pod: Object) -> bool:
    """Whether the pod counts as failed; one that is ending does unless only ended pods are replaced."""
    if phase(pod) == "Failed":
        return True
    waits = job["spec"].get("podReplacementPolicy") == "Failed" or "podFailurePolicy" in job["spec"]
    # One that no node has is said to have ended by nobody.
    waits = waits and bool(pod["spec"].get("nodeName"))
    return bool(pod["metadata"].get("deletionTimestamp")) and phase(pod) != "Succeeded" and not waits


def _index_lost(job: Object, pod: Object) -> bool:
    """Whether the pod's index has failed as often as it may, or a rule says that it is lost."""
    limit = job["spec"].get("backoffLimitPerIndex")
    if limit is None or job_indexes.of(pod) is None:
        return False
    return job_policies.action(job, pod) == "FailIndex" or failures_of_index(pod) >= int(limit)


def failures_of_index(pod: Object) -> int:
    """How many pods of its index had failed before this one."""
    return int((pod["metadata"].get("annotations") or {}).get(FAILURES, "0"))


def to_release(job: Object, pods: Sequence[Object], over: bool) -> list[Object]:
    """Pods whose end the status (as it is written now) has counted: their finalizers may go.

    `over`: the Job has ended; then nothing is counted any more.
    """
    uncounted = (job.get("status") or {}).get("uncountedTerminatedPods") or {}
    counted = {*(uncounted.get("succeeded") or ()), *(uncounted.get("failed") or ())}
    completed = job_indexes.read((job.get("status") or {}).get("completedIndexes"))
    found = []
    for pod in pods:
        if not has_finalizer(pod):
            continue
        spent = phase(pod) == "Succeeded" and job_indexes.indexed(job)
        index = job_indexes.of(pod)
        useless = index is None or index >= int(job["spec"].get("completions") or 0)
        ignored = failed_for_good(job, pod) and not job_policies.counts(job, pod)
        if (
            pod["metadata"]["uid"] in counted
            or (spent and (index in completed or useless))
            or ignored
            or (over and (_over(pod) or pod["metadata"].get("deletionTimestamp")))
        ):
            found.append(pod)
    return found


def wanted(job: Object, counted: Tally) -> int:
    """How many pods should be active now."""
    spec = job["spec"]
    parallel = int(spec.get("parallelism", 1))
    if spec.get("suspend"):
        return 0
    if spec.get("completions") is None:
        # One that succeeded says that the work is done: the others finish, no new one starts.
        ended = counted.succeeded + len(counted.new_succeeded)
        return min(parallel, len(counted.active)) if ended else parallel
    left = int(spec["completions"]) - counted.succeeded - len(counted.new_succeeded)
    left -= len(counted.failed_indexes)
    return max(0, min(parallel, left))


def too_many(job: Object, counted: Tally, now: float) -> list[Object]:
    """Active pods that are not wanted: twins and finished numbers first, then as ReplicaSets choose."""
    doomed, kept = [], list(counted.active)
    if job_indexes.indexed(job):
        kept = []
        seen: set[int] = set()
        over = counted.completed | counted.failed_indexes
        for pod in sorted(counted.active, key=lambda p: deletion_order(p, now), reverse=True):
            index = job_indexes.of(pod)
            if index is None or index in seen or index in over or index >= int(job["spec"]["completions"]):
                doomed.append(pod)
            else:
                seen.add(index)
                kept.append(pod)
    excess = len(kept) - wanted(job, counted)
    if excess > 0:
        doomed += sorted(kept, key=lambda p: deletion_order(p, now))[:excess]
    return doomed


def free_indexes(job: Object, counted: Tally, pods: Sequence[Object], count: int) -> list[int]:
    """The first `count` numbers that have neither ended nor a pod that holds them."""
    held = {job_indexes.of(pod) for pod in counted.active}
    if job["spec"].get("podReplacementPolicy") == "Failed":
        held |= {job_indexes.of(p) for p in pods if p["metadata"].get("deletionTimestamp") and not _over(p)}
    taken = held | counted.completed | counted.failed_indexes
    free = (number for number in range(int(job["spec"]["completions"])) if number not in taken)
    return [number for _, number in zip(range(count), free, strict=False)]


def next_pods(
    job: Object, counted: Tally, pods: Sequence[Object], missing: int, now: float
) -> tuple[list[Object], float]:
    """The pods to make now, at most `missing`, and after how many seconds to look again (0: never)."""
    missing = min(missing, AT_ONCE)
    per_index = job["spec"].get("backoffLimitPerIndex") is not None
    wait = 0.0 if per_index else hold_back(pods, now)
    if wait:
        return [], wait
    if not job_indexes.indexed(job):
        return [make_pod(job, None) for _ in range(missing)], 0.0
    bodies, waits = [], []
    for index in free_indexes(job, counted, pods, missing):
        former = [pod for pod in pods if job_indexes.of(pod) == index]
        hold = hold_back(former, now) if per_index else 0.0
        if hold:
            waits.append(hold)
            continue
        failed = [
            failures_of_index(pod) + job_policies.counts(job, pod)
            for pod in former
            if failed_for_good(job, pod)
        ]
        bodies.append(make_pod(job, index, max(failed, default=0)))
    return bodies, min(waits, default=0.0)


def hold_back(pods: Sequence[Object], now: float) -> float:
    """Seconds until the next pod may be made: longer with each failure since the last success."""
    success = max((ended_at(pod) for pod in pods if phase(pod) == "Succeeded"), default=0.0)
    ends = [ended_at(pod) for pod in pods if phase(pod) == "Failed"]
    failures = sorted(end for end in ends if end > success)
    return max(0.0, failures[-1] + delay(len(failures)) - now) if failures else 0.0


def delay(failures: int) -> float:
    """Seconds between the last of so many failures in a row and the next pod."""
    return min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures - 1, 10)) if failures > 0 else 0.0


def ended_at(pod: Object) -> float:
    """When the pod's last container ended (epoch seconds), or what comes nearest to that: a pod that its node
    refused has no containers."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    ends = [
        seconds(entry["state"]["terminated"]["finishedAt"])
        for entry in status.get("containerStatuses") or []
        if ((entry.get("state") or {}).get("terminated") or {}).get("finishedAt")
    ]
    if ends:
        return max(ends)
    unready = (
        condition.get("lastTransitionTime")
        for condition in status.get("conditions") or []
        if condition["type"] == "Ready" and condition["status"] == "False"
    )
    stamp = next(unready, None) or metadata.get("deletionTimestamp") or metadata.get("creationTimestamp")
    return seconds(stamp) if stamp else 0.0


def make_pod(job: Object, index: int | None, failures: int = 0) -> Object:
    """A pod of the Job; with a number it knows it by annotation, label, environment and host name."""
    made = pod_from_template(job["spec"]["template"], job, JOBS)
    metadata, spec = made["metadata"], made["spec"]
    metadata["finalizers"] = [*(metadata.get("finalizers") or []), FINALIZER]
    if index is None:
        return made
    name = job["metadata"]["name"]
    metadata["generateName"] = f"{name}-{index}-"
    number = {job_indexes.ANNOTATION: str(index)}
    metadata["labels"] = {**(metadata.get("labels") or {}), **number}
    if job["spec"].get("backoffLimitPerIndex") is not None:
        number[FAILURES] = str(failures)
    metadata["annotations"] = {**(metadata.get("annotations") or {}), **number}
    spec["hostname"] = f"{name}-{index}"[:63].rstrip("-.")
    source = {"fieldRef": {"fieldPath": f"metadata.annotations['{job_indexes.ANNOTATION}']"}}
    for container in [*spec["containers"], *(spec.get("initContainers") or [])]:
        present = container.get("env") or []
        if all(variable["name"] != "JOB_COMPLETION_INDEX" for variable in present):
            container["env"] = [*present, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]
    return made


def has_finalizer(pod: Object) -> bool:
    return FINALIZER in (pod["metadata"].get("finalizers") or [])


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def _over(pod: Object) -> bool:
    return phase(pod) in ("Succeeded", "Failed")
