"""Scalars that are more than JSON has: quantities, times, bytes, and numbers that may be strings.

Each has a decoder of its own in Go, whose complaint becomes the message of the server's 400.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from kubeclient import quantity

_FORM = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
_QUANTITY = re.compile(_FORM.replace("[0-9.]+", "[0-9.]++"))  # digits are not tried in both places
_TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")


def special(kind: str, value: Any) -> tuple[Any, str] | None:
    """The value in its stored form and "", or None and a complaint; None when plain wrong type is all to be
    said.
    """
    check = _CHECKS.get(kind)
    return check(value) if check else None


def json_word(value: Any, go_name: str) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float)):
        return f"number {value}" if go_name.startswith("int") else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _quantity(value: Any) -> tuple[Any, str] | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None, "quantities must match the regular expression '" + _FORM + "'"
    text = value.strip() if isinstance(value, str) else f"{value}"
    try:
        return quantity.canonical(text), ""
    except ValueError:
        if not _QUANTITY.match(text):
            return None, "quantities must match the regular expression '" + _FORM + "'"
        return None, "unable to parse quantity's suffix"


def _int_or_string(value: Any) -> tuple[Any, str] | None:
    if isinstance(value, str) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
    ):
        return value, ""
    return None, f"json: cannot unmarshal {json_word(value, 'int32')} into Go value of type int32"


def _time(value: Any) -> tuple[Any, str] | None:
    if not isinstance(value, str):
        return None, f"json: cannot unmarshal {json_word(value, '')} into Go value of type string"
    if _TIME.match(value):
        return value, ""
    return None, f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse "{value}" as "2006"'


def _bytes(value: Any) -> tuple[Any, str] | None:
    if not isinstance(value, str):
        return None
    compact = value.replace("\n", "").replace("\r", "")
    try:
        base64.b64decode(compact, validate=True)
    except binascii.Error:
        bad = re.search(r"[^A-Za-z0-9+/]", compact)
        return None, f"illegal base64 data at input byte {bad.start() if bad else len(compact) // 4 * 4}"
    return compact, ""


_CHECKS = {
    "quantity": _quantity,
    "int-or-string": _int_or_string,
    "time": _time,
    "micro-time": _time,
    "bytes": _bytes,
}
