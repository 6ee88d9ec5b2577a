"""Exponential back-off: 10 s doubling to 300 s, forgotten after ten quiet minutes.

A node may have a shorter longest wait for containers (crashLoopBackOff.maxContainerRestartPeriod); the first
wait is then no longer either (KEP-4603).

Upstream's rules (client-go flowcontrol.Backoff as the kubelet uses it): the first restart is immediate;
each restart doubles the next wait; a container that ran longer than twice the maximum starts over. The
wait counts from the moment the container finished, not from when we looked.
"""

from __future__ import annotations

from dataclasses import dataclass

INITIAL = 10.0
MAXIMUM = 300.0
FIRST_RETRY, LONGEST_RETRY = 1.0, 10.0


@dataclass(frozen=True, slots=True)
class BackoffEntry:
    """`seconds` to wait before the next try; `updated`: epoch seconds of the last try."""

    seconds: float
    updated: float


def waits_until(entry: BackoffEntry | None, since: float, now: float) -> float | None:
    """Epoch second at which the next try is allowed, or None when it is allowed now.

    `since`: when the last try ended.
    """
    if entry is None or since - entry.updated > 2 * MAXIMUM:
        return None
    due = since + entry.seconds
    return due if now < due else None


def after_try(entry: BackoffEntry | None, since: float, now: float, longest: float = MAXIMUM) -> BackoffEntry:
    """The entry to keep once a try has been made at `now`; no wait is longer than `longest` seconds."""
    if entry is None or since - entry.updated > 2 * MAXIMUM:
        return BackoffEntry(min(INITIAL, longest), now)
    return BackoffEntry(min(entry.seconds * 2, longest), now)


def describe(entry: BackoffEntry | None) -> str:
    """Go's way to print the wait: 10s, 1m20s, 5m0s."""
    seconds = int(entry.seconds if entry is not None else INITIAL)
    return f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s"


def retry_seconds(failures: int) -> float:
    """The wait before a start that failed is tried again, after so many failures in a row: upstream's ten
    seconds (its pod workers' backOffPeriod), and less at first, as most causes pass at once or stay for long.
    It is no back-off of a container, which never ran. News of what the pod names do not wait for it."""
    return float(min(LONGEST_RETRY, FIRST_RETRY * 2 ** min(failures - 1, 8)))
