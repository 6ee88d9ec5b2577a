"""What a client is warned of when it creates a pod, or something with a template of one, that is valid.

Upstream takes some values that it would refuse today, because objects with them exist, and warns instead:
GetWarningsForPod and GetWarningsForPodTemplate of pkg/api/pod/warnings.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

_TEMPLATES = {
    ("", "replicationcontrollers"): ("template",),
    ("apps", "deployments"): ("template",),
    ("apps", "replicasets"): ("template",),
    ("apps", "statefulsets"): ("template",),
    ("apps", "daemonsets"): ("template",),
    ("batch", "jobs"): ("template",),
    ("batch", "cronjobs"): ("jobTemplate", "spec", "template"),
}


def pod_warnings(group: str, plural: str, obj: Object) -> Iterator[str]:
    """One sentence for each thing to warn of."""
    path, holder = "", obj
    if (group, plural) != ("", "pods"):
        if (group, plural) not in _TEMPLATES:
            return
        steps = ("spec", *_TEMPLATES[group, plural])
        for step in steps:
            holder = holder.get(step) or {}
        path = ".".join(steps) + "."
    grace = (holder.get("spec") or {}).get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        yield (
            f"{path}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will "
            "be treated as 1"
        )
