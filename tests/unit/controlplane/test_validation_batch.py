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
PER_INDEX = {"backoffLimitPerIndex": 1, "maxFailedIndexes": 100_000}
MANY = "when completions are above 100000 and used with backoff limit per index"


def indexed(completions: int, **spec: Any) -> Object:
    return job(completionMode="Indexed", completions=completions, **spec)


def success(**fields: Any) -> Object:
    return indexed(5, successPolicy={"rules": [fields]})


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
        job(managedBy="kueue.x-k8s.io/multikueue"),
        job(completionMode="Indexed", completions=100_000, parallelism=100_000, **PER_INDEX),
        job(
            completionMode="Indexed",
            completions=10**9,
            parallelism=10_000,
            backoffLimitPerIndex=1,
            maxFailedIndexes=10_000,
        ),
        job(podFailurePolicy=rule(onPodConditions=[{"type": "DisruptionTarget"}])),
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
            'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"',
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
            '"0-2": error parsing succeededIndexes: too large index: "2"',
        ),
        (
            job(completionMode="Sometimes"),
            'spec.completionMode: Unsupported value: "Sometimes": supported values: "NonIndexed", "Indexed"',
        ),
        (job(managedBy=""), "spec.managedBy: Required value"),
        (
            job(managedBy="kueue"),
            'spec.managedBy: Invalid value: "kueue": must be a domain-prefixed path (such as "acme.io/foo")',
        ),
        (
            job(managedBy="acme.io/a b"),
            'spec.managedBy: Invalid value: "a b": Invalid path (regex used for validation is '
            "'[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')",
        ),
        (job(managedBy=f"acme.io/{'x' * 56}"), "spec.managedBy: Too long: may not be more than 63 bytes"),
        (
            indexed(1, parallelism=100_001),
            "spec.parallelism: Invalid value: 100001: "
            "must be less than or equal to 100000 when completion mode is Indexed",
        ),
        (
            indexed(2, backoffLimitPerIndex=1, maxFailedIndexes=3),
            "spec.maxFailedIndexes: Invalid value: 3: must be less than or equal to completions",
        ),
        (
            indexed(100_001, backoffLimitPerIndex=1),
            "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
        ),
        (
            indexed(100_001, parallelism=10_001, backoffLimitPerIndex=1, maxFailedIndexes=1),
            f"spec.parallelism: Invalid value: 10001: must be less than or equal to 10000 {MANY}",
        ),
        (
            indexed(100_001, backoffLimitPerIndex=1, maxFailedIndexes=10_001),
            f"spec.maxFailedIndexes: Invalid value: 10001: must be less than or equal to 10000 {MANY}",
        ),
        (
            job(podFailurePolicy={"rules": rule(onExitCodes=CODES)["rules"] * 21}),
            "spec.podFailurePolicy.rules: Too many: 21: must have at most 20 items",
        ),
        (
            job(podFailurePolicy=rule("", onExitCodes=CODES)),
            f'{RULES}.action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]',
        ),
        (
            job(podFailurePolicy=rule()),
            f"{RULES}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (
            job(podFailurePolicy=rule(onExitCodes={**CODES, "values": [*range(1, 257)]})),
            f"{RULES}.onExitCodes.values: Too many: 256: must have at most 255 items",
        ),
        (
            job(podFailurePolicy=rule(onExitCodes={**CODES, "values": [2, 1]})),
            f"{RULES}.onExitCodes.values: Invalid value: []int32{{2, 1}}: must be ordered",
        ),
        (
            job(podFailurePolicy=rule(onExitCodes={**CODES, "values": [1, 1]})),
            f"{RULES}.onExitCodes.values[1]: Duplicate value: 1",
        ),
        (
            job(podFailurePolicy=rule(onPodConditions=[{"type": "Ready"}] * 21)),
            f"{RULES}.onPodConditions: Too many: 21: must have at most 20 items",
        ),
        (
            job(podFailurePolicy=rule(onPodConditions=[{"type": "Ready", "status": "Maybe"}])),
            f'{RULES}.onPodConditions[0].status: Unsupported value: "Maybe": '
            'supported values: "False", "True", "Unknown"',
        ),
        (
            indexed(5, successPolicy={"rules": [{"succeededCount": 1}] * 21}),
            "spec.successPolicy.rules: Too many: 21: must have at most 20 items",
        ),
        (
            success(succeededCount=6),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 6: "
            "must be less than or equal to 5 (the number of specified completions)",
        ),
        (
            success(succeededCount=3, succeededIndexes="0,3"),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 "
            "(the number of indexes in the specified succeededIndexes field)",
        ),
        (
            success(succeededIndexes="0,3-1"),
            'spec.successPolicy.rules[0].succeededIndexes: Invalid value: "0,3-1": '
            "error parsing succeededIndexes: non-increasing order, previous: 3, current: 1",
        ),
        (
            cron_job(jobTemplate={"spec": job(manualSelector=True)["spec"]}),
            "spec.jobTemplate.spec.manualSelector: Unsupported value: true: "
            'supported values: "nil", "false"',
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
    *missing, last = create(own)
    assert last.startswith("spec.selector: ") and "not auto-generated" in last
    assert missing == [
        f"spec.template.metadata.labels[{prefix}{key}]: Required value: must be '{value}'"
        for prefix in ("", "batch.kubernetes.io/")
        for key, value in (("controller-uid", "u"), ("job-name", "x"))
    ]
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


def test_only_numbers_that_fit_into_a_pods_name() -> None:
    long = indexed(1001)
    long["metadata"]["name"] = "x" * 59
    host = f"{'x' * 59}-1000"
    assert create(long) == [
        f'metadata.name: Invalid value: "{"x" * 59}": '
        f"will not able to create pod with invalid DNS label: {host}"
    ]


def test_who_carries_a_job_out_stays() -> None:
    other = job(managedBy="acme.io/other")
    assert update(other, job(managedBy="acme.io/other")) == []
    assert update(other, job()) == ['spec.managedBy: Invalid value: "acme.io/other": field is immutable']
    assert update(job(), other) == ["spec.managedBy: Invalid value: null: field is immutable"]
