"""PURE: which values a static pod may have: what an API server would have refused.

Names become names of folders and cgroups, amounts are added up with those of other pods: a manifest that no
API server has looked at is looked at here. Upstream runs its whole ValidatePodCreate over it
(pkg/kubelet/config/common.go); these are the rules that people's files break, in its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kubeclient import quantity
from kubelet_py.pods.model import Object

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_PORT_NAME = r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?"
_PULL = ("Always", "IfNotPresent", "Never")
_POLICIES = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_MESSAGES = ("File", "FallbackToLogsOnError")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_PROBE_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_HOOK_HANDLERS = ("exec", "httpGet", "tcpSocket", "sleep")
_PROPAGATIONS = ("Bidirectional", "HostToContainer", "None")
_RECURSIVE = ("Disabled", "Enabled", "IfPossible")
_LARGEST_ID = 2**31 - 1
_NEEDED = {
    "configMap": ("name",),
    "hostPath": ("path",),
    "image": ("reference",),
    "nfs": ("server", "path"),
    "persistentVolumeClaim": ("claimName",),
    "secret": ("secretName",),
}
_NEEDED_OF_SOURCE = {"configMap": ("name",), "secret": ("name",), "serviceAccountToken": ("path",)}
# Fields of other names in other kinds are none of the API: nobody has looked at their types.
_WITH_ITEMS = ("configMap", "secret", "downwardAPI")
_WITH_MODE = (*_WITH_ITEMS, "projected")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def faults(pod: Object) -> Iterator[str]:
    """One sentence for each value that is refused. The types are right (manifest_shape.py), the defaults are
    filled in (manifests.py)."""
    metadata, spec = pod["metadata"], pod["spec"]
    yield from _name("metadata.name", metadata["name"], "subdomain", _SUBDOMAIN, 253)
    yield from _name("metadata.namespace", metadata["namespace"], "label", _LABEL, 63)
    yield from _one_of("spec.restartPolicy", spec["restartPolicy"], _POLICIES)
    yield from _one_of("spec.dnsPolicy", spec["dnsPolicy"], _DNS)
    yield from _bounded("spec.activeDeadlineSeconds", spec.get("activeDeadlineSeconds"), 1, 2**31 - 1)
    if spec.get("ephemeralContainers"):
        yield "spec.ephemeralContainers: Forbidden: static pods do not support ephemeral containers"
    yield from _resources("spec.resources", spec.get("resources") or {})
    for name, amount in (spec.get("overhead") or {}).items():
        yield from _amount(f"spec.overhead[{name}]", amount)
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        yield from _label(f"spec.volumes[{index}].name", volume.get("name", ""), volumes)
        yield from _volume(f"spec.volumes[{index}]", volume)
    yield from _pod_security("spec.securityContext", spec.get("securityContext") or {})
    names: set[str] = set()
    grace = spec["terminationGracePeriodSeconds"]
    for group in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(group) or ()):
            where = f"spec.{group}[{index}]"
            yield from _container(where, container, names, volumes, grace)
            context = container.get("securityContext") or {}
            yield from _container_security(f"{where}.securityContext", context, spec)
            policy = container.get("restartPolicy")
            if policy is not None and group == "containers":
                yield f"{where}.restartPolicy: Forbidden: may not be set for non-init containers"
            elif policy is not None:
                yield from _one_of(f"{where}.restartPolicy", policy, ("Always",))


def _container(
    path: str, container: Object, names: set[str], volumes: set[str], grace: int
) -> Iterator[str]:
    yield from _label(f"{path}.name", container.get("name", ""), names)
    if not container.get("image"):
        yield f"{path}.image: Required value"
    yield from _one_of(f"{path}.imagePullPolicy", container["imagePullPolicy"], _PULL)
    yield from _one_of(f"{path}.terminationMessagePolicy", container["terminationMessagePolicy"], _MESSAGES)
    yield from _resources(f"{path}.resources", container.get("resources") or {})
    for index, port in enumerate(container.get("ports") or ()):
        where = f"{path}.ports[{index}]"
        yield from _bounded(f"{where}.containerPort", port.get("containerPort", 0), 1, 65535)
        if port.get("hostPort"):
            yield from _bounded(f"{where}.hostPort", port["hostPort"], 1, 65535)
        yield from _one_of(f"{where}.protocol", port["protocol"], _PROTOCOLS)
    for index, entry in enumerate(container.get("env") or ()):
        if not entry.get("name"):
            yield f"{path}.env[{index}].name: Required value"
    yield from _mounts(f"{path}.volumeMounts", container.get("volumeMounts") or (), volumes)
    for kind in PROBES:
        if kind in container:
            yield from _probe(path, kind, container[kind])
    for hook, handler in (container.get("lifecycle") or {}).items():
        if hook in ("postStart", "preStop"):
            yield from _hook(f"{path}.lifecycle.{hook}", handler, grace)


def _volume(path: str, volume: Object) -> Iterator[str]:
    kinds = [kind for kind in volume if kind != "name"]
    for kind in kinds[1:]:
        yield f"{path}.{kind}: Forbidden: may not specify more than 1 volume type"
    for kind in kinds[:1]:
        where, source = f"{path}.{kind}", volume[kind]
        yield from _source(where, kind, source, _NEEDED.get(kind, ()))
        if kind in _WITH_MODE:
            yield from _bounded(f"{where}.defaultMode", source.get("defaultMode"), 0, 0o777)
        for index, entry in enumerate(source.get("sources") or () if kind == "projected" else ()):
            for name, inner in entry.items():
                yield from _source(
                    f"{where}.sources[{index}].{name}", name, inner, _NEEDED_OF_SOURCE.get(name, ())
                )


def _source(path: str, kind: str, source: Object, needed: Sequence[str]) -> Iterator[str]:
    for name in needed:
        if not source.get(name):
            yield f"{path}.{name}: Required value"
    for index, item in enumerate(source.get("items") or () if kind in _WITH_ITEMS else ()):
        if not item.get("path"):
            yield f"{path}.items[{index}].path: Required value"
        yield from _bounded(f"{path}.items[{index}].mode", item.get("mode"), 0, 0o777)


def _pod_security(path: str, context: Object) -> Iterator[str]:
    yield from _security(path, context)
    yield from _bounded(f"{path}.fsGroup", context.get("fsGroup"), 0, _LARGEST_ID)
    for index, group in enumerate(context.get("supplementalGroups") or ()):
        yield from _bounded(f"{path}.supplementalGroups[{index}]", group, 0, _LARGEST_ID)
    for field, known in (
        ("supplementalGroupsPolicy", ("Merge", "Strict")),
        ("fsGroupChangePolicy", ("Always", "OnRootMismatch")),
    ):
        yield from _one_of(f"{path}.{field}", context.get(field) or known[0], known)


def _container_security(path: str, context: Object, spec: Object) -> Iterator[str]:
    yield from _security(path, context)
    kind = context.get("procMount") or "Default"
    yield from _one_of(f"{path}.procMount", kind, ("Default", "Unmasked"))
    if kind == "Unmasked" and spec.get("hostUsers") is not False:
        yield f'{path}.procMount: Invalid value: "Unmasked": `hostUsers` must be false to use `Unmasked`'
    if context.get("privileged") and context.get("allowPrivilegeEscalation") is False:
        text = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"
        yield f"{path}: Invalid value: {text}"


def _security(path: str, context: Object) -> Iterator[str]:
    for field in ("runAsUser", "runAsGroup"):
        yield from _bounded(f"{path}.{field}", context.get(field), 0, _LARGEST_ID)
    if context.get("windowsOptions") is not None:
        yield f"{path}.windowsOptions: Forbidden: windows options cannot be set for a linux pod"


def _mounts(path: str, mounts: Sequence[Object], volumes: set[str]) -> Iterator[str]:
    places: set[str] = set()
    for index, mount in enumerate(mounts):
        where, name, place = f"{path}[{index}]", mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            yield f"{where}.name: Required value"
        elif name not in volumes:
            yield f'{where}.name: Not found: "{name}"'
        if not place:
            yield f"{where}.mountPath: Required value"
        elif place in places:
            yield f'{where}.mountPath: Invalid value: "{place}": must be unique'
        places.add(place)
        for field, known in (("mountPropagation", _PROPAGATIONS), ("recursiveReadOnly", _RECURSIVE)):
            yield from _one_of(f"{where}.{field}", mount.get(field) or known[-1], known)


def _probe(path: str, kind: str, probe: Object) -> Iterator[str]:
    where = f"{path}.{kind}"
    yield from _handler(where, probe, _PROBE_HANDLERS)
    least = {"periodSeconds": 1, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 1}
    for name in ("initialDelaySeconds", *least):
        yield from _bounded(f"{where}.{name}", probe.get(name), least.get(name, 0))
    grace, successes = probe.get("terminationGracePeriodSeconds"), probe.get("successThreshold") or 1
    if kind != "readinessProbe" and successes > 1:
        yield f"{where}.successThreshold: Invalid value: {successes}: must be 1"
    if grace is not None and kind == "readinessProbe":
        text = f"Invalid value: {grace}: must not be set for readinessProbes"
        yield f"{where}.terminationGracePeriodSeconds: {text}"
    elif grace is not None and grace <= 0:
        yield f"{where}.terminationGracePeriodSeconds: Invalid value: {grace}: must be greater than 0"


def _hook(path: str, hook: Object, grace: int) -> Iterator[str]:
    yield from _handler(path, hook, _HOOK_HANDLERS)
    seconds = (hook.get("sleep") or {}).get("seconds") or 0
    if "sleep" in hook and not 0 < seconds <= grace:
        bounds = f"must be greater than 0 and less than terminationGracePeriodSeconds ({grace})"
        yield f"{path}.sleep: Invalid value: {seconds}: {bounds}"


def _handler(path: str, handler: Object, kinds: Sequence[str]) -> Iterator[str]:
    given = [kind for kind in kinds if kind in handler]
    if not given:
        yield f"{path}: Required value: must specify a handler type"
    for kind in given[1:]:
        yield f"{path}.{kind}: Forbidden: may not specify more than 1 handler type"
    for kind in given[:1]:
        yield from _action(f"{path}.{kind}", kind, handler[kind])


def _action(path: str, kind: str, action: Object) -> Iterator[str]:
    if kind == "exec" and not action.get("command"):
        yield f"{path}.command: Required value"
    if kind in ("httpGet", "tcpSocket", "grpc"):
        port = action.get("port", 0)
        if isinstance(port, int):
            yield from _bounded(f"{path}.port", port, 1, 65535)
        elif re.fullmatch(_PORT_NAME, port) is None:
            yield f'{path}.port: Invalid value: "{port}": must be the name of a port, or its number'
    if kind == "httpGet":
        yield from _one_of(f"{path}.scheme", action.get("scheme") or "HTTP", ("HTTP", "HTTPS"))


def _resources(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    limits, requests = table.get("limits") or {}, table.get("requests") or {}
    wrong: list[str] = []
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            wrong += _amount(f"{path}.{kind}[{name}]", amount)
    yield from wrong
    for name in () if wrong else requests:
        if name in limits and quantity.parse(requests[name]) > quantity.parse(limits[name]):
            yield (
                f'{path}.requests: Invalid value: "{requests[name]}": must be less than or equal to {name} '
                f"limit of {limits[name]}"
            )


def _amount(path: str, amount: str | int | float) -> list[str]:
    try:
        if quantity.parse(amount) >= 0:
            return []
        return [f'{path}: Invalid value: "{amount}": must be greater than or equal to 0']
    except ValueError as error:
        return [f'{path}: Invalid value: "{amount}": {error}']


def _label(path: str, name: str, others: set[str]) -> Iterator[str]:
    """A name that no other one of `others` has."""
    if name in others:
        yield f'{path}: Duplicate value: "{name}"'
    others.add(name)
    yield from _name(path, name, "label", _LABEL, 63)


def _name(path: str, name: str, kind: str, pattern: str, most: int) -> Iterator[str]:
    if not name:
        yield f"{path}: Required value"
    elif len(name) > most:
        yield f'{path}: Invalid value: "{name}": must be no more than {most} bytes'
    elif re.fullmatch(pattern, name) is None:
        signs = "'-' or '.'" if kind == "subdomain" else "'-'"
        yield (
            f'{path}: Invalid value: "{name}": a lowercase RFC 1123 {kind} must consist of lower case '
            f"alphanumeric characters or {signs}, and must start and end with an alphanumeric character"
        )


def _one_of(path: str, value: str, supported: Sequence[str]) -> Iterator[str]:
    if value not in supported:
        listed = ", ".join(f'"{word}"' for word in supported)
        yield f'{path}: Unsupported value: "{value}": supported values: {listed}'


def _bounded(path: str, value: int | None, least: int, most: int | None = None) -> Iterator[str]:
    if value is None or (value >= least and (most is None or value <= most)):
        return
    bounds = f"greater than or equal to {least}" if most is None else f"between {least} and {most}, inclusive"
    yield f"{path}: Invalid value: {value}: must be {bounds}"
