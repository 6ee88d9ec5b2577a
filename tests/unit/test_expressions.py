"""Texts of strangers: matched in time that grows with the square of their length, one stops a process for
minutes, since Python holds the interpreter's lock meanwhile. The suite has not that much patience."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.apiserver import usage_samples
from controlplane.apiserver.schema_scalars import special
from kubeclient import quantity
from kubeclient.selectors import LabelSelector

MANY = 500_000


def canonical(text: str) -> None:
    with pytest.raises(quantity.QuantityError):
        quantity.canonical(text)


def scalar(text: str) -> None:
    found = special("quantity", text)
    assert found is not None and "regular expression" in found[1]


def selector(text: str) -> None:
    assert LabelSelector.parse(text).requirements == LabelSelector.parse("a").requirements


def usage(text: str) -> None:
    assert usage_samples.parse(text).pods == {}


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (canonical, "0" * MANY + "!"),
        (scalar, "0" * MANY + "!"),
        (selector, "a" + " " * MANY),
        (usage, "container_cpu_usage_seconds_total{" + "a" * MANY + "} 1 1"),
    ],
    ids=["quantity", "a quantity's form", "selector", "usage"],
)
def test_long_texts_are_read_in_linear_time(read: Callable[[str], None], text: str) -> None:
    read(text)
