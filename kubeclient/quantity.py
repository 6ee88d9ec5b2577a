"""Kubernetes quantities: exact numbers with decimal (k, M, m …) or binary (Ki, Mi …) suffixes.

Source: apimachinery's resource.Quantity. Values are exact fractions; what does not fit a whole number is
rounded up, as upstream does, so that a request is never understated.
"""

from __future__ import annotations

import re
from fractions import Fraction

BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}
DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
LARGEST = 2**63 - 1
_FORM = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d{1,3}))?")


class QuantityError(ValueError):
    """Text that is no quantity."""


def parse(text: str | int | float) -> Fraction:
    """The exact value of "500m", "1.5Gi", "2e3" …; raises QuantityError."""
    match = _FORM.fullmatch(str(text))
    if match is None:
        raise QuantityError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    sign, digits, suffix, exponent = match.groups()
    number = Fraction(digits if not digits.startswith(".") else "0" + digits)
    if exponent is not None:
        number *= Fraction(10) ** int(exponent)
    elif suffix in BINARY:
        number *= BINARY[suffix]
    else:
        number *= DECIMAL[suffix or ""]
    # Upstream keeps nothing finer than a billionth, rounded away from zero, and nothing past an int64.
    nano = -(-number * 10**9 // 1)
    number = min(Fraction(nano, 10**9), Fraction(LARGEST))
    return -number if sign == "-" else number


def value(text: str | int | float) -> int:
    """Whole units, rounded up (bytes, counts)."""
    number = parse(text)
    return -(-number.numerator // number.denominator)


def milli(text: str | int | float) -> int:
    """Thousandths, rounded up (milli-cores)."""
    number = parse(text) * 1000
    return -(-number.numerator // number.denominator)


def format_binary(number: int) -> str:
    """The shortest exact form with a binary suffix: 1073741824 → "1Gi"."""
    for suffix, factor in reversed(BINARY.items()):
        if number and number % factor == 0:
            return f"{number // factor}{suffix}"
    return str(number)


def format_milli(number: int) -> str:
    """Milli-cores as upstream writes cpu: 1500 → "1500m", 2000 → "2"."""
    return str(number // 1000) if number % 1000 == 0 else f"{number}m"


def format(number: int | Fraction, *, binary: bool = True) -> str:
    """Canonical text of an exact number: whole with a suffix where exact, else in milli."""
    exact = Fraction(number)
    if exact.denominator == 1:
        whole = int(exact)
        if binary:
            return format_binary(whole)
        for suffix, factor in reversed(DECIMAL.items()):
            if factor >= 1 and whole and whole % int(factor) == 0:
                return f"{whole // int(factor)}{suffix}"
        return str(whole)
    return f"{-(-(exact * 1000).numerator // (exact * 1000).denominator)}m"
