"""PURE. The time stamps of the API."""

from __future__ import annotations

from datetime import datetime


def seconds(stamp: str) -> float:
    """RFC 3339 text as seconds since the epoch."""
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
