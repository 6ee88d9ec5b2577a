"""Manifests that this node has without an API server: from text to pods and the objects beside them. Pure.

A text may hold several documents, a List or a PodList. ConfigMaps and Secrets are kept as the API would serve
them, so that static pods can use them by name (upstream's static pods cannot use any). Names of pods get the
node's name, uids are a hash of where the pod comes from and what it says: a changed manifest is another pod.
Source: upstream's pkg/kubelet/config/common.go.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from kubelet_py.errors import ConfigError
from kubelet_py.pods import manifest_rules, manifest_shape
from kubelet_py.pods.model import (
    ANNOTATION_CONFIG_HASH,
    ANNOTATION_CONFIG_SEEN,
    ANNOTATION_CONFIG_SOURCE,
    FILE_SOURCE,
    Object,
    timestamp,
)

_DATE = "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
Key = tuple[str, str, str]
"""("configmap" or "secret", namespace, name)"""
OBJECTS = {"ConfigMap": "configmap", "Secret": "secret"}
LISTS = ("List", "PodList")
DEEPEST = 100
"""Levels in a manifest: whoever copies a pod later on calls itself twice for each, of 1000 calls in all."""
_PROBE_DEFAULTS = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a text holds: pods by their uid, and the ConfigMaps and Secrets beside them."""

    pods: dict[str, Object] = field(default_factory=dict)
    objects: dict[Key, Object] = field(default_factory=dict)


def parse(text: str, place: str, node_name: str, now: float, source: str = FILE_SOURCE) -> Manifest:
    """All of a text; `place` is its file or address. ConfigError, and nothing, when a part cannot be used."""
    try:
        return _parsed(text, place, node_name, now, source)
    except RecursionError as error:
        raise ConfigError(f"Could not parse {place}: it is nested too deeply") from error


def _parsed(text: str, place: str, node_name: str, now: float, source: str) -> Manifest:
    pods, objects = {}, {}
    for document in _documents(text, place):
        kind = str(document.get("kind") or "")
        if kind in OBJECTS:
            whole = manifest_shape.without_nulls(document)
            _refuse(place, kind, manifest_shape.faults(whole, manifest_shape.OBJECT))
            metadata = document.get("metadata") or {}
            if not metadata.get("name"):
                raise ConfigError(f"Could not use {place}: a {kind} needs a name")
            objects[(OBJECTS[kind], metadata.get("namespace") or "default", metadata["name"])] = (
                _object(document, place)
            )
        elif kind == "Pod":
            pod = _pod(document, place, node_name, now, source)
            pods[pod["metadata"]["uid"]] = pod
        else:
            raise ConfigError(f"Could not use {place}: {kind or 'a document without kind'} is no Pod")
    return Manifest(pods, objects)


def _documents(text: str, place: str) -> list[Object]:
    found: list[Object] = []
    documents = [document for document in _from_json(text, place) if document is not None]
    if not documents:
        raise ConfigError(f"Could not use {place}: it holds no Pod")
    for document in documents:
        if not isinstance(document, dict):
            raise ConfigError(f"Could not use {place}: it is no Pod")
        if manifest_shape.is_deeper(document, DEEPEST):
            raise ConfigError(f"Could not use {place}: it is nested too deeply")
        _check_writable(document, place)
        if document.get("kind") not in LISTS:
            found.append(document)
            continue
        items = document.get("items") or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ConfigError(f"Could not use {place}: items must be objects")
        kind = {"kind": "Pod"} if document["kind"] == "PodList" else {}
        found += [{**kind, **item} for item in items]
    return found


def _check_writable(document: Object, place: str) -> None:
    """Half a surrogate pair ("\\ud800") or a number of 30 digits can be read and not be sent to an API."""
    try:
        orjson.dumps(document)
    except TypeError as error:
        raise ConfigError(f"Could not use {place}: it cannot be sent: {error}") from error


def _from_json(text: str, place: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except ValueError as error:
        if place.endswith(".json"):
            raise ConfigError(f"Could not parse {place}: {error}") from error
    return _from_yaml(text, place)


def _from_yaml(text: str, place: str) -> list[Any]:
    """As it becomes JSON: a date is a text there, and so are base 60 of YAML 1.1 (8080:22) and every key."""
    import yaml  # late: only nodes with such manifests need it

    def without_colons(tag: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
        return re.compile(f"(?!.*:){pattern.pattern}", pattern.flags) if tag in _NUMBERS else pattern

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, without_colons(tag, pattern)) for tag, pattern in resolvers if tag != _DATE]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return [_with_texts_as_keys(document) for document in yaml.load_all(text, Loader=Loader)]
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        # The last three: a tag that does not fit its value (`!!int x`, `!!bool x`, `!!timestamp x`).
        raise ConfigError(f"Could not parse {place}: {error}") from error


