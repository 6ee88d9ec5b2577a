"""JSON straight through the C scanner and encoder of the standard library.

Importing `json` costs 4 ms, for regular expressions that only its Python versions use; `json.loads` and
`json.dumps` wrap the C parts in objects made anew for each call, which would dirty a hundred more pages in
every shim. The C parts lie in `_json`; where a Python has none, `json` itself does the work.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WHITE = " \t\n\r"


class _Reading:
    """What the C scanner asks its caller about."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> Any:
        """NaN and Infinity, which are no JSON."""
        raise ValueError(f"{name} is not JSON")


def _make_scanner() -> Callable[[str, int], tuple[Any, int]]:
    try:
        from _json import make_scanner
    except ImportError:
        from json.decoder import JSONDecoder

        scan: Callable[[str, int], tuple[Any, int]] = JSONDecoder(
            parse_constant=_Reading.parse_constant
        ).scan_once  # type: ignore[attr-defined]
        return scan
    return make_scanner(_Reading)  # type: ignore[arg-type]


def _make_encoder() -> Callable[[Any], str]:
    """The C encoder, made once; the standard one where this Python has none or another one."""
    try:
        from _json import encode_basestring_ascii, make_encoder

        encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, False)
    except (ImportError, TypeError):
        from json.encoder import JSONEncoder

        return JSONEncoder(allow_nan=False).encode
    return lambda value: "".join(encode(value, 0))


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is not JSON")


_scan = _make_scanner()
_encode = _make_encoder()


def dumps(value: Any) -> str:
    """`value` as JSON text on one line. Raises TypeError or ValueError."""
    return _encode(value)


def loads(text: str) -> Any:
    """The value of JSON text. Raises ValueError."""
    clean = text.strip(WHITE)
    try:
        value, end = _scan(clean, 0)
    except StopIteration as error:
        raise ValueError(f"not JSON at character {error.value}") from None
    except SystemError:
        # The scanner names its mistakes by an exception of `json`, and gives none where that is not imported.
        raise ValueError("not JSON") from None
    if end != len(clean):
        raise ValueError(f"not JSON from character {end} on")
    return value


def pretty(value: Any, indent: str = "") -> str:
    """`value` over several lines, as people read it. For what is printed once."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{_encode(str(key))}: {pretty(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join(inner + pretty(entry, inner) for entry in value) + f"\n{indent}]"
    return _encode(value)
