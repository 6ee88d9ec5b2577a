"""Containers of a pod spec: names, images, ports, environment, mounts, probes, resources.

Upstream's validateContainers, validateInitContainers and validateEphemeralContainers
(pkg/apis/core/validation/validation.go). Names are unique over all three lists.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.validation_downward import ENVIRONMENT_PATHS, check_field_ref, check_resource_ref
from controlplane.apiserver.validation_fields import (
    NOT_NEGATIVE,
    Causes,
    config_key,
    dns_label,
    environment_name,
    port_name,
    qualified_name,
)
from controlplane.apiserver.validation_security import check_container_security
from controlplane.apiserver.validation_volumes import check_inside
from kubeclient import quantity

Object = dict[str, Any]

_RESIZE_POLICIES = ("NotRequired", "RestartContainer")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_MESSAGE_POLICIES = ("FallbackToLogsOnError", "File")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
_PROBE_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_HOOK_HANDLERS = ("exec", "httpGet", "tcpSocket", "sleep")
_PROBE_NUMBERS = (
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
)
_STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_PROPAGATIONS = ("Bidirectional", "HostToContainer", "None")
_RECURSIVE = ("Disabled", "Enabled", "IfPossible")
_ONLY_REGULAR = ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")


def check_containers(causes: Causes, path: str, spec: Object, volumes: set[str], *, template: bool) -> None:
    """All three lists of one pod spec; `volumes` are the names that may be mounted."""
    regular = spec.get("containers") or []
    if not regular:
        causes.required(f"{path}.containers")
    names: set[str] = set()
    host_ports: set[tuple[str, str, int]] = set()
    for index, container in enumerate(regular):
        where = f"{path}.containers[{index}]"
        _check_container(causes, where, container, names, volumes, spec)
        _check_host_ports(causes, where, container, spec, host_ports)
    for index, container in enumerate(spec.get("initContainers") or ()):
        where = f"{path}.initContainers[{index}]"
        _check_container(causes, where, container, names, volumes, spec)
        _check_init(causes, where, container)
    for index, container in enumerate(spec.get("ephemeralContainers") or ()):
        where = f"{path}.ephemeralContainers[{index}]"
        _check_container(causes, where, container, names, volumes, spec)
        for field in (*_ONLY_REGULAR, "ports"):
            if container.get(field):
                causes.forbidden(f"{where}.{field}", "cannot be set for an Ephemeral Container")
    if template and spec.get("ephemeralContainers"):
        causes.forbidden(f"{path}.ephemeralContainers", "ephemeral containers not allowed in pod template")


def _check_init(causes: Causes, path: str, container: Object) -> None:
    policy = container.get("restartPolicy")
    if policy and policy != "Always":
        causes.not_supported(f"{path}.restartPolicy", policy, ("Always",))
    if policy != "Always":
        for field in _ONLY_REGULAR:
            if container.get(field):
                detail = "may not be set for init containers without restartPolicy=Always"
                causes.forbidden(f"{path}.{field}", detail)


def _check_container(
    causes: Causes, path: str, container: Object, names: set[str], volumes: set[str], spec: Object
) -> None:
    name = container.get("name") or ""
    if not name:
        causes.required(f"{path}.name")
    else:
        causes.each(f"{path}.name", name, dns_label(name))
        if name in names:
            causes.duplicate(f"{path}.name", name)
        names.add(name)
    image = container.get("image") or ""
    if not image:
        causes.required(f"{path}.image")
    elif image != image.strip():
        causes.invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
    _check_ports(causes, f"{path}.ports", container.get("ports") or [])
    _check_environment(causes, path, container)
    _check_mounts(causes, f"{path}.volumeMounts", container, volumes)
    causes.one_of(f"{path}.imagePullPolicy", container.get("imagePullPolicy"), _PULL_POLICIES)
    causes.one_of(
        f"{path}.terminationMessagePolicy", container.get("terminationMessagePolicy"), _MESSAGE_POLICIES
    )
    _check_resize_policy(causes, f"{path}.resizePolicy", container.get("resizePolicy") or [])
    check_resources(causes, f"{path}.resources", container.get("resources") or {})
    _check_probes(causes, path, container)
    _check_hooks(causes, f"{path}.lifecycle", container.get("lifecycle") or {}, spec)
    context = container.get("securityContext") or {}
    check_container_security(causes, f"{path}.securityContext", context, spec)


def _check_ports(causes: Causes, path: str, ports: list[Object]) -> None:
    names: set[str] = set()
    for index, port in enumerate(ports):
        where = f"{path}[{index}]"
        name = port.get("name")
        if name:
            problems = port_name(name)
            causes.each(f"{where}.name", name, problems)
            if not problems and name in names:
                causes.duplicate(f"{where}.name", name)
            names.add(name)
        if not port.get("containerPort"):
            causes.required(f"{where}.containerPort")
        else:
            causes.port(f"{where}.containerPort", port["containerPort"])
        if port.get("hostPort"):
            causes.port(f"{where}.hostPort", port["hostPort"])
        causes.one_of(f"{where}.protocol", port.get("protocol"), _PROTOCOLS)


def _check_host_ports(
    causes: Causes, path: str, container: Object, spec: Object, taken: set[tuple[str, str, int]]
) -> None:
    for index, port in enumerate(container.get("ports") or ()):
        where = f"{path}.ports[{index}]"
        host_port = port.get("hostPort")
        if not host_port:
            continue
        if spec.get("hostNetwork") and host_port != port.get("containerPort"):
            causes.invalid(
                f"{where}.containerPort",
                port.get("containerPort"),
                "must match `hostPort` when `hostNetwork` is true",
            )
        key = (port.get("protocol") or "TCP", port.get("hostIP") or "", host_port)
        if key in taken:
            causes.duplicate(f"{where}.hostPort", f"{key[0]}/{key[1]}/{key[2]}")
        taken.add(key)


def _check_environment(causes: Causes, path: str, container: Object) -> None:
    for index, variable in enumerate(container.get("env") or ()):
        where = f"{path}.env[{index}]"
        if not variable.get("name"):
            causes.required(f"{where}.name")
        else:
            causes.each(f"{where}.name", variable["name"], environment_name(variable["name"]))
        if "valueFrom" in variable:
            _check_value_from(causes, f"{where}.valueFrom", variable)
    for index, source in enumerate(container.get("envFrom") or ()):
        where = f"{path}.envFrom[{index}]"
        if source.get("prefix"):
            causes.each(f"{where}.prefix", source["prefix"], environment_name(source["prefix"]))
        kinds = [kind for kind in ("configMapRef", "secretRef") if kind in source]
        if not kinds:
            causes.invalid(where, "", "must specify one of: `configMapRef` or `secretRef`")
        elif len(kinds) > 1:
            causes.invalid(where, "", "may not have more than one field specified at a time")
        for kind in kinds:
            if not source[kind].get("name"):
                causes.required(f"{where}.{kind}.name")


def _check_value_from(causes: Causes, path: str, variable: Object) -> None:
    source = variable["valueFrom"]
    kinds = [kind for kind in _SOURCES if kind in source]
    if variable.get("value") and kinds:
        causes.invalid(path, "", "may not be specified when `value` is not empty")
    if not kinds:
        detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
        causes.invalid(path, "", detail)
    elif len(kinds) > 1:
        causes.invalid(path, "", "may not have more than one field specified at a time")
    for kind in kinds:
        where = f"{path}.{kind}"
        if kind == "fieldRef":
            check_field_ref(causes, where, source[kind], ENVIRONMENT_PATHS)
        elif kind == "resourceFieldRef":
            check_resource_ref(causes, where, source[kind], of_volume=False)
        elif not source[kind].get("key"):
            causes.required(f"{where}.key")
        else:
            causes.each(f"{where}.key", source[kind]["key"], config_key(source[kind]["key"]))


def _check_mounts(causes: Causes, path: str, container: Object, volumes: set[str]) -> None:
    seen: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        where = f"{path}[{index}]"
        name, target = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            causes.required(f"{where}.name")
        elif name not in volumes:
            causes.not_found(f"{where}.name", name)
        if not target:
            causes.required(f"{where}.mountPath")
        elif target in seen:
            causes.invalid(f"{where}.mountPath", target, "must be unique")
        seen.add(target)
        for field in ("subPath", "subPathExpr"):
            if mount.get(field):
                check_inside(causes, f"{where}.{field}", mount[field])
        if mount.get("subPath") and mount.get("subPathExpr"):
            causes.invalid(
                f"{where}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually exclusive"
            )
        _check_propagation(causes, where, mount, container)


def _check_propagation(causes: Causes, path: str, mount: Object, container: Object) -> None:
    wanted, recursive = mount.get("mountPropagation"), mount.get("recursiveReadOnly")
    causes.one_of(f"{path}.mountPropagation", wanted, _PROPAGATIONS, empty_ok=True)
    if wanted == "Bidirectional" and not (container.get("securityContext") or {}).get("privileged"):
        detail = "Bidirectional mount propagation is available only to privileged containers"
        causes.forbidden(f"{path}.mountPropagation", detail)
    causes.one_of(f"{path}.recursiveReadOnly", recursive, _RECURSIVE, empty_ok=True)
    if recursive in ("Enabled", "IfPossible"):
        if not mount.get("readOnly"):
            causes.forbidden(f"{path}.recursiveReadOnly", "may only be specified when readOnly is true")
        if wanted not in (None, "None"):
            detail = "may only be specified when mountPropagation is None or not specified"
            causes.forbidden(f"{path}.recursiveReadOnly", detail)


def check_resources(causes: Causes, path: str, resources: Object) -> None:
    """Known names, no negative amounts, requests not above limits."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            where = f"{path}.{kind}[{name}]"
            _check_resource_name(causes, f"{path}.{kind}", name)
            number = quantity.parse(str(amount))
            if number < 0:
                causes.invalid(where, str(amount), NOT_NEGATIVE)
            elif "/" in name and number % 1:
                causes.invalid(where, str(amount), "must be an integer")
    for name, amount in requests.items():
        if name in limits and quantity.parse(str(amount)) > quantity.parse(str(limits[name])):
            detail = f"must be less than or equal to {name} limit of {limits[name]}"
            causes.invalid(f"{path}.requests", str(amount), detail)


