"""Canonical quantities, as apimachinery's own table has them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from controlplane.apiserver.quantities import canonical, parse


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
def test_canonical(given: str, wanted: str) -> None:
    assert canonical(given) == wanted
    assert parse(canonical(given)) >= parse(given) if parse(given) >= 0 else True


@pytest.mark.parametrize("given", ["", "x", "1x", "1 ", "1Kk", "--1", "1.2.3", "."])
def test_what_is_no_quantity(given: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        parse(given)


def test_exact_values() -> None:
    assert parse("100m") + parse("200m") == parse("0.3")
    assert parse("1Ki") == Fraction(1024)
