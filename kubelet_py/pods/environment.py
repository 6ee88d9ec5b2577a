"""A container's environment and its expanded command: what `env`, `envFrom` and `$(VAR)` come to. Pure.

Order, as upstream: Service variables, then envFrom in order, then env in order; later wins. `$(VAR)` is
replaced by what is defined before it, `$$` escapes, and a reference that leads nowhere stays as written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kubelet_py.errors import ContainerConfigError, ExpansionError
from kubelet_py.pods.model import Object, every_container

Lookup = Callable[[str, str], Object | None]
"""("configmap" or "secret", name) → the object, decoded: `data` holds texts; None when there is none."""

Skipped = Callable[[str, str, Sequence[str]], None]
"""("configmap" or "secret", its name, the keys that are no names of variables)"""

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_GO_ESCAPES = {
    "\\": "\\\\", '"': '\\"', "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v",
}  # fmt: skip
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace `$(NAME)`; `$$(NAME)` becomes the text `$(NAME)`; unknown names stay."""

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            return "$"
        return values.get(name, match.group(0))

    # No reference ends behind the last ")": each that begins there would be searched for its end to the end.
    end = text.rfind(")") + 1
    return _REFERENCE.sub(replace, text[:end]) + text[end:].replace("$$", "$")


def service_variables(services: Sequence[Object], namespace: str, links: bool) -> dict[str, str]:
    """NAME_SERVICE_HOST and its kin for the namespace's Services, and `kubernetes` in any case."""
    values: dict[str, str] = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        address = spec.get("clusterIP", "")
        master = metadata["namespace"] == "default" and metadata["name"] == "kubernetes"
        if address in ("", "None") or not (master or (links and metadata["namespace"] == namespace)):
            continue
        values.update(
            _of_service(metadata["name"].upper().replace("-", "_"), address, spec.get("ports") or [])
        )
    return values


