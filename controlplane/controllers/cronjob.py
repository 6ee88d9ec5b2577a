"""Starts the Jobs of CronJobs when they are due, and clears their history.

Source: upstream's pkg/controller/cronjob/cronjob_controllerv2.go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from controlplane.controllers import cron_runs, job_end
from controlplane.controllers.base import Controller, Object, SharedInformers, controller_of, split_key
from kubeclient.errors import AlreadyExists, ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import CRON_JOBS, JOBS
from kubeclient.rest import RestClient


class CronJobs(Controller):
    name = "cronjob"

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
        self._cron_jobs = informers.of(CRON_JOBS, self.enqueue)
        self._jobs = informers.of(JOBS, self._on_job)

    def _on_job(self, kind: str, new: Object, old: Object | None) -> None:
        owner = controller_of(new)
        if owner is not None and owner["kind"] == "CronJob":
            self.queue.add(f"{new['metadata']['namespace']}/{owner['name']}")

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        found = self._cron_jobs.get(name, namespace)
        if found is None:
            return
        uid = found["metadata"]["uid"]
        jobs = [job for job in self._jobs.list() if (controller_of(job) or {}).get("uid") == uid]
        status = self._reviewed(found, jobs)
        if not found["metadata"].get("deletionTimestamp") and not found["spec"].get("suspend"):
            status = self._start_due(found, key, jobs, status)
        self._write_status(found, status)
        for job in cron_runs.surplus(found, jobs):
            self._delete(found, job)

    def _reviewed(self, found: Object, jobs: Sequence[Object]) -> Object:
        """The status with the Jobs as they are: those that ended are active no more."""
        status = dict(found.get("status") or {})
        active = {entry["uid"]: entry for entry in status.get("active") or ()}
        for job in jobs:
            uid, ended = job["metadata"]["uid"], job_end.over(job)
            if not ended and uid not in active:
                active[uid] = cron_runs.reference(job)
            elif ended and active.pop(uid, None) is not None:
                word = "Complete" if job_end.condition(job, "Complete") else "Failed"
                text = f"Saw completed job: {job['metadata']['name']}, condition: {word}"
                self.recorder.event(found, "Normal", "SawCompletedJob", text)
        known = {job["metadata"]["uid"] for job in jobs}
        for uid in [uid for uid in active if uid not in known]:
            if not self._exists(found, active[uid]):
                text = f"Active job went missing: {active[uid]['name']}"
                self.recorder.event(found, "Normal", "MissingJob", text)
                del active[uid]
        complete = [job["status"] for job in jobs if job_end.condition(job, "Complete")]
        if successes := [each["completionTime"] for each in complete if each.get("completionTime")]:
            status["lastSuccessfulTime"] = max([*successes, status.get("lastSuccessfulTime", "")])
        status.pop("active", None)
        return {**status, "active": [*active.values()]} if active else status

    def _exists(self, found: Object, entry: Object) -> bool:
        """Asked of the server, since our copy may not show yet what we have just made."""
        try:
            job = self.client.get(JOBS, entry["name"], found["metadata"]["namespace"])
        except NotFound:
            return False
        return bool(job["metadata"]["uid"] == entry["uid"])

    def _start_due(self, found: Object, key: str, jobs: Sequence[Object], status: Object) -> Object:
        """Start what is due; the status with it."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        try:
            due = cron_runs.due({**found, "status": status}, now)
        except ValueError as error:
            text = f"unparseable schedule: {found['spec']['schedule']} : {error}"
            self.recorder.event(found, "Warning", "UnparseableSchedule", text)
            return status
        if due.next is not None:
            self.queue.add_after(key, max(0.1, (due.next - now).total_seconds()))
        if due.at is None:
            return status
        if due.missed > cron_runs.MANY:
            text = (
                f"too many missed start times: {due.missed}. Set or decrease .spec.startingDeadlineSeconds "
                "or check clock skew"
            )
            self.recorder.event(found, "Warning", "TooManyMissedTimes", text)
        return self._start(found, due.at, jobs, status)

    def _start(self, found: Object, at: datetime, jobs: Sequence[Object], status: Object) -> Object:
        policy, active = found["spec"].get("concurrencyPolicy"), list(status.get("active") or ())
        started = {**status, "lastScheduleTime": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
        if any(entry["name"] == cron_runs.job_name(found, at) for entry in active):
            return started  # by us, before our own copy shows that we have said so
        if active and policy == "Forbid":
            text = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self.recorder.event(found, "Normal", "JobAlreadyActive", text)
            return status
        if policy == "Replace":
            running = {entry["uid"] for entry in active}
            for job in jobs:
                if job["metadata"]["uid"] in running:
                    self._delete(found, job)
            active = []
        body, namespace = cron_runs.make_job(found, at), found["metadata"]["namespace"]
        name = body["metadata"]["name"]
        try:
            job = self.client.create(JOBS, body, namespace)
            self.recorder.event(found, "Normal", "SuccessfulCreate", f"Created job {name}")
        except AlreadyExists:
            # Made before somebody ended us, or a stranger's, who then has this run's place.
            job = self.client.get(JOBS, name, namespace)
            if (controller_of(job) or {}).get("uid") != found["metadata"]["uid"]:
                raise
        except ApiError as error:
            if any(cause.get("reason") == "NamespaceTerminating" for cause in error.causes):
                return status
            self.recorder.event(found, "Warning", "FailedCreate", f"Error creating job: {error}")
            raise
        if not job_end.over(job) and all(entry["uid"] != job["metadata"]["uid"] for entry in active):
            active.append(cron_runs.reference(job))
        return {**started, "active": active}

    def _delete(self, found: Object, job: Object) -> None:
        metadata = job["metadata"]
        try:
            self.client.delete(
                JOBS,
                metadata["name"],
                metadata["namespace"],
                uid=metadata["uid"],
                propagation_policy="Background",
            )
        except (NotFound, Conflict):
            return
        self.recorder.event(found, "Normal", "SuccessfulDelete", f"Deleted job {metadata['name']}")

    def _write_status(self, found: Object, status: Object) -> None:
        if (found.get("status") or {}) == status:
            return
        try:
            self.client.update(CRON_JOBS, found | {"status": status}, subresource="status")
        except NotFound:
            return
