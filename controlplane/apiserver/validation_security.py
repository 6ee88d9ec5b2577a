"""Security contexts of pods and containers.

Upstream: ValidateSecurityContext, ValidatePodSecurityContext, validateSysctls and validateHostUsers of
pkg/apis/core/validation. Windows' options are refused on every pod, not only on one that says it is for
Linux: there is no Windows here that could obey them.
"""

from __future__ import annotations

import re
from typing import Any

from controlplane.apiserver.validation_fields import Causes

Object = dict[str, Any]

_MAX_ID = 2**31 - 1
_ID_RANGE = f"must be between 0 and {_MAX_ID}, inclusive"
_PROFILES = ("Localhost", "RuntimeDefault", "Unconfined")
_SYSCTL_LENGTH = 253
_PART = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SYSCTL = rf"^({_PART}[\./])*{_PART}$"
_SYSCTL_DETAIL = f"must have at most {_SYSCTL_LENGTH} characters and match regex {_SYSCTL}"
_IPC = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")
_WINDOWS = "windows options cannot be set for a linux pod"
_NO_USERS = "when `hostUsers` is false"


def check_pod_security(causes: Causes, path: str, spec: Object) -> None:
    """`path` is that of the pod's spec."""
    where, context = f"{path}.securityContext", spec.get("securityContext") or {}
    _check_common(causes, where, context)
    _check_id(causes, f"{where}.fsGroup", context.get("fsGroup"))
    for index, group in enumerate(context.get("supplementalGroups") or ()):
        _check_id(causes, f"{where}.supplementalGroups[{index}]", group)
    for field, known in (
        ("supplementalGroupsPolicy", ("Merge", "Strict")),
        ("fsGroupChangePolicy", ("Always", "OnRootMismatch")),
    ):
        causes.one_of(f"{where}.{field}", context.get(field), known, empty_ok=True)
    _check_sysctls(causes, f"{where}.sysctls", spec, context.get("sysctls") or [])
    if spec.get("hostPID") and spec.get("shareProcessNamespace"):
        detail = "ShareProcessNamespace and HostPID cannot both be enabled"
        causes.invalid(f"{path}.shareProcessNamespace", True, detail)
    if spec.get("hostUsers") is False:
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                causes.forbidden(f"{path}.{field}", _NO_USERS)


def check_container_security(causes: Causes, path: str, context: Object, spec: Object) -> None:
    """`path` is that of the container's securityContext; `spec` the pod's."""
    _check_common(causes, path, context)
    kind = context.get("procMount")
    causes.one_of(f"{path}.procMount", kind, ("Default", "Unmasked"), empty_ok=True)
    if kind == "Unmasked" and spec.get("hostUsers") is not False:
        causes.invalid(f"{path}.procMount", kind, "`hostUsers` must be false to use `Unmasked`")
    if context.get("allowPrivilegeEscalation") is not False:
        return
    if context.get("privileged"):
        detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        causes.invalid(path, context, detail)
    if "CAP_SYS_ADMIN" in ((context.get("capabilities") or {}).get("add") or ()):
        detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"
        causes.invalid(path, context, detail)


def _check_common(causes: Causes, path: str, context: Object) -> None:
    for field in ("runAsUser", "runAsGroup"):
        _check_id(causes, f"{path}.{field}", context.get(field))
    _check_profile(causes, f"{path}.seccompProfile", context.get("seccompProfile"), "seccomp")
    _check_profile(causes, f"{path}.appArmorProfile", context.get("appArmorProfile"), "AppArmor")
    if context.get("windowsOptions") is not None:
        causes.forbidden(f"{path}.windowsOptions", _WINDOWS)


def _check_id(causes: Causes, path: str, value: Any) -> None:
    if value is not None and not 0 <= value <= _MAX_ID:
        causes.invalid(path, value, _ID_RANGE)


def _check_profile(causes: Causes, path: str, profile: Object | None, what: str) -> None:
    if profile is None:
        return
    kind, local = profile.get("type") or "", profile.get("localhostProfile")
    if not kind and what == "AppArmor":
        causes.required(f"{path}.type", "type is required when appArmorProfile is set")
    elif kind not in _PROFILES:
        causes.not_supported(f"{path}.type", kind, _PROFILES)
    elif kind == "Localhost" and not (local or "").strip():
        causes.required(f"{path}.localhostProfile", f"must be set when {what} type is Localhost")
    elif kind != "Localhost" and local is not None:
        detail = f"can only be set when {what} type is Localhost"
        causes.invalid(f"{path}.localhostProfile", local, detail)
    elif local is not None:
        _check_localhost(causes, f"{path}.localhostProfile", local, what)


def _check_localhost(causes: Causes, path: str, name: str, what: str) -> None:
    if what == "AppArmor":
        if name != name.strip():
            causes.invalid(path, name, "must not be padded with whitespace")
    elif name.startswith("/"):
        causes.invalid(path, name, "must be a relative path")
    elif ".." in name.split("/"):
        causes.invalid(path, name, "must not contain '..'")


def _check_sysctls(causes: Causes, path: str, spec: Object, sysctls: list[Object]) -> None:
    seen: set[str] = set()
    for index, sysctl in enumerate(sysctls):
        where, name = f"{path}[{index}].name", sysctl.get("name") or ""
        plain = name.replace("/", ".")
        if not name:
            causes.required(where)
        elif len(name) > _SYSCTL_LENGTH or not re.fullmatch(_SYSCTL, name):
            causes.invalid(where, name, _SYSCTL_DETAIL)
        elif plain in seen:
            causes.duplicate(where, name)
        elif spec.get("hostNetwork") and plain.startswith("net."):
            causes.invalid(f"{path}[{index}].name", name, "may not be specified when 'hostNetwork' is true")
        elif spec.get("hostIPC") and plain.startswith(_IPC):
            causes.invalid(f"{path}[{index}].name", name, "may not be specified when 'hostIPC' is true")
        seen.add(plain)
