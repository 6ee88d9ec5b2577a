"""The gate at which a held container's process waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.gate import Gate
from runtime.held import remove_log


def others_end(gate: Gate) -> int:
    return os.open(gate.name.split()[0], os.O_RDONLY | os.O_CLOEXEC)


def test_a_gate_that_was_opened_lets_one_pass() -> None:
    gate = Gate()
    with open(others_end(gate), "rb", buffering=0) as other:
        gate.open()
        assert other.read(1) == b"1"
        gate.close()
        assert other.read(1) == b""


def test_a_gate_that_was_closed_lets_nobody_pass_though_it_was_opened() -> None:
    """By an agent that could not wait any longer for who should come."""
    gate = Gate()
    with open(others_end(gate), "rb", buffering=0) as other:
        gate.open()
        gate.close()
        assert other.read(1) == b""
    gate.close()


def test_a_gate_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Gate().close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("content", "stays"), [(b"", False), (b"of another\n", True)], ids=["empty", "used"])
def test_a_log_goes_if_nothing_was_written_to_it(tmp_path: Path, content: bytes, stays: bool) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(content)
    remove_log(str(path))
    assert path.exists() == stays


def test_a_log_that_is_not_there_is_gone(tmp_path: Path) -> None:
    remove_log(str(tmp_path / "none"))
    remove_log("")
