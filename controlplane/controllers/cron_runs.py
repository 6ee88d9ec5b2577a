"""Which run of a CronJob is due, and what it and its history look like. Pure.

Runs that were missed are not made up for: only the latest counts, and only while it is not later than
startingDeadlineSeconds allows. A run's Job is named after its minute, so that it is never started twice.
Source: upstream's pkg/controller/cronjob (utils.go, cronjob_controllerv2.go).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from controlplane import cron_schedule
from controlplane.controllers import job_end
from controlplane.controllers.base import Object
from controlplane.controllers.pod_ownership import owner_reference
from controlplane.controllers.stamps import seconds
from controlplane.cron_schedule import Schedule
from kubeclient.resources import CRON_JOBS

SCHEDULED = "batch.kubernetes.io/cronjob-scheduled-timestamp"
MANY = 100
LONGEST_DEADLINE = 10 * 365 * 86400
LOOKS = (timedelta(hours=1), timedelta(days=1), timedelta(days=32), cron_schedule.LOOK_AHEAD)


@dataclass(frozen=True, slots=True)
class Due:
    """The latest run that is due (None: none), how many were missed before it, and when the next one is."""

    at: datetime | None
    missed: int
    next: datetime | None


def due(cron_job: Object, now: datetime) -> Due:
    """ValueError where schedule or time zone cannot be read."""
    spec, status = cron_job["spec"], cron_job.get("status") or {}
    schedule = cron_schedule.parse(spec["schedule"])
    zone = cron_schedule.zone_of(spec.get("timeZone"))
    since = _moment(status.get("lastScheduleTime") or cron_job["metadata"]["creationTimestamp"])
    if (limit := spec.get("startingDeadlineSeconds")) is not None:
        since = max(since, now - timedelta(seconds=min(int(limit), LONGEST_DEADLINE)))
    if schedule.fields is None:
        return _every(schedule.every, since, now)
    latest = _latest(schedule, since, now, zone)
    missed = 0 if latest is None else _count(schedule, since, latest, zone)
    return Due(latest, missed, schedule.after(now, zone))


def _latest(schedule: Schedule, since: datetime, now: datetime, zone: tzinfo) -> datetime | None:
    """The last run after `since` and up to `now`, looked for from ever farther back: not run by run."""
    for back in LOOKS:
        earliest = max(since, now - back)
        runs = [*schedule.between(earliest, now, zone)]
        if runs:
            return runs[-1]
    return None


def _count(schedule: Schedule, since: datetime, latest: datetime, zone: tzinfo) -> int:
    """The runs before the latest one; counted up to a little more than MANY."""
    before = schedule.between(since, latest, zone)
    return max(0, sum(1 for _ in itertools.islice(before, MANY + 2)) - 1)


def _every(step: float, since: datetime, now: datetime) -> Due:
    runs = int((now - since).total_seconds() // step)
    last = since + timedelta(seconds=step * runs)
    return Due(last if runs else None, max(0, runs - 1), last + timedelta(seconds=step))


def make_job(cron_job: Object, at: datetime) -> Object:
    """The Job of the run at that time."""
    template = cron_job["spec"]["jobTemplate"]
    metadata = template.get("metadata") or {}
    zone = cron_schedule.zone_of(cron_job["spec"].get("timeZone"))
    stamp = at.astimezone(zone).isoformat(timespec="seconds").replace("+00:00", "Z")
    kept = {"labels": dict(metadata["labels"])} if metadata.get("labels") else {}
    return {
        "metadata": {
            "name": job_name(cron_job, at),
            "annotations": {**(metadata.get("annotations") or {}), SCHEDULED: stamp},
            "ownerReferences": [owner_reference(cron_job, CRON_JOBS)],
            **kept,
        },
        "spec": copy.deepcopy(template["spec"]),
    }


def job_name(cron_job: Object, at: datetime) -> str:
    """"backup-29876543": the number counts minutes since 1970."""
    return f"{cron_job['metadata']['name']}-{int(at.timestamp()) // 60}"


def reference(job: Object) -> Object:
    """What `status.active` says of a Job."""
    metadata = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }


def surplus(cron_job: Object, jobs: Sequence[Object]) -> list[Object]:
    """Ended Jobs beyond what the history limits keep, oldest first."""
    spec = cron_job["spec"]
    found = []
    for kind, limit, default in (
        ("Complete", "successfulJobsHistoryLimit", 3),
        ("Failed", "failedJobsHistoryLimit", 1),
    ):
        ended = sorted((job for job in jobs if job_end.condition(job, kind)), key=_started)
        found += ended[: max(0, len(ended) - int(spec.get(limit, default)))]
    return found


def _started(job: Object) -> tuple[str, str]:
    return (job.get("status") or {}).get("startTime", ""), job["metadata"]["name"]


def _moment(stamp: str) -> datetime:
    return datetime.fromtimestamp(seconds(stamp), UTC)
