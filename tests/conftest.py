"""What every test can rely on: markers obeyed, and a host that is as it was before."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import host_state

# pytest-timeout's clock runs once for both tries: after it has rung, a second one might hang for ever.
SECOND_TRY = {"reruns": 1, "rerun_except": [r"Timeout \(>"]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the real kernel need root, and are tried a second time: machines are noisy, and one missed
    deadline of five thousand tests hides what the others say. The summary lists each as RERUN: it is
    a test to be mended. The command line's own `--reruns`, 0 for none, comes first.
    """
    added = pytest.mark.flaky(**SECOND_TRY) if os.geteuid() == 0 else pytest.mark.skip(reason="needs root")
    if os.geteuid() == 0 and config.getoption("reruns") is not None:
        return
    for item in items:
        if item.get_closest_marker("privileged") or item.get_closest_marker("e2e"):
            item.add_marker(added)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How the first of two tries failed: whoever mends the test has nothing else to go by."""
    reports = terminalreporter.stats.get("rerun", [])
    if reports:
        terminalreporter.section("first tries that failed")
    for report in reports:
        terminalreporter.write_line(report.nodeid, bold=True)
        terminalreporter.write_line(str(report.longrepr)[-6000:])


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
