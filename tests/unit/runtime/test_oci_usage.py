"""Durations and files as `events` and `update` take them."""

from __future__ import annotations

import pytest

from runtime.errors import StateError
from runtime.oci_arguments import parse
from runtime.oci_flags import Arguments
from runtime.oci_usage import seconds, wanted


@pytest.mark.parametrize(
    ("text", "value"), [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("+1s500us", 1.0005)]
)
def test_a_duration_is_written_as_in_go(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "s", "x", "1h2", "1d", "0s", "-1s", "1s-1s", "3200000h"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(StateError, match="interval"):
        seconds(text)


def test_a_file_that_is_not_there_is_named() -> None:
    arguments = Arguments()
    parse(["update", "--resources", "/nonexistent", "one"], arguments)
    with pytest.raises(StateError, match=r"^Could not read /nonexistent: ENOENT$"):
        wanted(arguments)
