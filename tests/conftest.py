"""What every test can rely on: markers obeyed, and a host that is as it was before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import host_state


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    no_root = pytest.mark.skip(reason="needs root")
    for item in items:
        if item.get_closest_marker("privileged") or item.get_closest_marker("e2e"):
            item.add_marker(no_root)


@pytest.fixture(autouse=True)
def clean_host(request: pytest.FixtureRequest) -> Iterator[None]:
    """A privileged test leaves links, routes, rules, mounts, cgroups and processes as they were.

    End-to-end tests share a node per module; there the node's own fixture makes the comparison.
    """
    node = request.node
    if not node.get_closest_marker("privileged") or node.get_closest_marker("e2e") or os.geteuid() != 0:
        yield
        return
    before = host_state.read()
    yield
    assert host_state.settled_difference(before) == []
