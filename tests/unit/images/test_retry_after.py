"""How long a registry wants to be left alone: runtime/images/transport.py."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from runtime.images import transport

NOW = 784111777.0  # 1994-11-06 08:49:37 UTC, the date in RFC 9110, section 5.6.7


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
        ("", 0.5),
        ("soon", 0.5),
    ],
)
def test_seconds_and_all_three_kinds_of_dates(
    said: str, seconds: float, in_new_york: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    assert transport._seconds(said, 0.5) == seconds
