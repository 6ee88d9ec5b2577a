"""How times, labels and lists read in a table's cell.

kubectl prints the server's cells as they are, so the rounding of ages and the `<none>`s are the server's
work: apimachinery pkg/util/duration and k8s.io/kubernetes pkg/printers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Object = dict[str, Any]

NONE = "<none>"
UNKNOWN = "<unknown>"
UNSET = "<unset>"


@dataclass(frozen=True, slots=True)
class Column:
    """One column; priority 1 shows only with -o wide. A name column has the format "name"."""

    name: str
    type: str = "string"
    format: str = ""
    priority: int = 0

    def to_object(self) -> Object:
        return {
            "name": self.name,
            "type": self.type,
            "format": self.format,
            "description": "",
            "priority": self.priority,
        }


def columns(text: str) -> tuple[Column, ...]:
    """From shorthand: `Name|Desired:integer|Age|Images*`, where a star means -o wide only."""
    out = []
    for part in text.split("|"):
        wide = part.endswith("*")
        name, _, kind = part.rstrip("*").partition(":")
        out.append(Column(name, kind or "string", "name" if name == "Name" else "", int(wide)))
    return tuple(out)


def human_duration(seconds: float) -> str:
    """An age with about two or three significant digits: 90s, 4m30s, 5h12m, 3d2h, 2y10d."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 0:
        return "0s"
    if whole < 120:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 2920:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, unit: str, small: int, small_unit: str) -> str:
    return f"{large}{unit}{small}{small_unit}" if small else f"{large}{unit}"


def epoch(timestamp: str | None) -> float | None:
    """Seconds since 1970 of an RFC 3339 timestamp; None for an absent or unreadable one."""
    if not timestamp:
        return None
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return None


def since(timestamp: str | None, now: float) -> str:
    """The age of a timestamp, or <unknown>."""
    then = epoch(timestamp)
    return UNKNOWN if then is None else human_duration(now - then)


def age(obj: Object, now: float) -> str:
    return since((obj.get("metadata") or {}).get("creationTimestamp"), now)


def name(obj: Object) -> str:
    text: str = (obj.get("metadata") or {}).get("name") or ""
    return text


def labels(pairs: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={pairs[key]}" for key in sorted(pairs)) if pairs else NONE


def selector(found: Mapping[str, Any] | None) -> str:
    """A LabelSelector as kubectl writes one: a=b,tier in (x,y),!old."""
    if not found:
        return NONE
    match = found.get("matchLabels") or {}
    parts = [f"{key}={match[key]}" for key in sorted(match)]
    for term in found.get("matchExpressions") or ():
        key, values = term.get("key") or "", ",".join(sorted(term.get("values") or ()))
        parts.append(
            {
                "In": f"{key} in ({values})",
                "NotIn": f"{key} notin ({values})",
                "Exists": key,
                "DoesNotExist": f"!{key}",
            }.get(term.get("operator") or "", key)
        )
    return ",".join(parts) or NONE


def container_names(spec: Mapping[str, Any]) -> tuple[str, str]:
    """The names and the images of a pod spec's containers, each joined by commas."""
    every = spec.get("containers") or ()
    return (
        ",".join(item.get("name") or "" for item in every),
        ",".join(item.get("image") or "" for item in every),
    )


def first_few(items: Iterable[str], empty: str = "", limit: int = 3) -> str:
    """At most three items and how many more there are."""
    listed = list(items)
    if not listed:
        return empty
    text = ",".join(listed[:limit])
    return f"{text} + {len(listed) - limit} more..." if len(listed) > limit else text


def true_false(value: Any) -> str:
    return "True" if value else "False"
