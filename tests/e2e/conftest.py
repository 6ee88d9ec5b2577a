"""A real node per test module (e2e_node.py), and the two kinds of kubectl as a fixture."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import host_state
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from e2e_node import KUBECTLS, Done, Node, main_kubectls, make_uplink, sh
from second_try import Found, objects, remove_new

BEFORE = pytest.StashKey[Found | None]()


@pytest.fixture(scope="module")
def uplink() -> Iterator[str]:
    outside = f"kpytest{os.getpid()}"
    make_uplink(outside)
    yield outside
    sh("ip", "link", "del", "up0")
    sh("ip", "netns", "del", outside)


@pytest.fixture(scope="module")
def unstarted_node(uplink: str) -> Iterator[Node]:
    """A node's root with the busybox image in it, not started; reset at the end, the host compared."""
    if not KUBECTLS:
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")
    before = host_state.read()
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    node = Node(root, uplink)
    node.import_busybox()
    yield node
    node.cli("reset", "--yes")
    difference = host_state.settled_difference(before)
    shutil.rmtree(root)
    assert difference == []


@pytest.fixture(scope="module")
def node(unstarted_node: Node) -> Node:
    """A running node that is Ready."""
    unstarted_node.cli("up", "--detach")
    return unstarted_node


@pytest.fixture(params=main_kubectls() or ["none"])
def kubectl(request: pytest.FixtureRequest, node: Node) -> Callable[..., Done]:
    """`kubectl(*argv)` once per kind of client: Debian's 1.20 (JSON, SPDY) and 1.32 (protobuf, WebSocket)."""

    def run(*argv: str, **options: Any) -> Done:
        return node.kubectl(*argv, version=request.param, **options)

    run.version = request.param  # type: ignore[attr-defined]
    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A second try begins with what was there before the first."""
    node = next((value for value in _arguments(item).values() if isinstance(value, Node)), None)
    if node is not None:
        if getattr(item, "execution_count", 1) > 1 and BEFORE in item.stash:
            remove_new(node, item.stash[BEFORE])
        item.stash[BEFORE] = objects(node)
    return (yield)


def _arguments(item: pytest.Item) -> dict[str, Any]:
    return getattr(item, "funcargs", None) or {}


LOG_LINES = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """What the node said last, beside a test that failed on it: a rare failure is seen once only."""
    report = yield
    node = _arguments(item).get("unstarted_node")
    if report.failed and isinstance(node, Node):
        for file in sorted(node.root.glob("var/log/kubelet-py/*.log")):
            lines = file.read_text(errors="replace").splitlines()[-LOG_LINES:]
            report.sections.append((f"the end of {file.name}", "\n".join(lines)))
    return report
