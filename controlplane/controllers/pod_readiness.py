"""PURE. Whether a pod counts: Ready, available for long enough, neither finished nor on its way out."""

from __future__ import annotations

from controlplane.controllers.base import Object
from controlplane.controllers.stamps import seconds


def is_ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_active(pod: Object) -> bool:
    """Neither finished nor on its way out."""
    phase = (pod.get("status") or {}).get("phase")
    return phase not in ("Succeeded", "Failed") and not pod["metadata"].get("deletionTimestamp")


def available_in(pod: Object, min_ready_seconds: int, now: float) -> float | None:
    """Seconds until the pod counts as available (0: it does), or None while it is not Ready."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            since = condition.get("lastTransitionTime")
            if not min_ready_seconds or not since:
                return 0.0
            return max(0.0, min_ready_seconds - (now - seconds(since)))
    return None
