"""After `down` and `reset` the host is as before: the promise on which everything else stands."""

from __future__ import annotations

import host_state
import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e


def test_down_leaves_nothing_in_the_kernel_and_reset_nothing_on_the_disk(unstarted_node: Node) -> None:
    node = unstarted_node
    before = host_state.read()
    node.cli("up", "--detach")
    node.apply(
        pod("a", container={"ports": [{"containerPort": 80, "hostPort": 8088}]}),
        pod("b", volumes=[{"name": "s", "secret": {"secretName": "x", "optional": True}},
                          {"name": "m", "emptyDir": {"medium": "Memory"}}]),
        pod("c", hostNetwork=True),
    )  # fmt: skip
    node.kubectl("expose", "pod", "a", "--port=80", "--type=NodePort")
    node.wait_running("a", "b", "c")
    assert before.difference(host_state.read()) != [], "a running node must show in the comparison"
    node.cli("down")
    assert host_state.settled_difference(before) == []
    node.cli("reset", "--yes")
    assert host_state.settled_difference(before) == []
    left = [path for path in node.root.rglob("*") if not path.is_relative_to(node.home)]
    assert [path for path in left if path.is_file()] == []


def test_down_and_reset_may_be_repeated_and_need_no_node(unstarted_node: Node) -> None:
    assert unstarted_node.cli("down").code == 0
    assert unstarted_node.cli("reset", "--yes").code == 0


def test_reset_without_yes_asks_and_does_nothing_unasked(unstarted_node: Node) -> None:
    done = unstarted_node.cli("reset", check=False)
    assert done.code == 1 and "--yes" in done.err
