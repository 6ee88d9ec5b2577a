"""Times as the API writes them: RFC 3339 in UTC with whole seconds (metav1.Time)."""

from __future__ import annotations

import datetime
from functools import lru_cache


def rfc3339(epoch: float) -> str:
    """`2026-11-20T23:58:10Z` of seconds since 1970."""
    return _whole(int(epoch))


@lru_cache(maxsize=64)  # most are the present second
def _whole(epoch: int) -> str:
    moment = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """Seconds since 1970 of an RFC 3339 text. Raises ValueError."""
    return datetime.datetime.fromisoformat(text.upper().replace("Z", "+00:00")).timestamp()
