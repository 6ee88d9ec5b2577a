from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.server.live_server import Node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("node"))
    yield made
    made.server.stop()
