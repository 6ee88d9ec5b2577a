"""What may change in a pod that exists: images, deadlines, more tolerations, and little else.

A container's command or volumes cannot change under a running process, so the API refuses it at the door.
Upstream's ValidatePodUpdate and ValidatePodEphemeralContainersUpdate
(pkg/apis/core/validation/validation.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.apiserver.service_account_volume import is_mirror
from controlplane.apiserver.validation_addresses import IP_DETAIL
from controlplane.apiserver.validation_containers import check_containers
from controlplane.apiserver.validation_fields import Causes
from controlplane.apiserver.validation_pods import check_tolerations
from kubeclient.addresses import read_ip

Object = dict[str, Any]

_FROZEN = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)
_SHOWN_CHANGES = 10
# What the kubelet goes by when it tells which pod is whose; and what a running process has got already.
_MIRROR, _APPARMOR = "kubernetes.io/config.mirror", "container.apparmor.security.beta.kubernetes.io/"


def pod_update(causes: Causes, new: Object, old: Object) -> None:
    """Compares the specs after setting the changeable fields equal."""
    _check_annotations(causes, new, old)
    for field in ("hostIPs", "podIPs"):
        told, before_it = ((pod.get("status") or {}).get(field) or [] for pod in (new, old))
        if told != before_it:
            _check_addresses(causes, f"status.{field}", told)
    after, before = new.get("spec") or {}, old.get("spec") or {}
    stop = False
    for name in ("containers", "initContainers"):
        if len(after.get(name) or ()) != len(before.get(name) or ()):
            causes.forbidden(f"spec.{name}", "pod updates may not add or remove containers")
            stop = True
    if stop:
        return
    for name in ("containers", "initContainers"):
        for index, container in enumerate(after.get(name) or ()):
            image = container.get("image") or ""
            if not image:
                causes.required(f"spec.{name}[{index}].image")
            elif image != image.strip():
                causes.invalid(
                    f"spec.{name}[{index}].image", image, "must not have leading or trailing whitespace"
                )
    _check_deadline(causes, after, before)
    _check_tolerations(causes, after, before)
    gates_only_removed(causes, after, before)
    if (after.get("ephemeralContainers") or []) != (before.get("ephemeralContainers") or []):
        causes.found.extend(ephemeral_containers_update(new, old).found)
    changed = list(differences(_comparable(before, before), _comparable(after, before), "spec"))
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:_SHOWN_CHANGES])
        causes.forbidden("spec", f"{_FROZEN}\n{shown}\n")


def _check_annotations(causes: Causes, new: Object, old: Object) -> None:
    after, before = (pod["metadata"].get("annotations") or {} for pod in (new, old))
    for key in sorted({*after, *before}):
        if key == _MIRROR:
            what = "mirror pod annotation"
        elif key.startswith(_APPARMOR):
            what = "AppArmor annotations"
        else:
            continue
        if after.get(key) != before.get(key):
            verb = "remove or update" if key in before else "add"
            causes.forbidden(f"metadata.annotations[{key}]", f"may not {verb} {what}")


def _check_addresses(causes: Causes, path: str, entries: list[Object]) -> None:
    """What endpoints and rules are made of, far from here (upstream: validatePodIPs, validateHostIPs)."""
    found = []
    for index, entry in enumerate(entries):
        address = read_ip(entry.get("ip") or "")
        if address is None:
            causes.invalid(f"{path}[{index}]", entry.get("ip") or "", IP_DETAIL)
        else:
            found.append(address.version)
    if len(found) > len(set(found)):
        shown = [entry.get("ip") for entry in entries]
        causes.invalid(path, shown, "may specify no more than one IP for each IP family")


def _check_deadline(causes: Causes, after: Object, before: Object) -> None:
    new, old = after.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    path = "spec.activeDeadlineSeconds"
    if new is not None and not 0 <= new < 2**31:
        causes.invalid(path, new, "must be between 0 and 2147483647, inclusive")
    elif new is not None and old is not None and new > old:
        causes.invalid(path, new, "must be less than or equal to previous value")
    elif new is None and old is not None:
        causes.invalid(path, None, "must not update from a positive integer to nil value")


def _check_tolerations(causes: Causes, after: Object, before: Object) -> None:
    new, old = after.get("tolerations") or [], before.get("tolerations") or []
    if new == old:
        return
    kept = [_without_seconds(item) for item in new]
    if any(_without_seconds(item) not in kept for item in old):
        detail = "existing toleration can not be modified except its tolerationSeconds"
        causes.forbidden("spec.tolerations", detail)
    check_tolerations(causes, "spec.tolerations", new)


def _without_seconds(toleration: Object) -> Object:
    return {key: value for key, value in toleration.items() if key != "tolerationSeconds"}


def gates_only_removed(causes: Causes, after: Object, before: Object) -> None:
    old = [gate.get("name") for gate in before.get("schedulingGates") or ()]
    for gate in after.get("schedulingGates") or ():
        if gate.get("name") not in old:
            detail = f"only deletion is allowed, but found new scheduling gate '{gate.get('name')}'"
            causes.forbidden("spec.schedulingGates", detail)


def _comparable(spec: Object, reference: Object) -> Object:
    """The part of a spec that must not change; while a pod is gated its nodeSelector may still be narrowed.
    """
    out = {key: value for key, value in spec.items() if key not in _CHANGEABLE}
    for name in ("containers", "initContainers"):
        if name in out:
            out[name] = [{k: v for k, v in item.items() if k != "image"} for item in out[name]]
    if reference.get("schedulingGates"):
        out.pop("nodeSelector", None)
    if (reference.get("terminationGracePeriodSeconds") or 0) < 0 and spec.get(
        "terminationGracePeriodSeconds"
    ) == 1:
        out["terminationGracePeriodSeconds"] = reference["terminationGracePeriodSeconds"]
    return out


_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "schedulingGates", "ephemeralContainers")


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Lines `path: old → new` for every leaf that differs."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{path}[{index}]")
    elif not (not old and not new and old is not False and new is not False):
        yield f"{path}: {old!r} → {new!r}"


def ephemeral_containers_update(new: Object, old: Object) -> Causes:
    """For pods/ephemeralcontainers: containers may be added, those that exist stay as they are."""
    causes = Causes()
    if is_mirror(old):
        causes.forbidden("", "static pods do not support ephemeral containers")
        return causes
    spec = new.get("spec") or {}
    volumes = {volume.get("name") or "" for volume in spec.get("volumes") or ()}
    check_containers(causes, "spec", spec, volumes, template=False)
    # The other containers do not change here: one that was taken when less was refused is debugged like any.
    causes.found = [cause for cause in causes.found if cause.field.startswith("spec.ephemeralContainers")]
    added = {item.get("name"): item for item in spec.get("ephemeralContainers") or ()}
    for index, existing in enumerate((old.get("spec") or {}).get("ephemeralContainers") or ()):
        name = existing.get("name")
        if name not in added:
            detail = f'existing ephemeral containers "{name}" may not be removed\n'
            causes.forbidden("spec.ephemeralContainers", detail)
        elif added[name] != existing:
            detail = f'existing ephemeral containers "{name}" may not be changed\n'
            causes.forbidden(f"spec.ephemeralContainers[{index}]", detail)
    return causes
