"""Kubernetes quantities: exact numbers with decimal (k, M, m …) or binary (Ki, Mi …) suffixes.

Source: apimachinery's pkg/api/resource/quantity.go. Values are exact fractions; what does not fit a whole
number is rounded up, as upstream does, so that a request is never understated.

Upstream does not keep the text that it was given: it writes every quantity again, with the largest suffix of
its own family that leaves an integer. A client that applies `cpu: 0.5` finds `500m`, and would see an
endless diff if it found anything else. That spelling is `canonical`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

LARGEST = 2**63 - 1
_NANO = 10**9
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}  # powers of 1024
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_SUFFIX = {power: suffix for suffix, power in _BINARY.items()}
_DECIMAL_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_FORM = re.compile(r"([+-]?)([0-9]++\.?[0-9]*|\.[0-9]+)(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?[0-9]{1,3}))?")


class QuantityError(ValueError):
    """Text that is no quantity."""


def parse(text: str | int | float) -> Fraction:
    """The value of "500m", "1.5Gi", "2e3" …, exact to a billionth and no larger than an int64.

    Raises QuantityError.
    """
    return _parsed(str(text))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Fraction:
    """Few different quantities are read again and again: a pod's start asks fifteen times."""
    number = _exact(text)
    # Upstream keeps nothing finer than a billionth, rounded away from zero, and nothing past an int64.
    size = min(Fraction(-(-abs(number) * _NANO // 1), _NANO), Fraction(LARGEST))
    return -size if number < 0 else size


def value(text: str | int | float) -> int:
    """Whole units, rounded up (bytes, counts)."""
    number = parse(text)
    return -(-number.numerator // number.denominator)


def milli(text: str | int | float) -> int:
    """Thousandths, rounded up (milli-cores)."""
    return _milli(str(text))


@lru_cache(maxsize=1024)
def _milli(text: str) -> int:
    number = _parsed(text) * 1000
    return -(-number.numerator // number.denominator)


def format_milli(number: int) -> str:
    """Milli-cores as upstream writes cpu: 1500 → "1500m", 2000 → "2"."""
    return written(Fraction(number, 1000), like="1m")


def canonical(text: str | int | float) -> str:
    """`text` as the API server prints it. Raises QuantityError.

    >>> [canonical(text) for text in ("1000m", "0.5", "1024Mi", "1.5Gi", "2000", "1e3", "100.5Mi")]
    ['1', '500m', '1Gi', '1536Mi', '2k', '1e3', '102912Ki']
    """
    return written(_exact(text), like=str(text))


def written(number: Fraction, *, like: str) -> str:
    """The number in the family (binary, decimal or exponent) of the quantity `like`."""
    match = _match(like)
    if not number:
        return "0"
    sign = "-" if number < 0 else ""
    nano = -int(-abs(number) * _NANO // 1)
    if match.group(3) in _BINARY and nano >= 1024 * _NANO:
        return sign + _in_binary(-(-nano // _NANO))
    digits, exponent = _in_thousands(nano)
    if match.group(4):
        return f"{sign}{digits}e{exponent}" if exponent else f"{sign}{digits}"
    while exponent > 18:
        digits, exponent = digits * 1000, exponent - 3
    return f"{sign}{digits}{_DECIMAL_SUFFIX[exponent]}"


def _match(text: str) -> re.Match[str]:
    match = _FORM.fullmatch(text)
    if match is None:
        raise QuantityError(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    return match


def _exact(text: str | int | float) -> Fraction:
    sign, digits, suffix, exponent = _match(str(text)).groups()
    try:
        number = Fraction(digits if not digits.startswith(".") else "0" + digits)
    except ValueError:  # as int(), which would take minutes for more
        raise QuantityError("quantities must not have more than 4300 digits") from None
    if suffix in _BINARY:
        number *= 1024 ** _BINARY[suffix]
    else:
        number *= Fraction(10) ** (int(exponent) if exponent else _DECIMAL[suffix or ""])
    return -number if sign == "-" else number


def _in_binary(number: int) -> str:
    power = 0
    while power < 6 and number % 1024 == 0:
        number, power = number // 1024, power + 1
    return f"{number}{_BINARY_SUFFIX.get(power, '')}"


def _in_thousands(nano: int) -> tuple[int, int]:
    """A count of nano-units as a number and the largest exponent, a multiple of 3, that keeps it exact."""
    exponent = -9
    while nano % 1000 == 0:
        nano, exponent = nano // 1000, exponent + 3
    return nano, exponent
