"""Configuration and infrastructure objects: ConfigMaps, Secrets, Nodes, Events, Leases.

Upstream: pkg/apis/core/validation, pkg/apis/coordination/validation. Bytes are
counted as stored, so a ConfigMap or Secret always fits into one store record.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from controlplane.apiserver.validation_fields import (
    IMMUTABLE,
    Causes,
    config_key,
    label_value,
    qualified_name,
)

Object = dict[str, Any]

_MAX_SIZE = 1024 * 1024
_FROZEN = "field is immutable when `immutable` is set"
_EFFECTS = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_REDACTED = "<secret contents redacted>"
_SECRET_KEYS: dict[str, tuple[str, ...]] = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
}


def config_map(causes: Causes, obj: Object) -> None:
    text, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    for key in text:
        causes.each(f"data[{key}]", key, config_key(key))
        if key in binary:
            causes.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
    for key in binary:
        causes.each(f"binaryData[{key}]", key, config_key(key))
    size = sum(len(value.encode()) for value in text.values())
    size += sum(len(base64.b64decode(value)) for value in binary.values())
    if size > _MAX_SIZE:
        causes.too_long("", _MAX_SIZE)


def config_map_update(causes: Causes, new: Object, old: Object) -> None:
    if not old.get("immutable"):
        return
    if not new.get("immutable"):
        causes.forbidden("immutable", _FROZEN)
    for field in ("data", "binaryData"):
        if (new.get(field) or {}) != (old.get(field) or {}):
            causes.forbidden(field, _FROZEN)


def secret(causes: Causes, obj: Object) -> None:
    data = obj.get("data") or {}
    for key in data:
        causes.each(f"data[{key}]", key, config_key(key))
    if sum(len(base64.b64decode(value)) for value in data.values()) > _MAX_SIZE:
        causes.too_long("data", _MAX_SIZE)
    kind = obj.get("type")
    for key in _SECRET_KEYS.get(kind or "", ()):
        if key not in data:
            causes.required(f"data[{key}]")
        elif key.startswith(".docker") and not _is_json_object(data[key]):
            causes.invalid(f"data[{key}]", _REDACTED, "invalid character in JSON")
    if kind == "kubernetes.io/basic-auth" and not {"username", "password"} & set(data):
        causes.required("data[username]")
        causes.required("data[password]")
    if kind == "kubernetes.io/service-account-token":
        annotations = (obj.get("metadata") or {}).get("annotations") or {}
        if not annotations.get("kubernetes.io/service-account.name"):
            causes.required("metadata.annotations[kubernetes.io/service-account.name]")


def _is_json_object(encoded: str) -> bool:
    try:
        return isinstance(json.loads(base64.b64decode(encoded)), dict)
    except ValueError:
        return False


def secret_update(causes: Causes, new: Object, old: Object) -> None:
    if new.get("type") != old.get("type"):
        causes.invalid("type", new.get("type"), IMMUTABLE)
    if not old.get("immutable"):
        return
    if not new.get("immutable"):
        causes.forbidden("immutable", _FROZEN)
    if (new.get("data") or {}) != (old.get("data") or {}):
        causes.forbidden("data", _FROZEN)


def node(causes: Causes, obj: Object) -> None:
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
        where = f"spec.taints[{index}]"
        key, effect = taint.get("key") or "", taint.get("effect") or ""
        causes.each(f"{where}.key", key, qualified_name(key))
        causes.each(f"{where}.value", taint.get("value") or "", label_value(taint.get("value") or ""))
        causes.one_of(f"{where}.effect", effect, _EFFECTS)
        if (key, effect) in seen:
            causes.duplicate(where, f"{key}:{effect}")
        seen.add((key, effect))


def node_update(causes: Causes, new: Object, old: Object) -> None:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    kept = all(after.get(field) == before[field] for field in ("podCIDR", "podCIDRs") if before.get(field))
    if not kept:
        causes.forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
    if before.get("providerID") and after.get("providerID") != before["providerID"]:
        causes.forbidden("spec.providerID", 'node updates may not change providerID except from "" to valid')


def event(causes: Causes, obj: Object) -> None:
    """An event lives in the namespace of what it is about; events on cluster-scoped objects live in default.
    """
    namespace = (obj.get("metadata") or {}).get("namespace")
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    subject = about.get("namespace") or ""
    path = "involvedObject.namespace" if "involvedObject" in obj else "regarding.namespace"
    if not subject:
        if namespace not in ("default", "kube-system"):
            causes.invalid(path, subject, "does not match event.namespace")
    elif subject != namespace:
        causes.invalid(path, subject, "does not match event.namespace")


def lease(causes: Causes, obj: Object) -> None:
    spec = obj.get("spec") or {}
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        causes.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0")
    if transitions is not None and transitions < 0:
        causes.invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0")
