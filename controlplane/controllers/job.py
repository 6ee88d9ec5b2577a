"""Runs Jobs: makes pods until enough of them succeeded, and says how it ended.

The decisions are in job_pods.py and job_end.py. Every write of a status carries the resourceVersion that it
was decided upon, and nothing is decided while the copy is older than the last write: so no pod counts twice.
Source: upstream's pkg/controller/job/job_controller.go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from controlplane.controllers import job_end, job_indexes, job_pods
from controlplane.controllers.base import (
    Object,
    SharedInformers,
    controller_of,
    key_of,
    split_key,
)
from controlplane.controllers.job_pods import FINALIZER, Tally
from controlplane.controllers.pod_keeper import PodKeeper
from controlplane.controllers.pod_ownership import claim, selector_of
from kubeclient.errors import ApiError, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import JOBS, PODS
from kubeclient.rest import RestClient

MANAGER = "kubernetes.io/job-controller"
JOB_NAME = "batch.kubernetes.io/job-name"
BEHIND_SECONDS = 0.01


class Jobs(PodKeeper):
    name, kind = "job", "Job"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._written: dict[str, int] = {}  # Job uid → resourceVersion of our last write
        self._jobs = informers.of(JOBS, self._on_job)
        self._pods = informers.of(PODS, self._on_pod)

    def _on_job(self, kind: str, new: Object, old: Object | None) -> None:
        if kind == "DELETED":
            self._written.pop(new["metadata"]["uid"], None)
            self._expectations.forget(key_of(new))
        self.enqueue(kind, new)

    def _on_pod(self, kind: str, new: Object, old: Object | None) -> None:
        reference, namespace = controller_of(new), new["metadata"]["namespace"]
        if reference is None:
            name = (new["metadata"].get("labels") or {}).get(JOB_NAME, "")
            if kind != "DELETED" and (name or job_pods.has_finalizer(new)):
                self.queue.add(f"{namespace}/{name}")
            return
        self._seen(kind, new)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        job = self._jobs.get(name, namespace)
        self._release_orphans(namespace or "", name, job)
        if job is None or job["spec"].get("managedBy", MANAGER) != MANAGER:
            return
        if int(job["metadata"]["resourceVersion"]) < self._written.get(job["metadata"]["uid"], 0):
            self.queue.add_after(key, BEHIND_SECONDS)
            return
        pods = claim(self.client, job, JOBS, self._pods.list(), finalizer=FINALIZER)
        if job_end.over(job) or job["metadata"].get("deletionTimestamp"):
            self._release(job_pods.to_release(job, pods, over=True))
            return
        now = self._clock()
        counted = job_pods.tally(job, pods)
        end = job_end.decide(job, pods, counted, now)
        change, problem = 0, None
        if end is None and self._expectations.fulfilled(key):
            change, problem = self._manage(job, key, counted, pods, now)
        written = self._write_status(job, _status(job, counted, end, change, now))
        if end is not None:
            for pod in counted.active:
                self._delete(job, key, pod)
        self._tell(job, written)
        self._release(job_pods.to_release(written, pods, job_end.over(written)))
        if problem is not None:
            raise problem  # now that what there is was counted
        if end is None and (at := job_end.deadline(written)) is not None:
            self.queue.add_after(key, max(0.0, at - now))

    # pods

    def _manage(
        self, job: Object, key: str, counted: Tally, pods: Sequence[Object], now: float
    ) -> tuple[int, ApiError | None]:
        """Make or delete what is missing or too much; by how many the active pods have changed, and what the
        API refused."""
        doomed = job_pods.too_many(job, counted, now)
        if doomed:
            self._expectations.expect(key, deletions=[pod["metadata"]["uid"] for pod in doomed])
            try:
                for pod in doomed:
                    # What is not wanted any more has not failed: without the finalizer it is not counted.
                    self._release([pod] if job_pods.has_finalizer(pod) else [])
                    self._delete(job, key, pod)
            except ApiError:
                self._expectations.forget(key)  # the others' deletions will not be seen
                raise
            return -len(doomed), None
        missing = job_pods.wanted(job, counted) - len(counted.active)
        if job["spec"].get("podReplacementPolicy") == "Failed":
            missing -= counted.terminating
        if missing <= 0:
            return 0, None
        bodies, wait = job_pods.next_pods(job, counted, pods, missing, now)
        if wait:
            self.queue.add_after(key, wait)
        self._expectations.expect(key, creations=len(bodies))
        return self._create(job, key, bodies)

    def _release(self, pods: Sequence[Object]) -> None:
        """Take our finalizer off these pods."""
        for pod in pods:
            metadata = pod["metadata"]
            rest = [name for name in metadata["finalizers"] if name != FINALIZER]
            body = {
                "metadata": {
                    "uid": metadata["uid"],
                    "resourceVersion": metadata["resourceVersion"],
                    "finalizers": rest,
                }
            }
            try:
                self.client.patch(PODS, metadata["name"], body, metadata["namespace"], kind="merge")
            except NotFound:
                continue

    def _release_orphans(self, namespace: str, name: str, job: Object | None) -> None:
        """Pods whose Job is gone must not be held by it."""
        uid = job["metadata"]["uid"] if job is not None else None
        orphans = []
        for pod in self._pods.list():
            if pod["metadata"]["namespace"] != namespace or not job_pods.has_finalizer(pod):
                continue
            reference = controller_of(pod)
            if reference is None:
                lost = not self._may_be_adopted(pod)
            else:
                lost = (reference["kind"], reference["name"]) == ("Job", name) and reference["uid"] != uid
            if lost:
                orphans.append(pod)
        self._release(orphans)

    def _may_be_adopted(self, pod: Object) -> bool:
        labels, namespace = pod["metadata"].get("labels") or {}, pod["metadata"]["namespace"]
        return any(
            selector_of(job).matches(labels)
            for job in self._jobs.list()
            if job["metadata"]["namespace"] == namespace and not job["metadata"].get("deletionTimestamp")
        )

    # status

    def _write_status(self, job: Object, status: Object) -> Object:
        """The Job as it is written now."""
        if (job.get("status") or {}) == status:
            return job
        written = self.client.update(JOBS, job | {"status": status}, subresource="status")
        self._written[job["metadata"]["uid"]] = int(written["metadata"]["resourceVersion"])
        return written

    def _tell(self, job: Object, written: Object) -> None:
        if found := job_end.condition(written, "Complete"):
            self.recorder.event(job, "Normal", "Completed", "Job completed")
        elif found := job_end.condition(written, "Failed"):
            self.recorder.event(job, "Warning", found["reason"], found.get("message", ""))
        suspended = bool(job_end.condition(written, "Suspended"))
        if suspended != bool(job_end.condition(job, "Suspended")):
            word = "Suspended" if suspended else "Resumed"
            self.recorder.event(job, "Normal", word, f"Job {word.lower()}")


def _status(job: Object, counted: Tally, end: job_end.End | None, change: int, now: float) -> Object:
    """The status that the Job should show; `change` is by how many pods it has just grown."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    old, suspended = job.get("status") or {}, bool(job["spec"].get("suspend"))
    counts = {
        "active": len(counted.active) + change,
        "ready": counted.ready,
        "terminating": counted.terminating,
        "succeeded": counted.succeeded,
        "failed": counted.failed,
    }
    status: Object = {name: n for name, n in counts.items() if n or name in ("ready", "terminating")}
    uncounted = {"succeeded": [*counted.new_succeeded], "failed": [*counted.new_failed]}
    status["uncountedTerminatedPods"] = {name: uids for name, uids in uncounted.items() if uids}
    if job_indexes.indexed(job):
        if counted.completed:
            status["completedIndexes"] = job_indexes.write(counted.completed)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            status["failedIndexes"] = job_indexes.write(counted.failed_indexes)
    if not suspended:
        status["startTime"] = old.get("startTime", stamp)
    conditions = _conditions(job, counted, end, stamp)
    if conditions:
        status["conditions"] = conditions
    if any(c["type"] == "Complete" and c["status"] == "True" for c in conditions):
        status["completionTime"] = stamp
    return status


def _conditions(job: Object, counted: Tally, end: job_end.End | None, stamp: str) -> list[Object]:
    found = {c["type"]: c for c in (job.get("status") or {}).get("conditions") or ()}

    def put(kind: str, status: str, reason: str, message: str) -> None:
        if (found.get(kind) or {}).get("status") != status:
            body = {"type": kind, "status": status, "reason": reason, "message": message}
            found[kind] = body | {"lastProbeTime": stamp, "lastTransitionTime": stamp}

    if end is not None:
        put(end.kind, "True", end.reason, end.message)
        # The end is said when nothing runs and nothing is left to be counted.
        settled = not counted.active and not counted.terminating
        if settled and not counted.new_succeeded and not counted.new_failed:
            put(job_end.DECIDED[end.kind], "True", end.reason, end.message)
    elif job["spec"].get("suspend"):
        put("Suspended", "True", "JobSuspended", "Job suspended")
    elif "Suspended" in found:
        put("Suspended", "False", "JobResumed", "Job resumed")
    return [*found.values()]
