"""Refusals of Jobs, CronJobs and DaemonSets: path and sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.unit.controlplane.test_validation import CONTAINER, META, create, update

Object = dict[str, Any]


def job(policy: str = "Never", **spec: Any) -> Object:
    body = {"template": {"spec": {"restartPolicy": policy, "containers": [CONTAINER]}}, **spec}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**META, "uid": "u"}, "spec": body}


def cron_job(name: str = "x", **spec: Any) -> Object:
    body = {"schedule": "@daily", "jobTemplate": {"spec": job()["spec"]}, **spec}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {**META, "name": name}, "spec": body}


def daemon_set(**rolling: Any) -> Object:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [CONTAINER]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    spec["updateStrategy"] = {"type": "RollingUpdate", "rollingUpdate": rolling}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": META, "spec": spec}


def rule(action: str = "FailJob", **requirement: Any) -> Object:
    return {"rules": [{"action": action, **requirement}]}


CODES = {"operator": "In", "values": [42]}
RULES = "spec.podFailurePolicy.rules[0]"


@pytest.mark.parametrize(
    "obj",
    [
        job(),
        job("OnFailure"),
        job(completionMode="Indexed", completions=3, backoffLimitPerIndex=1, maxFailedIndexes=2),
        job(podFailurePolicy=rule(onExitCodes=CODES)),
        job(
            completionMode="Indexed",
            completions=5,
            successPolicy={"rules": [{"succeededIndexes": "0,2-4", "succeededCount": 2}]},
        ),
        cron_job(timeZone="Europe/Berlin"),
        daemon_set(maxUnavailable=0, maxSurge="20%"),
    ],
)
def test_good_ones_pass(obj: Object) -> None:
    assert create(obj) == []


@pytest.mark.parametrize(
    ("obj", "wanted"),
    [
        (
            job("Always"),
            'spec.template.spec.restartPolicy: Unsupported value: "Always": '
            'supported values: "OnFailure", "Never"',
        ),
        (
            job(completionMode="Indexed", parallelism=2),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            job(backoffLimitPerIndex=1),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            job(completionMode="Indexed", completions=1, maxFailedIndexes=1),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            job("OnFailure", podFailurePolicy=rule(onExitCodes=CODES)),
            'spec.template.spec.restartPolicy: Invalid value: "OnFailure": '
            'only "Never" is supported when podFailurePolicy is specified',
        ),
        (
            job(podFailurePolicy=rule(onExitCodes={"operator": "In", "values": [0]})),
            f"{RULES}.onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
        ),
        (
            job(podFailurePolicy=rule(onExitCodes={**CODES, "containerName": "nobody"})),
            f'{RULES}.onExitCodes.containerName: Invalid value: "nobody": '
            "must be one of the container or initContainer names in the pod template",
        ),
        (
            job(podFailurePolicy=rule("FailIndex", onExitCodes=CODES)),
            f'{RULES}.action: Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set',
        ),
        (
            job(podFailurePolicy=rule(onExitCodes=CODES), podReplacementPolicy="TerminatingOrFailed"),
            'spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed"',
        ),
        (
            job(
                completionMode="Indexed",
                completions=2,
                successPolicy={"rules": [{"succeededIndexes": "0-2"}]},
            ),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: "
            '"0-2": error parsing succeededIndexes',
        ),
        (
            job(selector={"matchLabels": {"a": "b"}}, manualSelector=True),
            "spec.template.metadata.labels: Invalid value: map[string]string{}: "
            "`selector` does not match template `labels`",
        ),
        (job(manualSelector=True), "spec.selector: Required value"),
        (
            cron_job(schedule="* * * *"),
            'spec.schedule: Invalid value: "* * * *": expected exactly 5 fields, found 4: [* * * *]',
        ),
        (
            cron_job(schedule="TZ=UTC * * * * *"),
            'spec.schedule: Invalid value: "TZ=UTC * * * * *": '
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        (cron_job(timeZone="Mars"), 'spec.timeZone: Invalid value: "Mars": unknown time zone Mars'),
        (
            cron_job(name="x" * 53),
            f'metadata.name: Invalid value: "{"x" * 53}": must be no more than 52 characters',
        ),
        (
            daemon_set(maxUnavailable=0, maxSurge=0),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: "
            "cannot be 0 when maxSurge is 0",
        ),
        (
            daemon_set(maxUnavailable=1, maxSurge=1),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: "
            "1: may not be set when maxUnavailable is non-zero",
        ),
    ],
)
def test_refusals(obj: Object, wanted: str) -> None:
    assert create(obj) == [wanted]


def test_a_selector_of_ones_own_has_to_be_asked_for() -> None:
    own = job(selector={"matchLabels": {"a": "b"}})
    own["spec"]["template"]["metadata"] = {"labels": {"a": "b"}}
    assert [text.partition(": ")[0] for text in create(own)] == ["spec.selector"]
    assert "not auto-generated" in create(own)[0]
    own["spec"]["manualSelector"] = True
    assert create(own) == []


def test_a_template_stays_unless_the_job_has_not_started() -> None:
    placed = copy.deepcopy(job(suspend=True))
    placed["spec"]["template"]["spec"]["nodeSelector"] = {"a": "b"}
    assert update(placed, job(suspend=True)) == []
    assert any(text.startswith("spec.template") for text in update(placed, job()))
    changed = job(suspend=True)
    changed["spec"]["template"]["spec"]["containers"] = [{**CONTAINER, "image": "other"}]
    assert any(text.startswith("spec.template") for text in update(changed, job(suspend=True)))


def test_completions_change_only_where_all_numbers_run_at_once() -> None:
    def sized(count: int, parallel: int) -> Object:
        return job(completionMode="Indexed", completions=count, parallelism=parallel)

    assert update(sized(3, 3), sized(2, 2)) == []
    assert any(text.startswith("spec.completions") for text in update(sized(3, 2), sized(2, 2)))
