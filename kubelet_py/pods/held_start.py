"""Which container may be set up while its pod is being made, and what is known of one that is.

The first container of a new pod need not wait for the pod's network, only its program (runtime/held.py). It
does wait where what it is made of is not known before: the pod's addresses, an image that has to be brought.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubelet_py.pods.model import Object
from runtime.held import HeldContainer

ADDRESSES = ("status.podIP", "status.podIPs")


@dataclass(frozen=True, slots=True)
class HeldStart:
    """The container `name` of the pod in `sandbox_id`, set up as far as its program."""

    name: str
    sandbox_id: str
    log_path: str
    container: HeldContainer
    said: tuple[tuple[Object, str, str, str, str], ...] = ()  # events, to be told when it is let go


def may_be_held(pod: Object, container: Object) -> bool:
    """PURE. Whether all of the container is known before the pod has a network; its image apart."""
    if container.get("tty"):
        return False
    for entry in container.get("env") or ():
        field = (entry.get("valueFrom") or {}).get("fieldRef") or {}
        if field.get("fieldPath") in ADDRESSES:
            return False
    mounted = {entry["name"] for entry in container.get("volumeMounts") or ()}
    volumes = pod["spec"].get("volumes") or ()
    return not any(volume.get("image") and volume["name"] in mounted for volume in volumes)
