"""What a Job's rules say of failed pods and of finished numbers. Pure.

podFailurePolicy: the first rule that matches a failed pod decides. successPolicy: the first rule that the
finished numbers meet ends the Job. Source: upstream's pod_failure_policy.go and success_policy.go.
"""

from __future__ import annotations

from collections.abc import Set

from controlplane.controllers import job_indexes
from controlplane.controllers.base import Object, key_of


def counts(job: Object, pod: Object) -> bool:
    """Whether a failed pod counts towards the Job's limits; the action Ignore says that it does not."""
    return action(job, pod) != "Ignore"


def action(job: Object, pod: Object) -> str:
    """FailJob, FailIndex, Ignore or Count; Count where no rule matches."""
    found = _matching(job, pod)
    return found[0] if found else "Count"


def message(job: Object, pod: Object) -> str | None:
    """Why the pod fails the whole Job; None if it does not."""
    found = _matching(job, pod)
    return found[1] if found and found[0] == "FailJob" else None


def _matching(job: Object, pod: Object) -> tuple[str, str] | None:
    """The action of the first rule that matches the failed pod, and what it says."""
    if (pod.get("status") or {}).get("phase") != "Failed":
        return None
    for number, rule in enumerate((job["spec"].get("podFailurePolicy") or {}).get("rules") or ()):
        if rule["action"] == "FailIndex" and job["spec"].get("backoffLimitPerIndex") is None:
            continue
        seen = _exit_code(rule.get("onExitCodes"), pod) or _condition(rule.get("onPodConditions"), pod)
        if seen:
            where = f"matching {rule['action']} rule at index {number}"
            return str(rule["action"]), f"{seen.format(pod=key_of(pod))} {where}"
    return None


def _exit_code(requirement: Object | None, pod: Object) -> str | None:
    if not requirement:
        return None
    status = pod["status"]
    for entry in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        ended = (entry.get("state") or {}).get("terminated") or {}
        code = ended.get("exitCode", 0)
        if not code or requirement.get("containerName") not in (None, entry["name"]):
            continue
        if (code in requirement["values"]) == (requirement["operator"] == "In"):
            return f"Container {entry['name']} for pod {{pod}} failed with exit code {code}"
    return None


def _condition(patterns: list[Object] | None, pod: Object) -> str | None:
    for pattern in patterns or ():
        for condition in pod["status"].get("conditions") or ():
            wanted = (pattern["type"], pattern.get("status", "True"))
            if (condition["type"], condition["status"]) == wanted:
                return f"Pod {{pod}} has condition {condition['type']}"
    return None


def success(job: Object, completed: Set[int]) -> str | None:
    """Which rule the finished numbers meet, as upstream's message; None for none."""
    for number, rule in enumerate((job["spec"].get("successPolicy") or {}).get("rules") or ()):
        wanted = rule.get("succeededIndexes")
        named = job_indexes.read(wanted) if wanted is not None else None
        there = completed if named is None else completed & named
        enough = rule.get("succeededCount")
        if len(there) >= int(enough) if enough is not None else named is not None and named <= completed:
            return f"Matched rules at index {number}"
    return None
