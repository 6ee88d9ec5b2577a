from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from controlplane.cron_schedule import parse, zone_of


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def following(schedule: str, since: str, count: int, zone: str | None = None) -> list[str]:
    found, moment = [], at(since)
    for _ in range(count):
        moment = parse(schedule).after(moment, zone_of(zone))
        assert moment is not None
        found.append(f"{moment:%Y-%m-%dT%H:%M}")
    return found


@pytest.mark.parametrize(
    ("schedule", "since", "times"),
    [
        ("* * * * *", "2026-01-01T00:00:30", ["2026-01-01T00:01", "2026-01-01T00:02"]),
        ("*/20 8-9 * * *", "2026-01-01T08:30:00", ["2026-01-01T08:40", "2026-01-01T09:00"]),
        ("5/25 * * * *", "2026-01-01T00:00:00", ["2026-01-01T00:05", "2026-01-01T00:30"]),
        ("0 0 31 * *", "2026-02-01T00:00:00", ["2026-03-31T00:00", "2026-05-31T00:00"]),
        ("0 12 * feb mon-wed/2", "2026-02-01T00:00:00", ["2026-02-02T12:00", "2026-02-04T12:00"]),
        ("30 4 29 2 *", "2026-01-01T00:00:00", ["2028-02-29T04:30"]),
        ("@daily", "2026-01-01T00:00:00", ["2026-01-02T00:00", "2026-01-03T00:00"]),
        ("@weekly", "2026-01-01T00:00:00", ["2026-01-04T00:00"]),
        ("@every 1h30m", "2026-01-01T00:00:00", ["2026-01-01T01:30", "2026-01-01T03:00"]),
    ],
)
def test_times_that_follow(schedule, since, times) -> None:
    assert following(schedule, since, len(times)) == times


def test_two_restricted_day_fields_are_alternatives_and_one_open_is_none() -> None:
    """1 January 2026 is a Thursday."""
    assert following("0 0 10 * 5", "2026-01-01T00:00:00", 3) == [
        "2026-01-02T00:00",
        "2026-01-09T00:00",
        "2026-01-10T00:00",
    ]
    assert following("0 0 */1 * 5", "2026-01-01T00:00:00", 1) == ["2026-01-02T00:00"]
    assert following("0 0 * * 5", "2026-01-03T00:00:00", 1) == ["2026-01-09T00:00"]
    # A step restricts: day 1, 11, 21, 31, or a Friday.
    assert following("0 0 */10 * 5", "2026-01-09T00:00:00", 1) == ["2026-01-11T00:00"]


def test_a_zone_decides_and_a_time_that_its_clocks_leave_out_does_not_come() -> None:
    assert following("0 6 * * *", "2026-01-01T00:00:00", 1, "Europe/Berlin") == ["2026-01-01T05:00"]
    # On 29 March 2026 clocks in Berlin go from 02:00 to 03:00, on 25 October from 03:00 to 02:00.
    assert following("30 2 * * *", "2026-03-28T00:00:00", 2, "Europe/Berlin") == [
        "2026-03-28T01:30",
        "2026-03-30T00:30",
    ]
    assert following("0 4 * * *", "2026-10-24T12:00:00", 2, "Europe/Berlin") == [
        "2026-10-25T03:00",
        "2026-10-26T03:00",
    ]


def test_what_never_comes_is_none() -> None:
    assert parse("0 0 30 2 *").after(at("2026-01-01T00:00:00")) is None


def test_between_leaves_out_the_start_and_has_the_end() -> None:
    found = parse("* * * * *").between(at("2026-01-01T00:00:00"), at("2026-01-01T00:02:00"))
    assert [moment.minute for moment in itertools.islice(found, 9)] == [1, 2]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
        ("0 0 * * * *", "expected exactly 5 fields, found 6: [0 0 * * * *]"),
        ("60 * * * *", "end of range (60) above maximum (59): 60"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("* * * * 7", "end of range (7) above maximum (6): 7"),
        ("9-3 * * * *", "beginning of range (9) beyond end of range (3): 9-3"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("x * * * *", "failed to parse int from x"),
        ("@sometimes", "unrecognized descriptor: @sometimes"),
        ("@every soon", "failed to parse duration @every soon"),
    ],
)
def test_errors_say_what_is_wrong(schedule, message) -> None:
    with pytest.raises(ValueError) as caught:
        parse(schedule)
    assert str(caught.value) == message


def test_an_unknown_zone() -> None:
    with pytest.raises(ValueError, match="unknown time zone Mars/Olympus"):
        zone_of("Mars/Olympus")
