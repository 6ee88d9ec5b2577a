"""JSON for the shims, straight through the C scanner and encoder of the standard library.

`json.loads` and `json.dumps` wrap those in regular expressions and objects made anew for each call, which
would dirty a hundred more pages in every shim. What is read here was written by us, so there is no white
space to skip.
"""

from __future__ import annotations

from json.decoder import JSONDecoder
from json.encoder import JSONEncoder, encode_basestring_ascii

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_scan: Callable[[str, int], tuple[Any, int]] = JSONDecoder().scan_once  # type: ignore[attr-defined]


def _make_encoder() -> Callable[[Any], str]:
    """The C encoder, made once; the standard one where this Python has none."""
    try:
        from json.encoder import c_make_encoder  # type: ignore[attr-defined]

        encode = c_make_encoder(
            None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, False
        )
    except (ImportError, TypeError):
        return JSONEncoder(allow_nan=False).encode
    return lambda value: "".join(encode(value, 0))


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = _make_encoder()


def dumps(value: Any) -> str:
    """`value` as JSON text. Raises TypeError or ValueError."""
    return _encode(value)


def loads(text: str) -> Any:
    """The value of JSON text that starts at its first character. Raises ValueError."""
    try:
        value, end = _scan(text, 0)
    except StopIteration as error:
        raise ValueError(f"not JSON at character {error.value}") from None
    if end != len(text):
        raise ValueError(f"not JSON from character {end} on")
    return value