def _of_service(prefix: str, address: str, ports: Sequence[Object]) -> dict[str, str]:
    values = {f"{prefix}_SERVICE_HOST": address}
    for index, port in enumerate(ports):
        number, protocol = str(port["port"]), port.get("protocol", "TCP")
        if index == 0:
            values[f"{prefix}_SERVICE_PORT"] = number
            values[f"{prefix}_PORT"] = f"{protocol.lower()}://{address}:{number}"
        if port.get("name"):
            values[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = number
        link = f"{prefix}_PORT_{number}_{protocol}"
        values[link] = f"{protocol.lower()}://{address}:{number}"
        values[f"{link}_PROTO"] = protocol.lower()
        values[f"{link}_PORT"] = number
        values[f"{link}_ADDR"] = address
    return values


def field_value(pod: Object, path: str, facts: Mapping[str, str]) -> str:
    """A fieldRef's value; `facts` has what the node knows (status.podIP, status.hostIP …)."""
    metadata, spec = pod["metadata"], pod["spec"]
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((metadata.get(subscript.group(1)) or {}).get(subscript.group(2), ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = (metadata.get(path.partition(".")[2]) or {}).items()
        return "\n".join(f"{key}={_quoted(value)}" for key, value in sorted(pairs))
    known = {
        "metadata.name": metadata.get("name", ""),
        "metadata.namespace": metadata.get("namespace", ""),
        "metadata.uid": metadata.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
    } | dict(facts)
    if path not in known:
        raise ExpansionError(f"unsupported fieldPath: {path}")
    return str(known[path])


def _quoted(text: str) -> str:
    """Go's %q, as the downward API writes the values of labels and annotations."""
    return '"' + "".join(_GO_ESCAPES.get(char) or _escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    code = ord(char)
    if char.isprintable():
        return char
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def resource_value(container: Object, reference: Mapping[str, Any], allocatable: Mapping[str, str]) -> str:
    """A resourceFieldRef's value: the container's own figure, else the node's, divided and rounded up."""
    from kubeclient import quantity

    name = reference["resource"]
    kind, _, resource = name.partition(".")
    resources = container.get("resources") or {}
    text = (resources.get(kind) or {}).get(resource)
    if text is None:
        text = allocatable.get(resource, "0") if kind == "limits" else "0"
    divisor = quantity.parse(reference.get("divisor") or "0") or 1
    number = quantity.parse(text) / divisor
    return str(-(-number.numerator // number.denominator))


def container_environment(
    pod: Object,
    container: Object,
    *,
    services: Mapping[str, str],
    lookup: Lookup,
    facts: Mapping[str, str],
    allocatable: Mapping[str, str],
    skipped: Skipped,
) -> dict[str, str]:
    """Everything `env` and `envFrom` define; ContainerConfigError names a missing object or key.

    Keys that no variable can be called are left out and told to `skipped`.
    """
    values = dict(services)
    for source in container.get("envFrom") or ():
        values.update(_from_source(source, lookup, skipped))
    for entry in container.get("env") or ():
        value = _value(pod, container, entry, values, lookup, facts, allocatable)
        if value is not None:
            values[entry["name"]] = value
    return values


def _from_source(source: Object, lookup: Lookup, skipped: Skipped) -> dict[str, str]:
    prefix = source.get("prefix") or ""
    for key, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
        reference = source.get(key)
        if reference is None:
            continue
        found = lookup(kind, reference["name"])
        if found is None:
            if reference.get("optional"):
                return {}
            raise ContainerConfigError(f'{kind} "{reference["name"]}" not found')
        pairs = {prefix + name: str(text) for name, text in (found.get("data") or {}).items()}
        invalid = sorted(name for name in pairs if not _ENV_NAME.fullmatch(name))
        if invalid:
            skipped(kind, reference["name"], invalid)
        return {name: text for name, text in pairs.items() if name not in invalid}
    return {}


def _value(
    pod: Object,
    container: Object,
    entry: Object,
    values: Mapping[str, str],
    lookup: Lookup,
    facts: Mapping[str, str],
    allocatable: Mapping[str, str],
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(entry.get("value") or "", values)
    if "fieldRef" in source:
        try:
            return field_value(pod, source["fieldRef"]["fieldPath"], facts)
        except ExpansionError as error:
            raise ContainerConfigError(str(error)) from error
    if "resourceFieldRef" in source:
        return _resource(pod, container, source["resourceFieldRef"], allocatable)
    for key, kind in (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")):
        if key in source:
            return _key(pod, source[key], kind, lookup)
    raise ContainerConfigError(f"environment variable {entry['name']} has a valueFrom of no known kind")


def _resource(pod: Object, container: Object, reference: Object, allocatable: Mapping[str, str]) -> str:
    """Of this container, or of the one that the reference names."""
    name = reference.get("containerName") or container["name"]
    named = next((c for c in every_container(pod) if c["name"] == name), None)
    if named is None and name != container["name"]:
        raise ContainerConfigError(f"container {name} not found")
    return resource_value(named or container, reference, allocatable)


def _key(pod: Object, reference: Object, kind: str, lookup: Lookup) -> str | None:
    name, key = reference["name"], reference["key"]
    found = lookup(kind, name)
    if found is None:
        if reference.get("optional"):
            return None
        raise ContainerConfigError(f'{kind} "{name}" not found')
    data = found.get("data") or {}
    if key not in data:
        if reference.get("optional"):
            return None
        what = "Secret" if kind == "secret" else "ConfigMap"
        namespace = pod["metadata"]["namespace"]
        raise ContainerConfigError(f"couldn't find key {key} in {what} {namespace}/{name}")
    return str(data[key])


def command_line(container: Object, image: Mapping[str, Any], values: Mapping[str, str]) -> list[str]:
    """argv: `command` replaces the image's Entrypoint and Cmd, `args` alone only its Cmd."""
    command = [expand(part, values) for part in container.get("command") or ()]
    args = [expand(part, values) for part in container.get("args") or ()]
    if command:
        return command + args
    entrypoint, default = list(image.get("Entrypoint") or ()), list(image.get("Cmd") or ())
    return entrypoint + (args or default)
