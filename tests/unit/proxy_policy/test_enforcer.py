"""The thread that keeps NetworkPolicies outlives a defect in working them out."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from proxy.policy.enforcer import Enforcer
from proxy.policy.world import View, World


class Tripping(World):
    """The first look at it fails as no one expected; `seen` is set by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.tripped, self.seen = threading.Event(), threading.Event()

    def view(self) -> View:
        if not self.tripped.is_set():
            self.tripped.set()
            raise LookupError("a defect")
        self.seen.set()
        return super().view()


class NoTables:
    def __enter__(self) -> NoTables:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def tables(self) -> list[Any]:
        return []


def test_a_defect_is_told_and_the_next_change_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    world = Tripping()
    policies = Enforcer(world, "n", lambda: True, list, open_tables=NoTables)  # type: ignore[arg-type]
    policies.start()
    try:
        assert world.tripped.wait(60)
        while not world.seen.wait(0.01):  # what comes while the first is being told goes with it
            assert policies.is_alive()
            world.changed.set()
    finally:
        policies.stop()
        policies.join(60)
    assert not policies.is_alive()
    assert "Failed to work out network policies" in caplog.text and "a defect" in caplog.text
