"""What every kind of volume gets and gives.

A volume that is a *place* (emptyDir, hostPath, a claim) answers with a path on the host; a volume that is a
*payload* (configMap, secret, projected, downwardAPI) answers with files, which the manager writes at once by
the atomic writer, again when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubelet_py.pods.model import Object
from kubelet_py.volumes.atomic_writer import Payload

Lookup = Callable[[str, str], Object | None]
"""("configmap", "secret", "persistentvolumeclaim" or "persistentvolume", name) → the object or None."""
TokenSource = Callable[[Object, str, int], str]
"""(pod, audience or "", seconds) → a signed service-account token."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that is ready: where it is on the host, whether containers may only read it, and whether its
    owners are the pod's users already (else a pod with users of its own has them mapped by the mount)."""

    path: Path
    read_only: bool = False
    mapped: bool = False


Volumes = Mapping[str, Volume]


@dataclass(frozen=True, slots=True)
class Context:
    """What the pod's volumes may ask about."""

    pod: Object
    lookup: Lookup
    token: TokenSource
    facts: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    node: Mapping[str, Any] = field(default_factory=dict)  # the Node object: claims may be bound to places

    @property
    def security(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.pod["spec"].get("securityContext") or {}
        return found

    @property
    def fs_group(self) -> int | None:
        value = self.security.get("fsGroup")
        return None if value is None else int(value)


PayloadMaker = Callable[[Context, Object], Payload]
"""(context, the volume source's object) → files; VolumeError names what is missing."""


def kind_of(volume: Object) -> str:
    """Which of the sources a volume has; one without any is an emptyDir."""
    return next((key for key in volume if key != "name"), "emptyDir")
