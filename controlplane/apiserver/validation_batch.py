"""Jobs and CronJobs. Upstream: pkg/apis/batch/validation."""

from __future__ import annotations

import copy
import re
from typing import Any

from controlplane import cron_schedule
from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    check_selector,
    dns_label,
    dns_subdomain,
    selector_matches,
)
from controlplane.apiserver.validation_job_policies import check_failure_policy, check_success_policy
from controlplane.apiserver.validation_workloads import check_match, check_template, go_selector

Object = dict[str, Any]

_HTTP_PATH = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+"
LONGEST_CRON_JOB = 52
"""Letters of a CronJob's name: its Jobs are named after it, with eleven more."""
LONGEST_MANAGER = 63
MOST_COMPLETIONS, MOST_PARALLEL = 1_000_000_000, 100_000
MOST_FAILED = 100_000
"""Failed numbers of an Indexed Job: its status lists them."""
MANY_COMPLETIONS, MOST_OF_MANY = 100_000, 10_000
"""Above so many numbers with limits of their own, so many may run at once and fail."""


def job(causes: Causes, obj: Object) -> None:
    spec, metadata = obj.get("spec") or {}, obj.get("metadata") or {}
    _check_selector(causes, spec, metadata)
    _check_job(causes, "spec", spec)
    name, completions = metadata.get("name") or "", spec.get("completions")
    if spec.get("completionMode") == "Indexed" and name and isinstance(completions, int) and completions > 0:
        longest = f"{name}-{completions - 1}"
        if dns_label(longest):
            detail = f"will not able to create pod with invalid DNS label: {longest}"
            causes.invalid("metadata.name", name, detail)


def _check_selector(causes: Causes, spec: Object, metadata: Object) -> None:
    """A Job that did not find its own pods would make ever more."""
    selector = spec.get("selector")
    if selector is None:
        causes.required("spec.selector")
        return
    if not spec.get("manualSelector"):
        generated = {}
        for prefix in ("", "batch.kubernetes.io/"):
            generated[f"{prefix}controller-uid"] = metadata.get("uid") or ""
            generated[f"{prefix}job-name"] = metadata.get("name") or ""
        _check_generated(causes, spec, generated)
        if not selector_matches(selector, generated):
            causes.invalid("spec.selector", go_selector(selector), "`selector` not auto-generated")
    check_selector(causes, "spec.selector", selector)
    check_match(causes, selector, spec.get("template") or {})


def _check_generated(causes: Causes, spec: Object, generated: Object) -> None:
    """The template has to carry the labels by which the Job's pods are known."""
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    for key, value in generated.items():
        where = f"spec.template.metadata.labels[{key}]"
        if key not in labels:
            causes.required(where, f"must be '{value}'")
        elif labels[key] != value:
            causes.invalid(where, labels, f"must be '{value}'")


def _check_job(causes: Causes, path: str, spec: Object) -> None:
    for name in (
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ):
        causes.non_negative(f"{path}.{name}", spec.get(name))
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        causes.required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified")
    _check_manager(causes, f"{path}.managedBy", spec.get("managedBy"))
    _check_completions(causes, path, spec)
    check_failure_policy(causes, f"{path}.podFailurePolicy", spec)
    check_success_policy(causes, f"{path}.successPolicy", spec)
    # A CronJob's template has no defaults: they come when the Job is made.
    if spec.get("podReplacementPolicy") is not None:
        ruled = spec.get("podFailurePolicy") is not None
        fitting = ("Failed",) if ruled else ("Failed", "TerminatingOrFailed")
        if spec["podReplacementPolicy"] not in fitting:
            causes.not_supported(f"{path}.podReplacementPolicy", spec["podReplacementPolicy"], fitting)
    check_template(causes, f"{path}.template", spec.get("template") or {})
    _check_restart_policy(causes, f"{path}.template.spec.restartPolicy", spec)


def _check_restart_policy(causes: Causes, path: str, spec: Object) -> None:
    policy = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy")
    if policy in (None, "", "Always"):  # Always is the default of pods, so it may be that nobody chose it
        causes.required(path, 'valid values: "OnFailure", "Never"')
    elif policy not in ("OnFailure", "Never"):
        causes.not_supported(path, policy, ("OnFailure", "Never"))
    elif spec.get("podFailurePolicy") is not None and policy != "Never":
        causes.invalid(path, policy, 'only "Never" is supported when podFailurePolicy is specified')


