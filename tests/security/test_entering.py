"""What a container does to those who enter it: checklist "Escapes", E01 and E03, by ways that the checklist
does not name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.errors import RuntimeFailure
from tests.privileged.runtime_service.harness import Node

pytestmark = pytest.mark.privileged

# -- E03: memory and signals of who enters -----------------------------------------------------------------

STOPPER = "while ! ls /tmp/go; do sleep 0.05; done; while :; do kill -STOP -1; done"
TIMES = 12


def ends(work: Callable[[], object]) -> bool:
    """Whether it comes to its end, whatever that is, soon."""

    def attempt() -> None:
        try:
            work()
        except (TimeoutError, RuntimeFailure):
            return

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


@pytest.mark.parametrize("compiled", [False, True])
def test_E03_a_container_that_stops_what_enters_it_does_not_stop_its_shim(
    node: Node, compiled: bool
) -> None:
    """E03: between setns and execve a process of ours is within reach of the container's signals, and who
    started it waits for the execve: for ever, when SIGSTOP comes first."""
    (node.rootfs / "tmp").mkdir(exist_ok=True)
    sandbox = node.sandbox()
    container = node.run(sandbox, ["sh", "-c", STOPPER])
    for _ in range(5 if compiled else 0):
        assert node.service.exec_sync(container, ["true"], timeout=10).exit_code == 0
    Path(f"/proc/{node.service.container(container).pid}/root/tmp/go").touch()
    for _ in range(TIMES):
        assert ends(lambda: node.service.exec_sync(container, ["true"], timeout=1))
    assert ends(lambda: node.service.stop_container(container, 0))
    assert [one.state for one in node.service.list_sandboxes()] == ["READY"]


def test_E03_a_neighbour_that_stops_what_starts_does_not_stop_their_shim(node: Node) -> None:
    """E03: as above, where containers of a pod share their processes."""
    sandbox = node.sandbox(share_process_namespace=True)
    first = node.run(sandbox, ["sh", "-c", "while :; do kill -STOP -1; done"])
    for _ in range(TIMES):
        second = node.create(sandbox, ["true"])
        assert ends(lambda second=second: node.service.start_container(second))
        assert ends(lambda second=second: node.service.stop_container(second, 0))
    assert ends(lambda: node.service.stop_container(first, 0))
    assert [one.state for one in node.service.list_sandboxes()] == ["READY"]
