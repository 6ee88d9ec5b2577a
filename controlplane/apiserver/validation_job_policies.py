"""A Job's rules for failed pods and for early success: what of them cannot be carried out.

They are read by controllers/job_policies.py again and again, so a rule that makes no sense has to be refused
when it is written. Source: upstream's pkg/apis/batch/validation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controlplane.apiserver.validation_fields import OMITTED, Causes, GoLiteral, qualified_name

Object = dict[str, Any]

MOST_RULES, MOST_EXIT_CODES, MOST_PATTERNS = 20, 255, 20
LONGEST_INDEXES = 64 * 1024
"""Bytes of succeededIndexes."""
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_OPERATORS = ("In", "NotIn")
_STATUSES = ("False", "True", "Unknown")


def valid_values(values: Iterable[str]) -> str:
    """The values as upstream lists them beside a missing one."""
    quoted = " ".join(f'"{value}"' for value in values)
    return f"valid values: [{quoted}]"


def _chosen(causes: Causes, path: str, value: str | None, values: tuple[str, ...]) -> None:
    if not value:
        causes.required(path, valid_values(values))
    elif value not in values:
        causes.not_supported(path, value, values)


# failed pods


def check_failure_policy(causes: Causes, path: str, spec: Object) -> None:
    policy = spec.get("podFailurePolicy")
    if policy is None:
        return
    rules = policy.get("rules") or []
    if len(rules) > MOST_RULES:
        causes.too_many(f"{path}.rules", len(rules), MOST_RULES)
    for number, rule in enumerate(rules):
        _check_failure_rule(causes, f"{path}.rules[{number}]", rule, spec)


def _check_failure_rule(causes: Causes, path: str, rule: Object, spec: Object) -> None:
    action = rule.get("action")
    _chosen(causes, f"{path}.action", action, _ACTIONS)
    if action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
        causes.invalid(f"{path}.action", action, "requires the backoffLimitPerIndex to be set")
    codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions") or []
    if codes is not None:
        _check_exit_codes(causes, f"{path}.onExitCodes", codes, spec)
    _check_conditions(causes, f"{path}.onPodConditions", conditions)
    if codes is not None and conditions:
        causes.invalid(path, OMITTED, "specifying both OnExitCodes and OnPodConditions is not supported")
    if codes is None and not conditions:
        causes.invalid(path, OMITTED, "specifying one of OnExitCodes and OnPodConditions is required")


def _check_conditions(causes: Causes, path: str, patterns: list[Object]) -> None:
    if len(patterns) > MOST_PATTERNS:
        causes.too_many(path, len(patterns), MOST_PATTERNS)
    for number, pattern in enumerate(patterns):
        kind = pattern.get("type") or ""
        causes.each(f"{path}[{number}].type", kind, qualified_name(kind))
        _chosen(causes, f"{path}[{number}].status", pattern.get("status"), _STATUSES)


def _check_exit_codes(causes: Causes, path: str, codes: Object, spec: Object) -> None:
    operator = codes.get("operator")
    _chosen(causes, f"{path}.operator", operator, _OPERATORS)
    pod = (spec.get("template") or {}).get("spec") or {}
    names = {c.get("name") for key in ("containers", "initContainers") for c in pod.get(key) or ()}
    if codes.get("containerName") is not None and codes["containerName"] not in names:
        detail = "must be one of the container or initContainer names in the pod template"
        causes.invalid(f"{path}.containerName", codes["containerName"], detail)
    values = codes.get("values") or []
    shown = GoLiteral(f"[]int32{{{', '.join(str(value) for value in values)}}}")
    if not values:
        causes.invalid(f"{path}.values", shown, "at least one value is required")
    elif len(values) > MOST_EXIT_CODES:
        causes.too_many(f"{path}.values", len(values), MOST_EXIT_CODES)
    for number, value in enumerate(values):
        if operator == "In" and value == 0:
            causes.invalid(f"{path}.values[{number}]", value, "must not be 0 for the In operator")
        if value in values[:number]:
            causes.duplicate(f"{path}.values[{number}]", value)
    if values != sorted(values):
        causes.invalid(f"{path}.values", shown, "must be ordered")


# early success


def check_success_policy(causes: Causes, path: str, spec: Object) -> None:
    policy = spec.get("successPolicy")
    if policy is None:
        return
    if spec.get("completionMode") != "Indexed":
        causes.invalid(path, policy, "requires indexed completion mode")
        return
    rules = policy.get("rules") or []
    if not rules:
        detail = "at least one rules must be specified when the successPolicy is specified"
        causes.required(f"{path}.rules", detail)
    if len(rules) > MOST_RULES:
        causes.too_many(f"{path}.rules", len(rules), MOST_RULES)
    for number, rule in enumerate(rules):
        _check_success_rule(causes, f"{path}.rules[{number}]", rule, int(spec.get("completions") or 0))


def _check_success_rule(causes: Causes, path: str, rule: Object, completions: int) -> None:
    enough, indexes = rule.get("succeededCount"), rule.get("succeededIndexes")
    if enough is None and indexes is None:
        causes.required(path, "at least one of succeededCount or succeededIndexes must be specified")
    named: int | None = None
    if indexes is not None:
        if len(indexes.encode()) > LONGEST_INDEXES:
            causes.too_long(f"{path}.succeededIndexes", LONGEST_INDEXES)
        try:
            named = count_indexes(indexes, completions)
        except ValueError as error:
            detail = f"error parsing succeededIndexes: {error}"
            causes.invalid(f"{path}.succeededIndexes", indexes, detail)
            named = 0
    if enough is None:
        return
    where, most = f"{path}.succeededCount", "must be less than or equal to"
    causes.non_negative(where, enough)
    if enough > completions:
        causes.invalid(where, enough, f"{most} {completions} (the number of specified completions)")
    if named is not None and enough > named:
        what = "the number of indexes in the specified succeededIndexes field"
        causes.invalid(where, enough, f"{most} {named} ({what})")


def count_indexes(text: str, completions: int) -> int:
    """How many numbers "0,2-4" names; ValueError unless they grow and lie below `completions`."""
    total, before = 0, -1
    for part in text.split(",") if text else ():
        first, last = _interval(part, completions)
        if first <= before:
            raise ValueError(f"non-increasing order, previous: {before}, current: {first}")
        total, before = total + last - first + 1, last
    return total


def _interval(part: str, completions: int) -> tuple[int, int]:
    limits = part.split("-")
    if len(limits) > 2:
        raise ValueError(
            f'the fragment "{part}" violates the requirement that an index interval can have '
            "at most two parts separated by '-'"
        )
    numbers = []
    for limit in limits:
        if not (limit.isascii() and limit.isdigit()):
            raise ValueError(f'cannot convert string to integer for index: "{limit}"')
        if int(limit) >= completions:
            raise ValueError(f'too large index: "{limit}"')
        numbers.append(int(limit))
    if len(numbers) == 2 and numbers[0] >= numbers[1]:
        raise ValueError(f"non-increasing order, previous: {numbers[0]}, current: {numbers[1]}")
    return numbers[0], numbers[-1]
