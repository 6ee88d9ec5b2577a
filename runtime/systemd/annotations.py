"""Annotations named org.systemd.property.NAME: properties for a container's scope, as runc and crun take
them.

The value is a GVariant in text form: 'text', true, 5, uint64 5, ['a', 'b']. A number for a name that ends in
Sec is in seconds, and becomes the property in USec that the bus has instead.
"""

from __future__ import annotations

from runtime.errors import SpecError
from runtime.systemd.messages import Variant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

PREFIX = "org.systemd.property."
_TYPES = {
    "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
    "double": "d", "boolean": "b", "string": "s",
}  # fmt: skip
_RANGES = {
    "y": (0, 2**8), "n": (-(2**15), 2**15), "q": (0, 2**16), "i": (-(2**31), 2**31), "u": (0, 2**32),
    "x": (-(2**63), 2**63), "t": (0, 2**64),
}  # fmt: skip


def of_annotations(annotations: Mapping[str, str] | None) -> list[tuple[str, Variant]]:
    """The properties that are asked for. Raises SpecError."""
    found = []
    for key, text in (annotations or {}).items():
        name = key.removeprefix(PREFIX)
        if name == key:
            continue
        if len(name) < 3 or not (name.isascii() and name.isalpha()):
            raise SpecError(f"annotations.{key}", f"{name!r} is no name of a property")
        try:
            value = _value(text.strip())
        except (ValueError, IndexError):
            raise SpecError(f"annotations.{key}", f"{text!r} is no GVariant (like 'text', true, 5)") from None
        if name.endswith("Sec") and name[-4:-3].islower():
            name, value = name[:-3] + "USec", _microseconds(key, value)
        found.append((name, value))
    return found


def _value(text: str) -> Variant:
    word, _, rest = text.partition(" ")
    if word in _TYPES and rest:
        plain = _value(rest.strip())
        return _checked(_TYPES[word], plain.value)
    if text in ("true", "false"):
        return Variant("b", text == "true")
    if text[0] == "[":
        return _list(text)
    if text[0] in "'\"":
        string, end = _quoted(text, 0)
        if end != len(text):
            raise ValueError(text)
        return Variant("s", string)
    return Variant("d", float(text)) if "." in text else _checked("i", int(text, 0))


def _checked(signature: str, value: Any) -> Variant:
    low, high = _RANGES.get(signature, (0, 0))
    if signature in _RANGES and type(value) is int and low <= value < high:
        return Variant(signature, value)
    if type(value) is not {"b": bool, "s": str, "d": float}.get(signature):
        raise ValueError(value)
    return Variant(signature, value)


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The string that starts at `at`, and where it ends."""
    quote, found, at = text[at], "", at + 1
    if quote not in "'\"":
        raise ValueError(text)
    while text[at] != quote:
        if text[at] == "\\":
            at += 1
        found += text[at]
        at += 1
    return found, at + 1


def _list(text: str) -> Variant:
    """Of strings, which is all that properties of scopes have."""
    found: list[str] = []
    at = 1
    while True:
        while text[at] in " ,":
            at += 1
        if text[at] == "]":
            break
        string, at = _quoted(text, at)
        found.append(string)
    if at + 1 != len(text):
        raise ValueError(text)
    return Variant("as", found)


def _microseconds(key: str, value: Variant) -> Variant:
    if value.signature not in (*_RANGES, "d") or value.value < 0:
        raise SpecError(f"annotations.{key}", "a number of seconds is needed")
    return Variant("t", int(value.value * 1_000_000))
