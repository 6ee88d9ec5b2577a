"""The canonical spelling of quantities: what a client reads back after writing `1000m` or `1024Mi`.

Upstream's Quantity does not keep the text it was given (apimachinery pkg/api/resource/quantity.go): it is
parsed, rounded up to nano-units and written again with the largest suffix of its own family that leaves an
integer. A client that applies `cpu: 0.5` therefore finds `500m`, and would see an endless diff if it found
anything else.
"""

from __future__ import annotations

import re
from fractions import Fraction

_TEXT = re.compile(r"^([+-]?)(\d+\.?\d*|\.\d+)(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?\d+))?$")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL_SUFFIX = {exponent: suffix for suffix, exponent in _DECIMAL.items()}
_BINARY_SUFFIX = {power: suffix for suffix, power in _BINARY.items()}
_NANO = 10**9


def parse(text: str) -> Fraction:
    """The exact value of a quantity. ValueError when it is not one."""
    match = _TEXT.match(text)
    if not match:
        raise ValueError(f"{text!r} is no quantity")
    sign, digits, suffix, exponent = match.groups()
    value = Fraction(digits if not digits.endswith(".") else digits + "0")
    if suffix in _BINARY:
        value *= 1024 ** _BINARY[suffix]
    else:
        value *= Fraction(10) ** (int(exponent) if exponent else _DECIMAL[suffix or ""])
    return -value if sign == "-" else value


def canonical(text: str) -> str:
    """`text` as the API server would print it. ValueError when it is no quantity.

    >>> [canonical(text) for text in ("1000m", "0.5", "1024Mi", "1.5Gi", "2000", "1e3", "100.5Mi")]
    ['1', '500m', '1Gi', '1536Mi', '2k', '1e3', '102912Ki']
    """
    value = parse(text)
    if not value:
        return "0"
    sign = "-" if value < 0 else ""
    nano = -int(-abs(value) * _NANO // 1)
    match = _TEXT.match(text)
    suffix = match.group(3) if match else None
    if suffix in _BINARY and nano >= 1024 * _NANO:
        return sign + _binary(-(-nano // _NANO))
    number, exponent = _thousands(nano)
    if match and match.group(4):
        return f"{sign}{number}e{exponent}" if exponent else f"{sign}{number}"
    while exponent > 18:
        number, exponent = number * 1000, exponent - 3
    return f"{sign}{number}{_DECIMAL_SUFFIX[exponent]}"


def _binary(number: int) -> str:
    power = 0
    while power < 6 and number % 1024 == 0:
        number, power = number // 1024, power + 1
    return f"{number}{_BINARY_SUFFIX.get(power, '')}"


def _thousands(nano: int) -> tuple[int, int]:
    """A count of nano-units as a number and the largest exponent, a multiple of 3, that keeps it exact."""
    exponent = -9
    while nano % 1000 == 0:
        nano, exponent = nano // 1000, exponent + 3
    return nano, exponent