def _check_resize_policy(causes: Causes, path: str, policies: list[Object]) -> None:
    seen: set[str] = set()
    for index, policy in enumerate(policies):
        where, name = f"{path}[{index}]", policy.get("resourceName") or ""
        if name in seen:
            causes.duplicate(where, name)
        seen.add(name)
        causes.one_of(f"{where}.resourceName", name, ("cpu", "memory"))
        causes.one_of(f"{where}.restartPolicy", policy.get("restartPolicy"), _RESIZE_POLICIES)


def _check_resource_name(causes: Causes, path: str, name: str) -> None:
    if "/" in name:
        causes.each(path, name, qualified_name(name))
    elif name not in _STANDARD_RESOURCES and not name.startswith("hugepages-"):
        causes.invalid(path, name, "must be a standard resource for containers")


def _check_probes(causes: Causes, path: str, container: Object) -> None:
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(field)
        if probe is None:
            continue
        where = f"{path}.{field}"
        _check_handler(causes, where, probe, _PROBE_HANDLERS)
        for name in _PROBE_NUMBERS:
            causes.non_negative(f"{where}.{name}", probe.get(name))
        if field != "readinessProbe" and probe.get("successThreshold", 1) != 1:
            causes.invalid(f"{where}.successThreshold", probe["successThreshold"], "must be 1")
        grace = probe.get("terminationGracePeriodSeconds")
        if grace is not None and field == "readinessProbe":
            causes.invalid(
                f"{where}.terminationGracePeriodSeconds", grace, "must not be set for readinessProbes"
            )
        elif grace is not None and grace <= 0:
            causes.invalid(f"{where}.terminationGracePeriodSeconds", grace, "must be greater than 0")