def _with_texts_as_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else json.dumps(key, default=str): _with_texts_as_keys(item)
            for key, item in value.items()
        }
    return [_with_texts_as_keys(item) for item in value] if isinstance(value, list) else value


def _refuse(place: str, kind: str, faults: Iterable[str]) -> None:
    found = list(faults)
    if found:
        raise ConfigError(f"Could not use {place}: invalid {kind}: [{', '.join(found)}]")


def _object(document: Object, place: str) -> Object:
    """As the API keeps it: a Secret's stringData is merged into its data."""
    made: Object = copy.deepcopy(document)
    made.setdefault("metadata", {}).setdefault("namespace", "default")
    for name in ("data", "stringData", "binaryData"):
        entries = made.get(name)
        if entries is not None and not (
            isinstance(entries, dict) and all(isinstance(value, str) for value in entries.values())
        ):
            raise ConfigError(f"Could not use {place}: {name} must hold texts")
    if made["kind"] == "Secret":
        encoded = {
            key: base64.b64encode(value.encode()).decode()
            for key, value in (made.pop("stringData", None) or {}).items()
        }
        made["data"] = {**(made.get("data") or {}), **encoded}
    encodings = made["data"] if made["kind"] == "Secret" else made.get("binaryData") or {}
    try:
        for value in encodings.values():
            base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"Could not use {place}: illegal base64 data in {made['kind']}") from error
    return made


def _pod(document: Object, place: str, node_name: str, now: float, source: str) -> Object:
    pod: Object = manifest_shape.with_whole_numbers(manifest_shape.without_nulls(document))
    _refuse(place, "pod", manifest_shape.faults(pod, manifest_shape.POD))
    version = pod.setdefault("apiVersion", "v1")
    if version != "v1":
        raise ConfigError(f'Could not use {place}: no kind "Pod" is registered for version "{version}"')
    metadata, spec = pod.setdefault("metadata", {}), pod.get("spec") or {}
    if not metadata.get("name") or not spec.get("containers"):
        raise ConfigError(f"Could not use {place}: a pod needs a name and containers")
    told = json.dumps(document, sort_keys=True, default=str)
    where = f"host:{node_name}file:{place}" if source == FILE_SOURCE else f"url:{place}"
    digest = hashlib.md5(f"{told}\0{where}".encode(), usedforsecurity=False).hexdigest()
    metadata["name"] = f"{metadata['name']}-{node_name.lower()}"
    metadata["namespace"] = metadata.get("namespace") or "default"
    metadata["uid"] = digest
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        ANNOTATION_CONFIG_HASH: digest,
        ANNOTATION_CONFIG_SEEN: timestamp(now),
        ANNOTATION_CONFIG_SOURCE: source,
    }
    spec["nodeName"] = node_name
    _defaults(spec, source)
    _refuse(place, "pod", manifest_rules.faults(pod))
    return pod


def _defaults(spec: Object, source: str) -> None:
    """The few defaults that the API server would have filled in and that the node relies on.

    Go tells an empty text and a zero apart from what is not there only behind a pointer: the grace.
    """
    _fill(spec, {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst"})
    grace = spec.setdefault("terminationGracePeriodSeconds", 30)
    if grace < 0:
        spec["terminationGracePeriodSeconds"] = 1  # upstream's node takes it so when the pod ends
    if source == FILE_SOURCE:
        spec.setdefault("tolerations", [{"operator": "Exists", "effect": "NoExecute"}])
    for container in [*spec["containers"], *(spec.get("initContainers") or ())]:
        _container_defaults(container)


def _container_defaults(container: Object) -> None:
    image = str(container.get("image", ""))
    latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    _fill(container, {"imagePullPolicy": "Always" if latest and "@" not in image else "IfNotPresent"})
    _fill(container, {"terminationMessagePolicy": "File", "terminationMessagePath": "/dev/termination-log"})
    for port in container.get("ports") or ():
        _fill(port, {"protocol": "TCP"})
    for kind in manifest_rules.PROBES:
        if kind in container:
            _fill(container[kind], _PROBE_DEFAULTS)
    resources = container.get("resources") or {}
    limits = resources.get("limits")
    if limits:
        resources["requests"] = {**limits, **(resources.get("requests") or {})}


def _fill(fields: Object, defaults: Mapping[str, str | int]) -> None:
    fields.update({name: value for name, value in defaults.items() if not fields.get(name)})
