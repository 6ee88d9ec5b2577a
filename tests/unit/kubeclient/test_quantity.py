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


@pytest.mark.parametrize(
    "text", ["", "1 Gi", "abc", "1.2.3", "1gi", "Gi", "--1", "1e", ".", "1\n", "\u0661", "1e\u0663"]
)
def test_what_is_no_quantity_is_refused(text) -> None:
    with pytest.raises(ValueError):
        quantity.parse(text)


@pytest.mark.parametrize("text", ["1" * 5000, "0." + "0" * 5000 + "1"])
def test_what_is_longer_than_python_reads_is_refused_like_the_rest(text: str) -> None:
    with pytest.raises(quantity.QuantityError, match="4300 digits"):
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
    ("given", "wanted"),
    [
        ("0", "0"),
        ("0Mi", "0"),
        ("1", "1"),
        ("1000m", "1"),
        ("0.5", "500m"),
        (".001", "1m"),
        ("0.0000001", "100n"),
        ("0.0000000001", "1n"),
        ("100", "100"),
        ("2000", "2k"),
        ("1500", "1500"),
        ("1000000", "1M"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("0.5Ki", "512"),
        ("1023Ki", "1023Ki"),
        ("1e3", "1e3"),
        ("12E6", "12e6"),
        ("-1024Ki", "-1Mi"),
        ("+1", "1"),
        ("1000E", "1000E"),
    ],
)
def test_the_spelling_that_clients_read_back(given: str, wanted: str) -> None:
    assert quantity.canonical(given) == wanted
    assert quantity.canonical(wanted) == wanted


@pytest.mark.parametrize(
    ("number", "like", "text"),
    [
        (2**30, "1Mi", "1Gi"),
        (2**30, "1", "1073741824"),
        (Fraction(3, 2), "1", "1500m"),
        (Fraction(3, 2), "250m", "1500m"),
        (2000, "1e3", "2e3"),
        (1536, "1Ki", "1536"),
        (0, "1Gi", "0"),
    ],
)
def test_sums_are_written_in_the_family_of_a_given_quantity(number, like, text) -> None:
    assert quantity.written(Fraction(number), like=like) == text


def test_thousandths_of_a_core() -> None:
    assert [quantity.format_milli(n) for n in (0, 250, 1500, 2000)] == ["0", "250m", "1500m", "2"]