def _check_hooks(causes: Causes, path: str, lifecycle: Object, spec: Object) -> None:
    grace = spec.get("terminationGracePeriodSeconds")
    for hook in ("postStart", "preStop"):
        handler = lifecycle.get(hook)
        if handler is None:
            continue
        _check_handler(causes, f"{path}.{hook}", handler, _HOOK_HANDLERS)
        seconds = (handler.get("sleep") or {}).get("seconds") or 0
        if "sleep" in handler and grace is not None and not 0 < seconds <= grace:
            detail = f"must be greater than 0 and less than terminationGracePeriodSeconds ({grace})"
            causes.invalid(f"{path}.{hook}.sleep", seconds, detail)


def _check_handler(causes: Causes, path: str, handler: Object, known: tuple[str, ...]) -> None:
    """A probe's or hook's action: exactly one of those it may have, and complete. Upstream has a type for
    each of the two, so that what only the other knows is an unknown field: it counts for nothing."""
    kinds = [kind for kind in known if kind in handler]
    if not kinds:
        causes.required(path, "must specify a handler type")
    for extra in kinds[1:]:
        causes.forbidden(f"{path}.{extra}", "may not specify more than 1 handler type")
    if not kinds:
        return
    kind, action = kinds[0], handler[kinds[0]]
    if kind == "exec" and not action.get("command"):
        causes.required(f"{path}.exec.command")
    elif kind == "httpGet":
        causes.port_or_name(f"{path}.httpGet.port", action.get("port"))
        causes.one_of(f"{path}.httpGet.scheme", action.get("scheme"), ("HTTP", "HTTPS"))
    elif kind == "tcpSocket":
        causes.port_or_name(f"{path}.tcpSocket.port", action.get("port"))
    elif kind == "grpc":
        causes.port(f"{path}.grpc.port", action.get("port"))
