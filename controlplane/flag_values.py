"""Values of command-line flags, in the forms that upstream's flags have. Each raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import re


def duration(text: str) -> float:
    """Seconds of a Go duration such as 8760h or 1h30m."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 8760h or 1h30m")
    found = sum(float(number) * {"h": 3600.0, "m": 60.0, "s": 1.0}[unit] for number, unit in parts)
    if found <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not more than 0")
    return found


def port_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        ports = int(low), int(high or low)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range such as 30000-32767") from None
    if not 0 < ports[0] <= ports[1] < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range of ports")
    return ports


def not_negative(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
