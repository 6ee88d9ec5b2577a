from __future__ import annotations

from fractions import Fraction

import pytest

from kubeclient import quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("1", 1),
        ("500m", Fraction(1, 2)),
        ("1.5Gi", 1536 * 1024**2),
        ("1k", 1000),
        ("1Ki", 1024),
        ("2e3", 2000),
        ("2E3", 2000),
        ("3E", 3 * 10**18),
        (".5", Fraction(1, 2)),
        ("-1", -1),
        ("100n", Fraction(1, 10**7)),
    ],
)
def test_quantities_are_exact(text, number) -> None:
    assert quantity.parse(text) == number


@pytest.mark.parametrize("text", ["", "1 Gi", "abc", "1.2.3", "1gi", "Gi", "--1", "1e", "."])
def test_what_is_no_quantity_is_refused(text) -> None:
    with pytest.raises(ValueError):
        quantity.parse(text)


def test_a_tenth_of_a_nano_is_rounded_up() -> None:
    assert quantity.parse("0.0000000001") == Fraction(1, 10**9)


def test_cpu_in_thousandths_and_bytes_round_up() -> None:
    assert quantity.milli("0.1") + quantity.milli("0.2") == quantity.milli("0.3")
    assert quantity.milli("1u") == 1
    assert quantity.value("1500m") == 2


def test_what_exceeds_an_int64_is_capped() -> None:
    assert quantity.parse("100E") == 2**63 - 1
    assert quantity.parse("-100E") == 1 - 2**63


@pytest.mark.parametrize(
    ("number", "binary", "text"),
    [
        (2**30, True, "1Gi"),
        (1536 * 2**20, True, "1536Mi"),
        (1000, False, "1k"),
        (Fraction(1, 2), True, "500m"),
        (0, False, "0"),
        (1023, True, "1023"),
    ],
)
def test_numbers_are_written_with_the_largest_exact_suffix(number, binary, text) -> None:
    assert quantity.format(number, binary=binary) == text
    assert quantity.parse(text) == number
