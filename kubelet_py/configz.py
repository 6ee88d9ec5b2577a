"""The settings in use as a KubeletConfiguration document: what /configz answers.

`config.from_document` reads it back to the same Config, so what a node shows can be given to another one.
"""

from __future__ import annotations

from typing import Any

from kubelet_py.config import DURATIONS, KEYS, Config

_NS = 1_000_000_000
_UNITS = ((_NS, "s"), (1_000_000, "ms"), (1_000, "µs"), (1, "ns"))


def to_document(config: Config) -> dict[str, Any]:
    """Every key that is known here, under upstream's name, with its value in the file's form."""
    document: dict[str, Any] = {}
    for key, name in KEYS.items():
        value = getattr(config, name)
        if name in DURATIONS:
            value = duration_text(value)
        elif isinstance(value, tuple):
            value = list(value)
        document[key] = value
    return document


def duration_text(seconds: float) -> str:
    """As Go writes a duration.

    >>> [duration_text(s) for s in (0, 0.1, 2, 90, 300, 3600, 0.0000015)]
    ['0s', '100ms', '2s', '1m30s', '5m0s', '1h0m0s', '1.5µs']
    """
    left = round(seconds * _NS)
    if left < _NS:
        size, unit = next(((size, unit) for size, unit in _UNITS if left >= size), (1, "s"))
        return f"{_plain(left / size)}{unit}"
    minutes, rest = divmod(left, 60 * _NS)
    hours, minutes = divmod(minutes, 60)
    text = f"{_plain(rest / _NS)}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _plain(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
