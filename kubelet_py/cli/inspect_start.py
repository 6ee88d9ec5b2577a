"""The steps of a pod's start with their milliseconds, for `kubelet-py inspect pod`.

Only the agent that started the pod knows them: they are asked of its /timeline, through the API server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubeclient.rest import RestClient


def inspect_start(client: RestClient, pod: dict[str, Any]) -> list[str] | str:
    """A line for each step, or why there is none."""
    from kubeclient.errors import ApiError

    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    if not node:
        return "(no node has the pod yet)"
    path = f"/api/v1/nodes/{node}/proxy/timeline/{metadata['namespace']}/{metadata['name']}"
    try:
        code, _, body = client.raw("GET", path)
    except ApiError as error:
        return f"(not known: {error})"
    if code != 200:
        return f"(not known: {body.decode(errors='replace').strip()})"
    return lines(json.loads(body))


def lines(timeline: dict[str, Any]) -> list[str]:
    """When, how long, what; the whole at the end.

    >>> step = {"step": "image", "container": "web", "atMilliseconds": 12.3, "milliseconds": 4.56}
    >>> lines({"createdToSeenMilliseconds": 80, "totalMilliseconds": 31.2, "steps": [step]})
    ['+12.3 ms: image web took 4.6 ms', 'told the API that it runs after 31.2 ms']
    """
    if not timeline["steps"]:
        return ["(the agent was started after the pod)"]
    found = []
    for step in timeline["steps"]:
        what = f"{step['step']} {step.get('container', '')}".strip()
        failed = " and failed" if step.get("failed") else ""
        found.append(f"+{step['atMilliseconds']:.1f} ms: {what} took {step['milliseconds']:.1f} ms{failed}")
    if "totalMilliseconds" in timeline:
        found.append(f"told the API that it runs after {timeline['totalMilliseconds']:.1f} ms")
    return found
