"""When a CronJob's schedule comes round. Pure.

Five fields (minute, hour, day of month, month, day of week) or a word such as @daily, in a time zone. A day
must match both day fields, unless both are restricted: then one suffices. Local times that a change of clocks
leaves out do not come round that day. The syntax is the one of robfig/cron, which upstream uses, and
texts of errors are close to its own; PyPI's parsers take other syntax (a sixth field, L, 7 for Sunday).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = {name: number for number, name in enumerate(MONTH_NAMES, start=1)}
DAYS = {name: number for number, name in enumerate(DAY_NAMES)}
UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
LOOK_AHEAD = timedelta(days=5 * 366)


@dataclass(frozen=True, slots=True)
class Fields:
    """Five sets of numbers; `*_open` says that a day field was "*" or "?"."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    days_open: bool
    weekdays_open: bool

    def day_matches(self, local: datetime) -> bool:
        by_day = local.day in self.days
        by_weekday = local.isoweekday() % 7 in self.weekdays
        either = not self.days_open and not self.weekdays_open
        return by_day or by_weekday if either else by_day and by_weekday


@dataclass(frozen=True, slots=True)
class Schedule:
    """Either fields or a fixed step in seconds (@every)."""

    fields: Fields | None
    every: float = 0.0

    def after(self, moment: datetime, zone: tzinfo = UTC) -> datetime | None:
        """The first time after `moment` (aware), in UTC; None if there is none within five years."""
        if self.fields is None:
            whole = moment.astimezone(UTC).replace(microsecond=0)
            return whole + timedelta(seconds=self.every)
        return _next(self.fields, moment, zone)

    def between(self, earliest: datetime, now: datetime, zone: tzinfo = UTC) -> Iterator[datetime]:
        """The times after `earliest` and up to `now`."""
        moment: datetime | None = earliest
        while moment is not None and (moment := self.after(moment, zone)) is not None and moment <= now:
            yield moment


def _next(fields: Fields, moment: datetime, zone: tzinfo) -> datetime | None:
    at = moment.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    end = at + LOOK_AHEAD
    while at < end:
        local = at.astimezone(zone)
        if local.month not in fields.months:
            later = (local.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0)
        elif not fields.day_matches(local):
            later = (local + timedelta(days=1)).replace(hour=0, minute=0)
        elif local.hour not in fields.hours:
            # In UTC, so that an hour that the clocks repeat or leave out is passed once.
            at += timedelta(minutes=60 - local.minute)
            continue
        elif local.minute not in fields.minutes:
            at += timedelta(minutes=1)
            continue
        else:
            return at
        at = max(at + timedelta(minutes=1), later.replace(fold=0).astimezone(UTC))
    return None


def parse(text: str) -> Schedule:
    """The schedule; ValueError says in upstream's words what is wrong."""
    if text.startswith("@every "):
        return Schedule(None, _duration(text.removeprefix("@every ")))
    if text.startswith("@"):
        if text not in WORDS:
            raise ValueError(f"unrecognized descriptor: {text}")
        text = WORDS[text]
    parts = text.split()
    if len(parts) != 5:
        raise ValueError(f"expected exactly 5 fields, found {len(parts)}: [{' '.join(parts)}]")
    minutes, hours, days, months, weekdays = parts
    return Schedule(
        Fields(
            _field(minutes, 0, 59),
            _field(hours, 0, 23),
            _field(days, 1, 31),
            _field(months, 1, 12, MONTHS),
            _field(weekdays, 0, 6, DAYS),
            _open(days),
            _open(weekdays),
        )
    )


def zone_of(name: str | None) -> tzinfo:
    """The named time zone, UTC without a name; ValueError if this host does not know it."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"unknown time zone {name}") from error


def _open(text: str) -> bool:
    return any(part in ("*", "?", "*/1", "?/1") for part in text.split(","))


def _field(text: str, least: int, most: int, names: Mapping[str, int] | None = None) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        found |= _range(part, least, most, names or {})
    return frozenset(found)


def _range(text: str, least: int, most: int, names: Mapping[str, int]) -> set[int]:
    span, slash, step_text = text.partition("/")
    first, dash, last = span.partition("-")
    if first in ("*", "?"):
        start, end = least, most
    else:
        start = _number(first, names)
        end = _number(last, names) if dash else most if slash else start
    step = _number(step_text, {}) if slash else 1
    if start < least:
        raise ValueError(f"beginning of range ({start}) below minimum ({least}): {text}")
    if end > most:
        raise ValueError(f"end of range ({end}) above maximum ({most}): {text}")
    if start > end:
        raise ValueError(f"beginning of range ({start}) beyond end of range ({end}): {text}")
    if step == 0:
        raise ValueError(f"step of range should be a positive number: {text}")
    return set(range(start, end + 1, step))


def _number(text: str, names: Mapping[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"failed to parse int from {text}")
    return int(text)


def _duration(text: str) -> float:
    """Go's durations: 1h30m, 90s; whole seconds, at least one."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"failed to parse duration @every {text}")
    return float(max(1, int(sum(float(number) * UNITS[unit] for number, unit in parts))))
