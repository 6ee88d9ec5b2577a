"""Which run of a CronJob is due, and which old Jobs go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from controlplane.controllers import cron_runs

Object = dict[str, Any]


def cron_job(schedule: str = "*/10 * * * *", last: str | None = None, **spec: Any) -> Object:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"spec": {}}}}
    metadata = {"name": "c", "namespace": "n", "uid": "C", "creationTimestamp": "2026-01-01T00:00:00Z"}
    body = {"schedule": schedule, "jobTemplate": template, **spec}
    return {"metadata": metadata, "spec": body, "status": {"lastScheduleTime": last} if last else {}}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "last", "due", "missed"),
    [
        ("2026-01-01T00:09:59", None, None, 0),
        ("2026-01-01T00:10:00", None, "2026-01-01T00:10:00", 0),
        ("2026-01-01T00:35:00", None, "2026-01-01T00:30:00", 2),
        ("2026-01-01T00:35:00", "2026-01-01T00:30:00Z", None, 0),
        ("2026-03-01T00:05:00", None, "2026-03-01T00:00:00", 101),
    ],
)
def test_the_latest_run_is_due(now, last, due, missed) -> None:
    found = cron_runs.due(cron_job(last=last), at(now))
    assert (found.at, found.missed) == (at(due) if due else None, missed)


def test_a_deadline_forgets_older_runs() -> None:
    found = cron_runs.due(cron_job(startingDeadlineSeconds=120), at("2026-01-01T00:35:00"))
    assert (found.at, found.next) == (None, at("2026-01-01T00:40:00"))
    found = cron_runs.due(cron_job(startingDeadlineSeconds=400), at("2026-01-01T00:35:00"))
    assert found.at == at("2026-01-01T00:30:00")


def test_rare_runs_are_found_from_far_back() -> None:
    found = cron_runs.due(cron_job("0 0 1 2 *"), at("2026-12-01T00:00:00"))
    assert (found.at, found.next) == (at("2026-02-01T00:00:00"), at("2027-02-01T00:00:00"))


def test_a_fixed_step_counts_from_the_last_run() -> None:
    found = cron_runs.due(cron_job("@every 90s", "2026-01-01T00:00:30Z"), at("2026-01-01T00:04:00"))
    assert (found.at, found.missed, found.next) == (
        at("2026-01-01T00:03:30"),
        1,
        at("2026-01-01T00:05:00"),
    )


def test_a_run_is_named_after_its_minute() -> None:
    job = cron_runs.make_job(cron_job(timeZone="Europe/Berlin"), at("2026-01-01T00:10:00"))
    assert job["metadata"]["name"] == "c-29453770"
    assert job["metadata"]["annotations"] == {cron_runs.SCHEDULED: "2026-01-01T01:10:00+01:00"}
    assert job["metadata"]["labels"] == {"a": "b"}
    assert job["metadata"]["ownerReferences"][0]["kind"] == "CronJob"


def ended(name: str, kind: str, start: str) -> Object:
    status = {"startTime": start, "conditions": [{"type": kind, "status": "True"}]}
    return {"metadata": {"name": name}, "status": status}


def test_history_keeps_the_newest_of_each_kind() -> None:
    jobs = [
        ended("s1", "Complete", "2026-01-01T00:10:00Z"),
        ended("s3", "Complete", "2026-01-01T00:30:00Z"),
        ended("s2", "Complete", "2026-01-01T00:20:00Z"),
        ended("f1", "Failed", "2026-01-01T00:15:00Z"),
        ended("f2", "Failed", "2026-01-01T00:25:00Z"),
        {"metadata": {"name": "running"}, "status": {}},
    ]
    gone = cron_runs.surplus(cron_job(successfulJobsHistoryLimit=2), jobs)
    assert [job["metadata"]["name"] for job in gone] == ["s1", "f1"]
