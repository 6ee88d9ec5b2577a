from __future__ import annotations

from dataclasses import replace

import host_state

EMPTY = host_state.HostState(*(frozenset[str]() for _ in range(8)))


def test_equal_states_have_no_difference() -> None:
    assert EMPTY.difference(EMPTY) == []


def test_what_came_and_what_went_is_named() -> None:
    before = replace(EMPTY, links=frozenset({"lo", "eth0"}))
    after = replace(EMPTY, links=frozenset({"lo", "kpy0"}), mounts=frozenset({"/x"}))
    assert before.difference(after) == ["links: +kpy0", "links: -eth0", "mounts: +/x"]
