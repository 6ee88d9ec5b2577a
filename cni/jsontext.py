"""JSON by the interpreter's own scanner, without the package `json`.

That package imports `re` and `enum`, 13 ms of a plugin program's life; the C functions it stands on need
neither. An interpreter without them gets the package. Texts are the same as json's, but that NaN and
Infinity, which JSON does not have, are refused.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLANK = " \t\n\r"


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


class _Settings:
    """What the scanner asks of a json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_number)
    memo: dict[str, str] = {}


try:
    import _json

    _scan: Any = _json.make_scanner(_Settings())  # type: ignore[arg-type]
    _quote: Any = _json.encode_basestring_ascii
except (ImportError, AttributeError):  # another interpreter than CPython
    import json

    _scan = json.JSONDecoder(parse_constant=_no_number).raw_decode
    _quote = json.dumps


def loads(data: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises ValueError."""
    text = data.decode() if isinstance(data, bytes) else data
    text = text.strip(_BLANK)
    try:
        value, end = _scan(text, 0)
    except StopIteration as stop:
        raise ValueError(f"Expecting value at character {stop.value}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if end != len(text):
        raise ValueError(f"Extra data at character {end}")
    return value


def dumps(value: Any) -> str:
    """The JSON text of dicts with text keys, lists, tuples, text, numbers, booleans and None, on one line."""
    if isinstance(value, str):
        return str(_quote(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([dumps(one) for one in value]) + "]"
    if hasattr(value, "items"):
        return "{" + ", ".join([f"{_quote(key)}: {dumps(one)}" for key, one in value.items()]) + "}"
    raise TypeError(f"Could not write {type(value).__name__} as JSON")
