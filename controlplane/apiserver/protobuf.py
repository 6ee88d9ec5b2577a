"""Request bodies in protobuf: client-go 0.32 and newer send nothing else for built-in kinds.

A body is the four bytes `k8s\\0` and a runtime.Unknown message with the kind and the object's own message
inside. The field numbers are upstream's generated.proto files; they sit in protobuf_fields.txt beside this
module, one line per message, because no maintained package carries them. What a field *is* comes from the
OpenAPI definitions: a number's wire type only tells scalars from bytes, and int32, bool, string, list, map
need the schema.

Go writes every scalar that is no pointer, even when empty. Such zeros mean unset, so empty strings are
dropped; false and 0 are kept only where the API distinguishes them from absence (pointer fields), or the
schema requires the field.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import resources as package_files
from typing import Any

import orjson

from controlplane.apiserver.resources import by_kind
from controlplane.apiserver.schema import Definition, Field, Schema, Type, installed

Object = dict[str, Any]

MAGIC = b"k8s\0"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CORE_V1 = "api.core.v1."
_META_V1 = "apimachinery.pkg.apis.meta.v1."


class ProtobufError(ValueError):
    """The body is no protobuf message of a kind that we know."""


@dataclass(frozen=True, slots=True)
class Number:
    """A field number's JSON name; `inline` for a Go embedded struct, whose fields JSON lifts one level up."""

    name: str
    inline: str = ""


# Go structs embedded without a JSON name of their own: (message, field) → the message whose fields are
# lifted.
_INLINE = {
    "ephemeralContainerCommon": _CORE_V1 + "EphemeralContainerCommon",
    "handler": _CORE_V1 + "ProbeHandler",
    "localObjectReference": _CORE_V1 + "LocalObjectReference",
    "persistentVolumeSource": _CORE_V1 + "PersistentVolumeSource",
    "volumeSource": _CORE_V1 + "VolumeSource",
    "ingressRuleValue": "api.networking.v1.IngressRuleValue",
}
_RENAMED = {"uID": "uid"}

# Scalars that are pointers in Go, so that 0, false and "" are values: the API's optional fields with a
# default or a meaning of their own. Everything else that is zero was not set.
_POINTER_NAMES = """
replicas minReplicas revisionHistoryLimit progressDeadlineSeconds terminationGracePeriodSeconds
activeDeadlineSeconds tolerationSeconds enableServiceLinks automountServiceAccountToken
shareProcessNamespace runAsUser runAsGroup runAsNonRoot fsGroup privileged allowPrivilegeEscalation
readOnlyRootFilesystem gracePeriodSeconds orphanDependents controller blockOwnerDeletion priority
optional defaultMode mode partition parallelism completions backoffLimit ttlSecondsAfterFinished
suspend manualSelector successfulJobsHistoryLimit failedJobsHistoryLimit startingDeadlineSeconds
immutable allocateLoadBalancerNodePorts timeoutSeconds expirationSeconds storageClassName ready
serving terminating hostUsers setHostnameAsFQDN leaseDurationSeconds leaseTransitions port nodeName
hostname zone appProtocol allowVolumeExpansion targetCPUUtilizationPercentage averageUtilization
stabilizationWindowSeconds minDomains collisionCount started deletionGracePeriodSeconds
ignoreStoreReadErrorWithClusterBreakingPotential
"""
_POINTERS = frozenset(_POINTER_NAMES.split())
# Names above that are plain values in these messages.
_PLAIN = frozenset(
    {
        (_CORE_V1 + "Probe", "timeoutSeconds"),
        (_CORE_V1 + "ServicePort", "port"),
        (_CORE_V1 + "EndpointPort", "port"),
        (_CORE_V1 + "EndpointAddress", "hostname"),
        (_CORE_V1 + "GRPCAction", "port"),
        (_CORE_V1 + "LoadBalancerIngress", "hostname"),
        (_CORE_V1 + "PodSpec", "nodeName"),
        (_CORE_V1 + "PodSpec", "hostname"),
        (_CORE_V1 + "PersistentVolumeSpec", "storageClassName"),
    }
)


