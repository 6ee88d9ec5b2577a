"""Which size the pods' pieces of TCP get: what was asked for, else the uplink's, else the kernel's own."""

from __future__ import annotations

import argparse

import pytest

from cni.frozen import replace
from cni.rtnetlink import Link
from kubelet_py.node import segments

UPLINK = Link(2, "eth0", "", 1500, True, 0, "", 0, False, "", gso=196608)


def test_the_uplinks_size_is_followed_where_it_is_more_than_usual() -> None:
    assert segments.chosen(0, UPLINK, wrapped=False) == 196608


@pytest.mark.parametrize("gso", [0, 16384, 65536], ids=["unknown to the kernel", "less", "usual"])
def test_a_usual_uplink_leaves_it_to_the_kernel(gso: int) -> None:
    assert segments.chosen(0, replace(UPLINK, gso=gso), wrapped=False) == 0


def test_without_an_uplink_or_inside_a_tunnel_it_is_the_kernels() -> None:
    assert segments.chosen(0, None, wrapped=False) == 0
    assert segments.chosen(0, UPLINK, wrapped=True) == 0


def test_what_was_asked_for_counts_whatever_the_uplink_takes() -> None:
    assert segments.chosen(131072, replace(UPLINK, gso=65536), wrapped=True) == 131072
    assert segments.chosen(131072, None, wrapped=False) == 131072


def test_a_size_is_read_and_others_are_refused() -> None:
    assert [segments.size(text) for text in ("auto", "65536", "524280")] == [0, 65536, 524280]
    for text in ("", "65535", "524281", "-1", "64k", "1e6"):
        with pytest.raises(
            argparse.ArgumentTypeError, match="neither auto nor a number"
        ):
            segments.size(text)