def _check_manager(causes: Causes, path: str, manager: str | None) -> None:
    """Who carries the Job out: a name with a domain before it, as of a label."""
    if manager is None:
        return
    if not manager:
        causes.required(path)
        return
    host, _, rest = manager.partition("/")
    if not host or not rest:
        causes.invalid(path, manager, 'must be a domain-prefixed path (such as "acme.io/foo")')
    else:
        causes.each(path, host, dns_subdomain(host))
        if not re.fullmatch(_HTTP_PATH, rest):
            causes.invalid(path, rest, f"Invalid path (regex used for validation is '{_HTTP_PATH}')")
    if len(manager.encode()) > LONGEST_MANAGER:
        causes.too_long(path, LONGEST_MANAGER)


def _check_completions(causes: Causes, path: str, spec: Object) -> None:
    mode = spec.get("completionMode")
    if mode not in (None, "NonIndexed", "Indexed"):
        causes.not_supported(f"{path}.completionMode", mode, ("NonIndexed", "Indexed"))
    if mode == "Indexed":
        _check_indexed(causes, path, spec)
    elif mode in (None, "NonIndexed"):
        for name in ("backoffLimitPerIndex", "maxFailedIndexes"):
            if spec.get(name) is not None:
                causes.invalid(f"{path}.{name}", spec[name], "requires indexed completion mode")


def _check_indexed(causes: Causes, path: str, spec: Object) -> None:
    """The status of such a Job lists numbers: so many that it still fits into one object."""
    completions, failed = spec.get("completions"), spec.get("maxFailedIndexes")
    parallel = spec.get("parallelism") or 0
    most = "must be less than or equal to"
    if completions is None:
        causes.required(f"{path}.completions", "when completion mode is Indexed")
    elif completions > MOST_COMPLETIONS:
        causes.invalid(f"{path}.completions", completions, f"{most} {MOST_COMPLETIONS}")
    if parallel > MOST_PARALLEL:
        detail = f"{most} {MOST_PARALLEL} when completion mode is Indexed"
        causes.invalid(f"{path}.parallelism", parallel, detail)
    if failed is not None:
        if completions is not None and failed > completions:
            causes.invalid(f"{path}.maxFailedIndexes", failed, f"{most} completions")
        if failed > MOST_FAILED:
            causes.invalid(f"{path}.maxFailedIndexes", failed, f"{most} {MOST_FAILED}")
    if (completions or 0) <= MANY_COMPLETIONS or spec.get("backoffLimitPerIndex") is None:
        return
    when = f"when completions are above {MANY_COMPLETIONS} and used with backoff limit per index"
    if failed is None:
        detail = f"must be specified when completions is above {MANY_COMPLETIONS}"
        causes.required(f"{path}.maxFailedIndexes", detail)
    if parallel > MOST_OF_MANY:
        causes.invalid(f"{path}.parallelism", parallel, f"{most} {MOST_OF_MANY} {when}")
    if failed is not None and failed > MOST_OF_MANY:
        causes.invalid(f"{path}.maxFailedIndexes", failed, f"{most} {MOST_OF_MANY} {when}")


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
    template = (spec.get("jobTemplate") or {}).get("spec") or {}
    _check_job(causes, "spec.jobTemplate.spec", template)
    if template.get("selector") is not None:
        where, shown = "spec.jobTemplate.spec.selector", go_selector(template["selector"])
        causes.invalid(where, shown, "`selector` will be auto-generated")
    if template.get("manualSelector"):
        causes.not_supported("spec.jobTemplate.spec.manualSelector", True, ("nil", "false"))
    if len((obj.get("metadata") or {}).get("name") or "") > LONGEST_CRON_JOB:
        detail = f"must be no more than {LONGEST_CRON_JOB} characters"
        causes.invalid("metadata.name", obj["metadata"]["name"], detail)


def job_update(causes: Causes, new: Object, old: Object) -> None:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    for name in (
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ):
        if after.get(name) != before.get(name):
            causes.invalid(f"spec.{name}", after.get(name), IMMUTABLE)
    # Whoever queues Jobs says where they run before they run: while one is suspended and has not started.
    waits = before.get("suspend") and not (old.get("status") or {}).get("startTime")
    templates = [spec.get("template") or {} for spec in (after, before)]
    if waits:
        templates = [_without_placement(template) for template in templates]
    if templates[0] != templates[1]:
        causes.invalid("spec.template", after.get("template"), IMMUTABLE)
    _check_elastic(causes, after, before)


def _check_elastic(causes: Causes, after: Object, before: Object) -> None:
    """An Indexed Job may grow and shrink while all of its numbers run at once."""
    completions = after.get("completions")
    if completions == before.get("completions"):
        return
    if after.get("completionMode") != "Indexed":
        causes.invalid("spec.completions", completions, IMMUTABLE)
    elif completions is not None and completions != after.get("parallelism"):
        detail = "can only be modified in tandem with spec.parallelism"
        causes.invalid("spec.completions", completions, detail)


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