def decode(body: bytes) -> Object:
    """The object in a request's body, as JSON would have it. Raises ProtobufError, which is a ValueError."""
    if not body.startswith(MAGIC):
        raise ProtobufError("the body does not begin with the protobuf envelope of Kubernetes")
    api_version = kind = ""
    raw = b""
    for number, _, value in _fields(memoryview(body)[len(MAGIC) :]):
        if number == 1 and isinstance(value, memoryview):
            names = {n: bytes(v).decode() for n, _, v in _fields(value) if isinstance(v, memoryview)}
            api_version, kind = names.get(1, ""), names.get(2, "")
        elif number == 2 and isinstance(value, memoryview):
            raw = bytes(value)
    message = _message_name(api_version, kind)
    decoder = _decoder()
    definition = decoder.definition_of(message)
    if definition is None:
        raise ProtobufError(f'no kind "{kind}" is registered for version "{api_version}"')
    obj = decoder.message(message, definition, memoryview(raw))
    return {"apiVersion": api_version, "kind": kind, **obj}


def _message_name(api_version: str, kind: str) -> str:
    if kind == "DeleteOptions":
        return _META_V1 + kind
    info = by_kind(api_version, kind)
    if info is not None:
        return info.definition.removeprefix("io.k8s.")
    group, _, version = api_version.rpartition("/")
    package = "core" if not group else group.split(".", 1)[0]
    return f"api.{package}.{version}.{kind}"


@lru_cache(maxsize=1)
def _decoder() -> _Decoder:
    return _Decoder(installed(), _load_numbers())


