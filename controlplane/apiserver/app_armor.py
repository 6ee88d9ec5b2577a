"""AppArmor's annotation of before 1.30 and the field that took its place.

Upstream: applyAppArmorVersionSkew of pkg/registry/core/pod, ValidateAppArmorPodAnnotations and
validateAppArmorAnnotationsAndFieldsMatchOnCreate of pkg/apis/core/validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.apiserver.validation_fields import Causes, go_value
from kubeclient.app_armor import ANNOTATION, annotated, field_of

Object = dict[str, Any]

_LISTS = ("initContainers", "containers", "ephemeralContainers")
_OLD = 'deprecated since v1.30; use the "appArmorProfile" field instead'
_MATCH = "in annotation and field must match"


def give_fields(pod: Object, warnings: list[str]) -> None:
    """Make the field of the annotation where a container has none, and say that the annotation is old."""
    annotations, spec = pod["metadata"].get("annotations") or {}, pod.get("spec") or {}
    general = (spec.get("securityContext") or {}).get("appArmorProfile")
    for _, container in _containers(spec):
        key, context = ANNOTATION + (container.get("name") or ""), container.get("securityContext") or {}
        if key not in annotations or context.get("appArmorProfile") is not None:
            continue
        profile = field_of(annotations[key])
        if profile is not None and _is_empty_or_padded(profile):
            profile = None
        if profile is not None and profile != general:
            container["securityContext"] = {**context, "appArmorProfile": profile}
        if profile is None or profile != general:
            warnings.append(f"metadata.annotations[{key}]: {_OLD}")


def _is_empty_or_padded(profile: Mapping[str, str]) -> bool:
    name = profile.get("localhostProfile")
    return name is not None and (not name.strip() or name != name.strip())


def check_app_armor(causes: Causes, path: str, annotations: Mapping[str, str], spec: Object) -> None:
    """`path` is that of the object that has metadata and spec: "" for a pod."""
    before = f"{path}." if path else ""
    names = {container.get("name") for _, container in _containers(spec)}
    for key, value in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        where, name = f"{before}metadata.annotations[{key}]", key.removeprefix(ANNOTATION)
        if name not in names:
            causes.invalid(where, name, "container not found")
        if value and field_of(value) is None:
            causes.invalid(where, value, f"invalid AppArmor profile name: {go_value(value)}")
    for where, container in _containers(spec):
        _check_match(causes, f"{before}spec.{where}", annotations, container)


def _check_match(causes: Causes, path: str, annotations: Mapping[str, str], container: Object) -> None:
    name = container.get("name") or ""
    profile = (container.get("securityContext") or {}).get("appArmorProfile")
    if profile is None or ANNOTATION + name not in annotations:
        return
    wanted, where = annotated(annotations, name) or {}, f"{path}.securityContext.appArmorProfile"
    if profile.get("type") != wanted.get("type"):
        causes.forbidden(f"{where}.type", f"apparmor type {_MATCH}")
    elif profile.get("localhostProfile") != wanted.get("localhostProfile"):
        causes.forbidden(f"{where}.localhostProfile", f"apparmor profile {_MATCH}")


def _containers(spec: Object) -> Iterator[tuple[str, Object]]:
    """Each container with its place in the spec."""
    for kind in _LISTS:
        for index, container in enumerate(spec.get(kind) or ()):
            yield f"{kind}[{index}]", container
