"""Says in a pod's status that it is about to be deleted, and why: the DisruptionTarget condition.

Whoever looks after the pod's work (a Job's pod failure policy) can then tell a node's fault from the pod's
own. Source: upstream's KEP 3329, pod_gc's markFailedAndDeletePod.
"""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.controllers.base import Object
from kubeclient.resources import PODS
from kubeclient.rest import RestClient

FINISHED = ("Succeeded", "Failed")


def announce(client: RestClient, pod: Object, reason: str, message: str, *, failed: bool = False) -> None:
    """Write the condition, and with `failed` the phase: of a pod that nobody else can finish."""
    metadata = pod["metadata"]
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    status: Object = {"conditions": [condition]}
    if failed and (pod.get("status") or {}).get("phase") not in FINISHED:
        status["phase"] = "Failed"
    body = {"metadata": {"uid": metadata["uid"]}, "status": status}
    client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")
