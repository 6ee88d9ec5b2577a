"""A container that writes as fast as it can, while nobody reads what a client of it has been sent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.stdio import BEHIND
from runtime.streams import STDIN
from tests.bench.log_pump import build, speed
from tests.privileged.runtime_service.harness import Node, read_all

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc (apt-get install gcc libc6-dev)"),
]

MEGABYTES = 200


def test_every_line_of_a_fast_writer_is_logged_whole_once_and_in_order(node: Node, tmp_path: Path) -> None:
    program = build(tmp_path)
    shutil.copy(program, node.rootfs / "bin")
    script = f"read go; exec log_pump write {MEGABYTES}"
    container = node.run(node.sandbox(), ["sh", "-c", script], stdin=True)
    slow = node.service.attach(container, tty=False, stdin=False, stdout=True, stderr=True)
    typist = node.service.attach(container, tty=False, stdin=True, stdout=True, stderr=True)
    typist.send(STDIN, b"go\n")
    typist.close()
    assert node.ended(container, 120).exit_code == 0
    log = Path(node.service.container(container).config.log_path)
    assert speed(log, MEGABYTES) > 0, "it has checked every line"
    output, _ = read_all(slow)
    received = b"".join(output.values())
    assert 0 < len(received) < 2 * BEHIND, "who does not read is dropped and does not hold up the container"
