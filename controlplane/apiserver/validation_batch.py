"""Jobs and CronJobs. Upstream: pkg/apis/batch/validation."""

from __future__ import annotations

import copy
from typing import Any

from controlplane import cron_schedule
from controlplane.apiserver.validation_fields import IMMUTABLE, Causes, check_selector, dns_label
from controlplane.apiserver.validation_workloads import check_match, check_template, go_selector

Object = dict[str, Any]

LONGEST_CRON_JOB = 52
"""Letters of a CronJob's name: its Jobs are named after it, with eleven more."""
MOST_COMPLETIONS, MOST_PARALLEL = 1_000_000_000, 100_000
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")


def job(causes: Causes, obj: Object) -> None:
    spec, metadata = obj.get("spec") or {}, obj.get("metadata") or {}
    _check_job(causes, "spec", spec)
    _check_selector(causes, spec, metadata.get("uid") or "")
    name = (obj.get("metadata") or {}).get("name") or ""
    if spec.get("completionMode") == "Indexed" and name and isinstance(spec.get("completions"), int):
        longest = f"{name}-{max(0, spec['completions'] - 1)}"
        for detail in dns_label(longest):
            causes.invalid(
                "metadata.name", name, f"will not able to create pod with invalid DNS label: {detail}"
            )


def _check_selector(causes: Causes, spec: Object, uid: str) -> None:
    """A Job that did not find its own pods would make ever more."""
    selector = spec.get("selector")
    if selector is None:
        causes.required("spec.selector")
        return
    if not spec.get("manualSelector"):
        generated = {f"{prefix}controller-uid": uid for prefix in ("", "batch.kubernetes.io/")}
        chosen = selector.get("matchLabels") or {}
        if selector.get("matchExpressions") or not chosen or not chosen.items() <= generated.items():
            causes.invalid("spec.selector", go_selector(selector), "`selector` not auto-generated")
    check_selector(causes, "spec.selector", selector)
    check_match(causes, selector, spec.get("template") or {})


def _check_job(causes: Causes, path: str, spec: Object) -> None:
    for name in (
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
        "ttlSecondsAfterFinished",
    ):
        causes.non_negative(f"{path}.{name}", spec.get(name))
    template = spec.get("template") or {}
    check_template(causes, f"{path}.template", template)
    policy = (template.get("spec") or {}).get("restartPolicy")
    where = f"{path}.template.spec.restartPolicy"
    if policy not in ("OnFailure", "Never"):
        causes.not_supported(where, policy or "", ("OnFailure", "Never"))
    elif spec.get("podFailurePolicy") and policy != "Never":
        causes.invalid(where, policy, 'only "Never" is supported when podFailurePolicy is specified')
    _check_completions(causes, path, spec)
    for number, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules") or ()):
        _check_failure_rule(causes, f"{path}.podFailurePolicy.rules[{number}]", rule, spec)
    _check_success_policy(causes, path, spec)


def _check_completions(causes: Causes, path: str, spec: Object) -> None:
    # A CronJob's template has no defaults: they come when the Job is made.
    for name, values in (
        ("completionMode", ("NonIndexed", "Indexed")),
        ("podReplacementPolicy", ("Failed", "TerminatingOrFailed")),
    ):
        if spec.get(name) is not None:
            causes.one_of(f"{path}.{name}", spec[name], values)
    if spec.get("podFailurePolicy") and spec.get("podReplacementPolicy") == "TerminatingOrFailed":
        causes.not_supported(f"{path}.podReplacementPolicy", "TerminatingOrFailed", ("Failed",))
    if spec.get("completionMode") == "Indexed":
        completions = spec.get("completions")
        if completions is None:
            causes.required(f"{path}.completions", "when completion mode is Indexed")
        elif completions > MOST_COMPLETIONS:
            causes.invalid(
                f"{path}.completions", completions, f"must be less than or equal to {MOST_COMPLETIONS}"
            )
        if (spec.get("parallelism") or 0) > MOST_PARALLEL:
            detail = f"must be less than or equal to {MOST_PARALLEL} when completion mode is Indexed"
            causes.invalid(f"{path}.parallelism", spec["parallelism"], detail)
    elif spec.get("backoffLimitPerIndex") is not None:
        causes.invalid(
            f"{path}.backoffLimitPerIndex",
            spec["backoffLimitPerIndex"],
            "requires indexed completion mode",
        )
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        causes.required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified")


def _check_failure_rule(causes: Causes, path: str, rule: Object, spec: Object) -> None:
    action = rule.get("action")
    if not action:
        causes.required(f"{path}.action", f"valid values: {list(_ACTIONS)}")
    elif action not in _ACTIONS:
        causes.not_supported(f"{path}.action", action, _ACTIONS)
    elif action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
        causes.invalid(f"{path}.action", action, "requires the backoffLimitPerIndex to be set")
    codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
    if codes is None and not conditions:
        causes.invalid(path, rule, "specifying one of OnExitCodes and OnPodConditions is required")
    if codes is not None and conditions:
        causes.invalid(path, rule, "specifying both OnExitCodes and OnPodConditions is not supported")
    if codes is not None:
        _check_exit_codes(causes, f"{path}.onExitCodes", codes, spec)


