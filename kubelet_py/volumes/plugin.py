"""What a volume is to the agent: something that can be set up below the pod's folder, and asked for updates.

Two sorts: a volume that is a *place* (emptyDir, hostPath) answers with a path on the host; a volume that is a
*payload* (configMap, secret, projected, downwardAPI) answers with files, which the manager writes at once by
the atomic writer, again when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kubelet_py.pods.model import Object
from kubelet_py.volumes.atomic_writer import Payload

Lookup = Callable[[str, str], Object | None]
TokenSource = Callable[[Object, str, int], str]
"""(pod, audience or "", seconds) → a signed service-account token."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the pod's volumes may ask about."""

    pod: Object
    lookup: Lookup
    token: TokenSource
    facts: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    root: Path = Path("/")

    @property
    def fs_group(self) -> int | None:
        value = (self.pod["spec"].get("securityContext") or {}).get("fsGroup")
        return None if value is None else int(value)


PayloadMaker = Callable[[Context, Object], Payload]
"""(context, the volume source's object) → files; VolumeError names what is missing."""
