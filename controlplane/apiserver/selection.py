"""Which objects a list or watch is about: namespace, label selector, field selector.

Labels and selectable fields are read once per version of an object and kept beside its bytes, so that a
hundred watches with selectors do not decode the same pod a hundred times. Which fields may be selected is
fixed per kind, as upstream (pkg/apis/*/conversion.go and each registry's strategy): any other is a 400.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from controlplane.apiserver.errors import bad_request
from controlplane.apiserver.resources import ResourceInfo
from controlplane.storage.cache import Entry
from kubeclient.selectors import FieldSelector, LabelSelector

Object = dict[str, Any]

_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "events"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("", "nodes"): ("spec.unschedulable",),
    ("", "namespaces"): ("status.phase",),
    ("", "secrets"): ("type",),
    ("", "services"): ("spec.clusterIP", "spec.type"),
    ("", "replicationcontrollers"): ("status.replicas",),
    ("apps", "replicasets"): ("status.replicas",),
    ("batch", "jobs"): ("status.successful",),
    ("certificates.k8s.io", "certificatesigningrequests"): ("spec.signerName",),
}
_FIELDS["events.k8s.io", "events"] = tuple(
    name.replace("involvedObject.", "regarding.") for name in _FIELDS["", "events"]
)

# Where a selectable field is not kept under its own name.
_STORED_AS: dict[str, str] = {"source": "source.component", "status.successful": "status.succeeded"}
_ZERO = {"spec.unschedulable": "false", "spec.hostNetwork": "false"}
_COUNTS = ("status.replicas", "status.successful")


class Selection:
    """A predicate over entries of one kind."""

    __slots__ = ("_fields", "_labels", "_name", "info", "namespace")

    def __init__(
        self, info: ResourceInfo, namespace: str, label_selector: str = "", field_selector: str = ""
    ) -> None:
        """Raises StatusError (400) for a selector that does not parse or names an unknown field."""
        self.info = info
        self.namespace = namespace
        allowed = ("metadata.name", "metadata.namespace", *_FIELDS.get((info.group, info.plural), ()))
        try:
            self._labels = LabelSelector.parse(label_selector) if label_selector else None
            self._fields = FieldSelector.parse(field_selector) if field_selector else None
        except ValueError as error:
            raise bad_request(str(error)) from error
        self._name: str | None = None
        for name, operator, value in _requirements(self._fields):
            if name not in allowed:
                raise bad_request(_unknown(info, name))
            if name == "metadata.name" and operator in ("=", "=="):
                self._name = value

    @property
    def selective(self) -> bool:
        """True when a selector was given: then nobody can say how many items remain."""
        return self._labels is not None or self._fields is not None

    def matches(self, entry: Entry) -> bool:
        """Is this object in the namespace and does it meet both selectors?"""
        if self.namespace and entry.namespace != self.namespace:
            return False
        if self._name is not None and entry.name != self._name:
            return False
        if self._labels is not None and not self._labels.matches(entry.labels):
            return False
        return self._fields is None or self._fields.matches(self._getter(entry))

    def choose(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        return filter(self.matches, entries) if self.selective else iter(entries)

    def _getter(self, entry: Entry) -> Callable[[str], str]:
        def get(name: str) -> str:
            if name == "metadata.name":
                return entry.name
            if name == "metadata.namespace":
                return entry.namespace
            return selectable_fields(self.info, entry).get(name.replace("regarding.", "involvedObject."), "")

        return get


def _unknown(info: ResourceInfo, name: str) -> str:
    if (info.group, info.plural) in _FIELDS:
        return f"field label not supported: {name}"
    return f'"{name}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def _requirements(selector: FieldSelector | None) -> list[tuple[str, str, str]]:
    if selector is None:
        return []
    return [(part.field, part.operator, part.value) for part in selector.requirements]


def selectable_fields(info: ResourceInfo, entry: Entry) -> Mapping[str, str]:
    """What field selectors may name of an object; read once per version of it."""
    if entry.fields is None:
        entry.fields = _read_fields(info, entry.look())
    return entry.fields


def _read_fields(info: ResourceInfo, obj: Object) -> Mapping[str, str]:
    """The selectable fields of one object as text, with the zero value where the field is absent."""
    found: dict[str, str] = {}
    names = _FIELDS.get((info.storage_version[0], info.plural), ())
    for name in names:
        value: Any = obj
        for part in _STORED_AS.get(name, name).split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool):
            found[name] = "true" if value else "false"
        elif value is None:
            found[name] = "0" if name in _COUNTS else _ZERO.get(name, "")
        else:
            found[name] = str(value)
    return found
