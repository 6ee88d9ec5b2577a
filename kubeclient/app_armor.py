"""The annotation that named a container's AppArmor profile before Kubernetes 1.30 had a field for it.

The API server makes the field of it; a static pod reaches the agent with the annotation alone.
"""

from __future__ import annotations

from collections.abc import Mapping

ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_KINDS = {"runtime/default": "RuntimeDefault", "unconfined": "Unconfined"}
_LOCAL = "localhost/"


def field_of(value: str) -> dict[str, str] | None:
    """The appArmorProfile that the annotation's value stands for; None for one that means nothing."""
    if value in _KINDS:
        return {"type": _KINDS[value]}
    if value.startswith(_LOCAL):
        return {"type": "Localhost", "localhostProfile": value.removeprefix(_LOCAL)}
    return None


def annotated(annotations: Mapping[str, str], container: str) -> dict[str, str] | None:
    """The container's appArmorProfile by its annotation; None without one."""
    return field_of(annotations.get(ANNOTATION + container, ""))
