"""When the files of running pods are looked at again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.volume_keeper import VolumeKeeper

PERIOD = 60.0


class Tokens:
    def __init__(self) -> None:
        self.asked, self.wanted = 0, set[str]()

    def due(self) -> set[str]:
        self.asked += 1
        return self.wanted


def record(uid: str, volume: dict[str, Any]) -> PodRecord:
    metadata = {"name": uid, "namespace": "default", "uid": uid}
    return PodRecord({"metadata": metadata, "spec": {"containers": [], "volumes": [volume]}}, 0.0)


@pytest.fixture
def life() -> SimpleNamespace:
    """100 pods with a token and one without anything that changes; `look(now)` answers who was woken."""
    records = [record(f"u{number}", {"name": "v", "projected": {}}) for number in range(100)]
    records.append(record("plain", {"name": "v", "emptyDir": {}}))
    woken: list[str] = []
    tokens = Tokens()
    keeper = VolumeKeeper(
        None,
        None,
        tokens,
        records=lambda: records,
        wake=woken.append,
        period=PERIOD,  # type: ignore[arg-type]
    )

    def look(now: float) -> list[str]:
        woken.clear()
        keeper.look(now)
        return [*woken]

    return SimpleNamespace(look=look, tokens=tokens, records=records)


def test_every_pod_is_looked_at_once_a_period_and_not_all_at_once(life: SimpleNamespace) -> None:
    looks = [life.look(1000.0 + second) for second in range(121)]
    times = {uid: sum(look.count(uid) for look in looks[1:61]) for uid in (r.uid for r in life.records)}
    assert times.pop("plain") == 0 and set(times.values()) == {1}
    assert max(len(look) for look in looks) < 10


def test_a_pod_whose_token_is_due_is_looked_at_at_once(life: SimpleNamespace) -> None:
    life.look(1000.0)
    life.tokens.asked, life.tokens.wanted = 0, {"u7", "plain"}
    assert "u7" in life.look(1000.5)
    assert life.tokens.asked == 1, "asked once for all pods"