def _load_numbers() -> dict[str, dict[int, Number]]:
    """The table: message → number → name. Lines are kept unsplit until this first use."""
    text = package_files.files(__package__).joinpath("protobuf_fields.txt").read_text(encoding="utf-8")
    table: dict[str, dict[int, Number]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        message, _, fields = line.partition(": ")
        table[message] = dict(_parse_number(item) for item in fields.split())
    return table


def _parse_number(item: str) -> tuple[int, Number]:
    number, _, name = item.partition(":")
    if not name.endswith("*"):
        return int(number), Number(name)
    name = name[:-1]
    if name in _RENAMED:
        return int(number), Number(_RENAMED[name])
    return int(number), Number(name, _INLINE[name])


class _Decoder:
    """Walks messages with the number table in one hand and the schema in the other."""

    def __init__(self, schema: Schema, numbers: Mapping[str, Mapping[int, Number]]) -> None:
        self._schema = schema
        self._numbers = numbers

    def definition_of(self, message: str) -> Definition | None:
        name = "io.k8s." + message
        if message not in self._numbers or name not in self._schema:
            return None
        return self._schema.definition(name)

    def message(self, message: str, definition: Definition, data: memoryview) -> Object:
        out: Object = {}
        self._into(out, message, definition, data)
        return out

    def _into(self, out: Object, message: str, definition: Definition, data: memoryview) -> None:
        numbers = self._numbers.get(message)
        if numbers is None:
            raise ProtobufError(f"no field numbers are known for {message}")
        for number, wire, value in _fields(data):
            found = numbers.get(number)
            if found is None:
                continue
            if found.inline and isinstance(value, memoryview):
                self._into(out, found.inline, definition, value)
                continue
            declared = definition.fields.get(found.name)
            if declared is not None:
                self._assign(out, message, declared, wire, value)

    def _assign(self, out: Object, message: str, declared: Field, wire: int, value: int | memoryview) -> None:
        name, type_ = declared.name, declared.type
        if type_.kind == "list" and type_.element is not None:
            if wire == _VARINT:
                out.setdefault(name, []).append(_scalar(type_.element, value))
            elif type_.element.kind in ("integer", "boolean", "number") and isinstance(value, memoryview):
                out.setdefault(name, []).extend(_packed(type_.element, value))
            else:
                out.setdefault(name, []).append(self._value(type_.element, value))
        elif type_.kind == "map" and type_.element is not None and isinstance(value, memoryview):
            key, item = self._entry(type_.element, value)
            out.setdefault(name, {})[key] = item
        else:
            decoded = self._value(type_, value)
            pointer = _is_pointer(message, name)
            if decoded is None or (decoded in ("", 0, False) and not pointer and not declared.required):
                return
            if decoded == "" and declared.required:
                return
            if isinstance(decoded, dict) and not decoded and name in ("metadata", "status"):
                return
            out[name] = decoded

    def _entry(self, element: Type, data: memoryview) -> tuple[str, Any]:
        key, item = "", _EMPTY.get(element.kind, {})
        for number, _, value in _fields(data):
            if number == 1 and isinstance(value, memoryview):
                key = bytes(value).decode()
            elif number == 2:
                item = self._value(element, value)
        return key, item

    def _value(self, type_: Type, value: int | memoryview) -> Any:
        if not isinstance(value, memoryview):
            return _scalar(type_, value)
        special = _SPECIAL.get(type_.kind)
        if special is not None:
            return special(value)
        if type_.kind == "struct":
            return self.message(type_.ref.removeprefix("io.k8s."), self._schema.definition(type_.ref), value)
        if type_.kind == "list" and type_.element is not None:
            # Named list types (ExtraValue, Verbs) are messages with the items in field 1.
            return [self._value(type_.element, item) for number, _, item in _fields(value) if number == 1]
        raise ProtobufError(f"a {type_.kind} cannot be written as bytes")


def _is_pointer(message: str, name: str) -> bool:
    if name in ("replicas", "ready") and message.endswith("Status"):
        return False
    return name in _POINTERS and (message, name) not in _PLAIN


_EMPTY: dict[str, Any] = {"string": "", "bytes": "", "list": []}


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, value) of one message; values are ints or views of the bytes."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ProtobufError(f"wire type {wire} is not used by Kubernetes")
        if position + size > end:
            raise ProtobufError("the message ends in the middle of a field")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ProtobufError("the message ends in the middle of a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7


def _scalar(type_: Type, value: int | memoryview) -> Any:
    if isinstance(value, memoryview):
        raise ProtobufError(f"a {type_.kind} was expected, not bytes")
    if type_.kind == "boolean":
        return bool(value)
    return _signed(value)


def _signed(value: int) -> int:
    """Negative numbers travel as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _packed(type_: Type, data: memoryview) -> Iterator[Any]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield _scalar(type_, value)


def _string(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise ProtobufError(f"a string is no UTF-8: {error}") from error


def _number(data: memoryview) -> float:
    if len(data) != struct.calcsize("<d"):
        raise ProtobufError(f"a number of {len(data)} bytes")
    value: float = struct.unpack("<d", data)[0]
    return value


def _quantity(data: memoryview) -> str | None:
    for number, _, value in _fields(data):
        if number == 1 and isinstance(value, memoryview):
            return _string(value) or None
    return None


def _int_or_string(data: memoryview) -> int | str:
    kind, number_value, text = 0, 0, ""
    for number, _, value in _fields(data):
        if number == 3 and isinstance(value, memoryview):
            text = _string(value)
        elif number == 1 and isinstance(value, int):
            kind = value
        elif number == 2 and isinstance(value, int):
            number_value = _signed(value)
    return text if kind else number_value


def _seconds(data: memoryview) -> tuple[int, int]:
    parts = {number: _signed(value) for number, _, value in _fields(data) if isinstance(value, int)}
    return parts.get(1, 0), parts.get(2, 0)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _time(data: memoryview) -> str | None:
    """An empty message is Go's zero time, which JSON writes as null."""
    if not data:
        return None
    seconds, _ = _seconds(data)
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro_time(data: memoryview) -> str | None:
    if not data:
        return None
    seconds, nanos = _seconds(data)
    moment = _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _raw_json(data: memoryview) -> Any:
    """RawExtension and FieldsV1: JSON text in field 1."""
    for number, _, value in _fields(data):
        if number == 1 and isinstance(value, memoryview) and len(value):
            return orjson.loads(value)
    return None


_SPECIAL = {
    "string": _string,
    "bytes": lambda data: base64.b64encode(data).decode(),
    "number": _number,
    "quantity": _quantity,
    "int-or-string": _int_or_string,
    "time": _time,
    "micro-time": _micro_time,
    "any": _raw_json,
}
