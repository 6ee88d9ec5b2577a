from __future__ import annotations

from typing import Any

import pytest

from kubeclient.ranges import of_version, part_sizes, read_ranges


def test_one_range_or_one_of_each_version_in_the_order_given() -> None:
    assert [str(n) for n in read_ranges("10.244.0.0/16")] == ["10.244.0.0/16"]
    both = read_ranges("fd00:10:244::/56, 10.244.0.0/16")
    assert [str(n) for n in both] == ["fd00:10:244::/56", "10.244.0.0/16"]
    assert str(of_version(both, 4)) == "10.244.0.0/16" and of_version(both[:1], 4) is None


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0/8,", "10.0.0.0/8,11.0.0.0/8", "10.0.0.1/8", "fd00::/64,::/0,10.0.0.0/8"]
)
def test_what_is_no_pair_of_ranges(text: str) -> None:
    with pytest.raises(ValueError):
        read_ranges(text)


@pytest.mark.parametrize(
    ("ranges", "sizes", "expected"),
    [
        ("10.244.0.0/16", {}, {4: 24}),
        ("10.244.0.0/16", {"size": 22}, {4: 22}),
        ("10.244.0.0/16", {"size_ipv4": 22}, {4: 22}),
        ("10.244.0.0/26", {}, {4: 26}),
        ("10.244.0.0/16,fd00::/56", {}, {4: 24, 6: 64}),
        ("fd00::/56,10.244.0.0/16", {"size_ipv6": 80}, {4: 24, 6: 80}),
    ],
)
def test_sizes_of_the_nodes_parts(ranges: str, sizes: dict[str, int], expected: dict[int, int]) -> None:
    assert part_sizes(read_ranges(ranges), **sizes) == expected


@pytest.mark.parametrize(
    ("ranges", "sizes", "said"),
    [
        ("10.244.0.0/16", {"size": 15}, "--node-cidr-mask-size 15 must be between 16"),
        ("10.244.0.0/16", {"size": 31}, "--node-cidr-mask-size 31 must be between 16.* and 30"),
        ("10.244.0.0/16", {"size_ipv6": 64}, "--cluster-cidr has no IPv6"),
        ("10.244.0.0/16,fd00::/56", {"size": 24}, "does not say which of two ranges"),
        ("10.244.0.0/16,fd00::/56", {"size_ipv6": 48}, "--node-cidr-mask-size-ipv6 48 must be between 56"),
    ],
)
def test_parts_that_do_not_fit_are_refused(ranges: str, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part_sizes(read_ranges(ranges), **sizes)
