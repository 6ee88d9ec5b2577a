"""What a DELETE does to an object, decided without side effects.

Deleting is a conversation in Kubernetes. A finalizer keeps the object until its owner has cleaned up; a pod
is first only marked, so that its kubelet can stop the containers, and goes when the kubelet deletes it again
with a grace period of 0; propagation policies are themselves finalizers that the garbage collector works
off. The rules are those of apiserver's pkg/registry/rest/delete.go and generic/registry/store.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controlplane.apiserver.errors import (
    NOT_SUPPORTED,
    Cause,
    bad_request,
    conflict,
    invalid,
    uid_mismatch,
)
from controlplane.apiserver.resources import ResourceInfo
from controlplane.apiserver.timestamps import rfc3339, seconds

Object = dict[str, Any]

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"
_POLICIES = ("Foreground", "Background", "Orphan")
_ORPHANED_BY_DEFAULT = {("", "replicationcontrollers"), ("batch", "jobs")}
_DEFAULT_GRACE = 30


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """meta/v1 DeleteOptions, read; None is "not given"."""

    grace_period_seconds: int | None = None
    propagation_policy: str | None = None
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`remove`: the object goes now, `obj` is its last state. `keep`: store `obj`, which is marked.
    `unchanged`: it is being deleted already and nothing new was asked.
    """

    action: Literal["remove", "keep", "unchanged"]
    obj: Object


def read_options(body: Mapping[str, Any] | None, query: Mapping[str, str]) -> DeleteOptions:
    """From the request's body, or from its query when there is none. Raises StatusError (400, 422)."""
    source = body if body else _from_query(query)
    grace = source.get("gracePeriodSeconds")
    if grace is not None and (isinstance(grace, bool) or not isinstance(grace, int)):
        raise bad_request("gracePeriodSeconds: must be an integer")
    policy = source.get("propagationPolicy")
    if source.get("orphanDependents") is not None:
        policy = "Orphan" if source["orphanDependents"] else "Background"
    if policy is not None and policy not in _POLICIES:
        listed = ", ".join(f'"{name}"' for name in (*_POLICIES, "nil"))
        text = f'Unsupported value: "{policy}": supported values: {listed}'
        cause = Cause(NOT_SUPPORTED, "propagationPolicy", text)
        raise invalid("DeleteOptions", "meta.k8s.io", "", [cause])
    preconditions = source.get("preconditions") or {}
    dry_run = source.get("dryRun") or query.get("dryRun") or ()
    if isinstance(dry_run, str):
        dry_run = [dry_run]
    grace = max(grace, 0) if grace is not None and grace >= 0 else (1 if grace is not None else None)
    return DeleteOptions(
        grace, policy, preconditions.get("uid"), preconditions.get("resourceVersion"), "All" in dry_run
    )


def _from_query(query: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if query.get("gracePeriodSeconds"):
        try:
            found["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
        except ValueError as error:
            raise bad_request(f"gracePeriodSeconds: {error}") from error
    if query.get("propagationPolicy"):
        found["propagationPolicy"] = query["propagationPolicy"]
    if query.get("orphanDependents"):
        found["orphanDependents"] = query["orphanDependents"] == "true"
    return found


def check_preconditions(info: ResourceInfo, name: str, obj: Object, options: DeleteOptions) -> None:
    """Raises StatusError (409) when the object is not the one that the client meant."""
    metadata = obj["metadata"]
    if options.uid is not None and options.uid != metadata.get("uid"):
        raise uid_mismatch(info, name, options.uid, str(metadata.get("uid", "")))
    wanted = options.resource_version
    if wanted is not None and wanted != metadata.get("resourceVersion"):
        raise conflict(
            info,
            name,
            f"the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in"
            f" record ({metadata.get('resourceVersion')}). The object might have been modified",
        )


def decide(info: ResourceInfo, obj: Object, options: DeleteOptions, now: float) -> Decision:
    """Apply a DELETE to `obj` (which is changed in place and returned in the decision)."""
    metadata = obj["metadata"]
    before = list(metadata.get("finalizers") or ())
    finalizers = _garbage_collection(info, before, options)
    changed = finalizers != before
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    if (info.group, info.plural) == ("", "namespaces"):
        return _namespace(obj, finalizers, changed, now)
    if (info.group, info.plural) == ("", "pods"):
        grace, pending = _grace(obj, options, now)
        if pending:
            return Decision("keep" if changed else "unchanged", obj)
    else:
        grace = 0
        if "deletionTimestamp" in metadata and finalizers:
            return Decision("keep" if changed else "unchanged", obj)
        _mark(metadata, now, 0, bool(finalizers))
    return Decision("keep" if grace > 0 or finalizers else "remove", obj)


def finished(info: ResourceInfo, obj: Object) -> bool:
    """After an update: was this the last thing that kept a deleted object?"""
    metadata = obj["metadata"]
    if "deletionTimestamp" not in metadata or metadata.get("finalizers"):
        return False
    if (info.group, info.plural) == ("", "namespaces"):
        return not obj.get("spec", {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")


def _garbage_collection(info: ResourceInfo, finalizers: list[str], options: DeleteOptions) -> list[str]:
    policy = options.propagation_policy
    if policy is None:
        if ORPHAN in finalizers or FOREGROUND in finalizers:
            return finalizers
        policy = "Orphan" if (info.group, info.plural) in _ORPHANED_BY_DEFAULT else "Background"
    kept = [name for name in finalizers if name not in (ORPHAN, FOREGROUND)]
    if policy == "Orphan":
        kept.append(ORPHAN)
    elif policy == "Foreground":
        kept.append(FOREGROUND)
    return kept


def _namespace(obj: Object, finalizers: list[str], changed: bool, now: float) -> Decision:
    metadata = obj["metadata"]
    if "deletionTimestamp" not in metadata:
        metadata["deletionTimestamp"] = rfc3339(now)
        obj.setdefault("status", {})["phase"] = "Terminating"
        changed = True
    if not obj.get("spec", {}).get("finalizers") and not finalizers:
        return Decision("remove", obj)
    return Decision("keep" if changed else "unchanged", obj)


def _grace(obj: Object, options: DeleteOptions, now: float) -> tuple[int, bool]:
    """(seconds that the pod is given, nothing changes because a deletion is under way)."""
    metadata = obj["metadata"]
    asked = options.grace_period_seconds
    if "deletionTimestamp" in metadata:
        given = metadata.get("deletionGracePeriodSeconds")
        if given is None:
            return 0, False
        if asked is None or asked >= given:
            # Asked for 0 a second time: what kept it then, a finalizer, still does or is gone by now.
            return 0, not (asked == 0 and given == 0 and not metadata.get("finalizers"))
        start = seconds(metadata["deletionTimestamp"]) - given
        metadata["deletionTimestamp"] = rfc3339(start + asked)
        metadata["deletionGracePeriodSeconds"] = asked
        return asked, False
    spec = obj.get("spec", {})
    grace = asked if asked is not None else spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE)
    if grace < 0:
        grace = 1
    if not spec.get("nodeName") or obj.get("status", {}).get("phase") in ("Failed", "Succeeded"):
        grace = 0  # nobody has to stop anything
    _mark(metadata, now, grace, True)
    return int(grace), False


def _mark(metadata: Object, now: float, grace: int, wanted: bool) -> None:
    if not wanted:
        return
    metadata["deletionTimestamp"] = rfc3339(now + grace)
    metadata["deletionGracePeriodSeconds"] = grace
    if metadata.get("generation"):
        metadata["generation"] += 1