def _check_exit_codes(causes: Causes, path: str, codes: Object, spec: Object) -> None:
    values = codes.get("values") or []
    causes.one_of(f"{path}.operator", codes.get("operator") or "", ("In", "NotIn"))
    if not values:
        causes.invalid(f"{path}.values", values, "at least one value is required")
    if codes.get("operator") == "In" and 0 in values:
        where = f"{path}.values[{values.index(0)}]"
        causes.invalid(where, 0, "must not be 0 for the In operator")
    if len(set(values)) != len(values):
        causes.duplicate(f"{path}.values", values)
    pod = (spec.get("template") or {}).get("spec") or {}
    names = {c.get("name") for key in ("containers", "initContainers") for c in pod.get(key) or ()}
    if codes.get("containerName") is not None and codes["containerName"] not in names:
        detail = "must be one of the container or initContainer names in the pod template"
        causes.invalid(f"{path}.containerName", codes["containerName"], detail)


def _check_success_policy(causes: Causes, path: str, spec: Object) -> None:
    policy = spec.get("successPolicy")
    if policy is None:
        return
    if spec.get("completionMode") != "Indexed":
        causes.invalid(f"{path}.successPolicy", policy, "requires indexed completion mode")
    if not policy.get("rules"):
        causes.required(
            f"{path}.successPolicy.rules", "at least one rule must be specified"
        )
    for number, rule in enumerate(policy.get("rules") or ()):
        where = f"{path}.successPolicy.rules[{number}]"
        if rule.get("succeededCount") is None and rule.get("succeededIndexes") is None:
            causes.required(where, "at least one of succeededCount or succeededIndexes must be specified")
        indexes = rule.get("succeededIndexes")
        if indexes is not None and not _indexes(indexes, int(spec.get("completions") or 0)):
            causes.invalid(f"{where}.succeededIndexes", indexes, "error parsing succeededIndexes")


def _indexes(text: str, completions: int) -> bool:
    """Whether the text is "0,2-4": growing numbers below `completions`."""
    before = -1
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not _plain(first) or (dash and not _plain(last)):
            return False
        start, end = int(first), int(last if dash else first)
        if not before < start <= end < completions:
            return False
        before = end
    return True


def _plain(text: str) -> bool:
    return text.isascii() and text.isdigit()


def cron_job(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    schedule = spec.get("schedule") or ""
    if not schedule:
        causes.required("spec.schedule")
    elif "TZ" in schedule:
        detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        causes.invalid("spec.schedule", schedule, detail)
    else:
        try:
            cron_schedule.parse(schedule)
        except ValueError as error:
            causes.invalid("spec.schedule", schedule, str(error))
    if (zone := spec.get("timeZone")) is not None:
        try:
            cron_schedule.zone_of(zone or "?")
        except ValueError as error:
            causes.invalid("spec.timeZone", zone, str(error))
    causes.one_of("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), ("Allow", "Forbid", "Replace"))
    for name in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        causes.non_negative(f"spec.{name}", spec.get(name))
    _check_job(causes, "spec.jobTemplate.spec", (spec.get("jobTemplate") or {}).get("spec") or {})
    if len((obj.get("metadata") or {}).get("name") or "") > LONGEST_CRON_JOB:
        detail = f"must be no more than {LONGEST_CRON_JOB} characters"
        causes.invalid("metadata.name", obj["metadata"]["name"], detail)


def job_update(causes: Causes, new: Object, old: Object) -> None:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    for name in ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "successPolicy"):
        if after.get(name) != before.get(name):
            causes.invalid(f"spec.{name}", after.get(name), IMMUTABLE)
    # Whoever queues Jobs says where they run before they run: while one is suspended and has not started.
    waits = before.get("suspend") and not (old.get("status") or {}).get("startTime")
    templates = [spec.get("template") or {} for spec in (after, before)]
    if waits:
        templates = [_without_placement(template) for template in templates]
    if templates[0] != templates[1]:
        causes.invalid("spec.template", after.get("template"), IMMUTABLE)
    if after.get("completions") != before.get("completions") and not _elastic(after):
        causes.invalid("spec.completions", after.get("completions"), IMMUTABLE)


def _elastic(spec: Object) -> bool:
    """An Indexed Job may grow and shrink while all of its numbers run at once."""
    return bool(
        spec.get("completionMode") == "Indexed" and spec.get("completions") == spec.get("parallelism")
    )


def _without_placement(template: Object) -> Object:
    rest = copy.deepcopy(template)
    spec = rest.get("spec") or {}
    for name in ("nodeSelector", "tolerations", "schedulingGates"):
        spec.pop(name, None)
    (spec.get("affinity") or {}).pop("nodeAffinity", None)
    if not spec.get("affinity"):
        spec.pop("affinity", None)
    for name in ("labels", "annotations"):
        (rest.get("metadata") or {}).pop(name, None)
    return rest
