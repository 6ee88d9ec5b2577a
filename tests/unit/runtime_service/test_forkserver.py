"""How an order gets to the fork that waits for it."""

from __future__ import annotations

import os
import socket

import pytest

from runtime.forkserver import hand_over


@pytest.fixture
def narrowed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes whose processors were set."""
    pids: list[int] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, processors: pids.append(pid))
    return pids


def test_a_spare_is_kept_off_the_agents_processor_and_gets_the_order(narrowed: list[int]) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert hand_over((ours, 4711), b"order", [])
        assert theirs.recv(100) == b"order"
    assert narrowed == [4711]


def test_one_that_has_died_is_left_alone(narrowed: list[int]) -> None:
    """It was reaped by the kernel, so its number may be another's by now."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    with ours:
        assert not hand_over((ours, 4711), b"order", [])
    assert narrowed == []
    assert not hand_over(None, b"order", [])
