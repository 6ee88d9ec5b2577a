"""Which thresholds are met, when a condition starts and ends, and what is refused in a configuration."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from kubelet_py.config import Config, from_document
from kubelet_py.errors import ConfigError
from kubelet_py.node import thresholds
from kubelet_py.node.pressure import Memory, Observation, judge, met
from kubelet_py.node.thresholds import ALLOCATABLE_MEMORY, IMAGE_FS, MEMORY, NODE_FS, PIDS, Amount, Threshold

HARD = Threshold(MEMORY, Amount(100))
SOFT = Threshold(MEMORY, Amount(200), 30.0)
DISK = Threshold(NODE_FS, Amount(share=Fraction(1, 10)), reclaim=Amount(50))


def seen(available: int, signal: str = MEMORY, capacity: int = 1000) -> dict[str, Observation]:
    return {signal: Observation(available, capacity)}


@pytest.mark.parametrize(
    ("available", "wanted"), [(99, [HARD, SOFT]), (100, [SOFT]), (199, [SOFT]), (200, []), (1000, [])]
)
def test_a_threshold_is_met_below_it_and_not_at_it(available: int, wanted: list[Threshold]) -> None:
    assert met([HARD, SOFT], seen(available)) == wanted


def test_a_share_is_of_the_capacity_and_an_unknown_signal_meets_nothing() -> None:
    assert met([DISK], seen(99, NODE_FS)) == [DISK]
    assert met([DISK], seen(100, NODE_FS)) == []
    assert met([DISK], {}) == []


def test_a_soft_threshold_waits_for_its_grace_but_shows_at_once() -> None:
    first = judge(Memory(), [HARD, SOFT], seen(150), 0.0, 300.0)
    assert (first.conditions, first.due) == ({"MemoryPressure"}, ())
    second = judge(first.memory, [HARD, SOFT], seen(150), 29.0, 300.0)
    assert second.due == ()
    third = judge(second.memory, [HARD, SOFT], seen(150), 30.0, 300.0)
    assert third.due == (SOFT,)
    interrupted = judge(second.memory, [HARD, SOFT], seen(500), 29.5, 300.0)
    again = judge(interrupted.memory, [HARD, SOFT], seen(150), 31.0, 300.0)
    assert again.due == (), "the grace begins anew"


def test_a_condition_outlives_its_cause_by_the_transition_period() -> None:
    pressed = judge(Memory(), [HARD], seen(50), 0.0, 300.0)
    later = judge(pressed.memory, [HARD], seen(500), 299.0, 300.0)
    assert (later.conditions, later.due) == ({"MemoryPressure"}, ())
    over = judge(later.memory, [HARD], seen(500), 300.0, 300.0)
    assert over.conditions == frozenset()


def test_without_a_transition_period_a_condition_follows_at_once() -> None:
    pressed = judge(Memory(), [HARD], seen(50), 5.0, 0.0)
    assert pressed.conditions == {"MemoryPressure"}
    assert judge(pressed.memory, [HARD], seen(500), 6.0, 0.0).conditions == frozenset()


def test_a_threshold_stays_due_until_the_minimum_reclaim_is_free_too() -> None:
    pressed = judge(Memory(), [DISK], seen(90, NODE_FS), 0.0, 0.0)
    assert judge(pressed.memory, [DISK], seen(149, NODE_FS), 1.0, 0.0).due == (DISK,)
    freed = judge(pressed.memory, [DISK], seen(150, NODE_FS), 1.0, 0.0)
    assert freed.due == ()
    assert judge(freed.memory, [DISK], seen(120, NODE_FS), 2.0, 0.0).due == (), "it was over"


def test_memory_is_more_urgent_than_the_disk() -> None:
    judged = judge(Memory(), [DISK, HARD], {**seen(1), **seen(1, NODE_FS)}, 0.0, 0.0)
    assert judged.due == (HARD, DISK)
    assert judged.conditions == {"MemoryPressure", "DiskPressure"}


def test_the_defaults_are_upstreams() -> None:
    parsed = {t.signal: t for t in thresholds.parse(Config())}
    assert parsed[MEMORY] == Threshold(MEMORY, Amount(100 << 20))
    assert parsed[IMAGE_FS].least.share == Fraction(15, 100)
    assert set(parsed) == {MEMORY, NODE_FS, thresholds.NODE_INODES, IMAGE_FS, thresholds.IMAGE_INODES}
    assert [t.signal for t in thresholds.with_allocatable(thresholds.parse(Config()))][
        -1
    ] == ALLOCATABLE_MEMORY


def test_a_file_replaces_the_hard_thresholds_or_adds_to_them() -> None:
    own = {"evictionHard": {"pid.available": "10%", "memory.available": "0%"}}
    assert [t.signal for t in thresholds.parse(from_document(own))] == [PIDS]
    merged = thresholds.parse(from_document(own | {"mergeDefaultEvictionSettings": True}))
    assert {t.signal for t in merged} >= {PIDS, NODE_FS} and MEMORY not in {t.signal for t in merged}


def test_soft_thresholds_grace_periods_and_reclaims_are_read() -> None:
    document = {
        "evictionHard": {"memory.available": "100Mi"},
        "evictionSoft": {"memory.available": "15%"},
        "evictionSoftGracePeriod": {"memory.available": "1m30s"},
        "evictionMinimumReclaim": {"memory.available": "5%"},
    }
    reclaim = Amount(share=Fraction(5, 100))
    assert thresholds.parse(from_document(document)) == (
        Threshold(MEMORY, Amount(100 << 20), 0.0, reclaim),
        Threshold(MEMORY, Amount(share=Fraction(15, 100)), 90.0, reclaim),
    )


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"evictionHard": {"memory.free": "1Gi"}}, "evictionHard: unknown eviction signal 'memory.free'"),
        ({"evictionHard": {"memory.available": "much"}}, "evictionHard.memory.available 'much'"),
        ({"evictionHard": {"memory.available": "-1Gi"}}, "must be positive"),
        ({"evictionHard": {"memory.available": "0"}}, "must be positive"),
        ({"evictionHard": {"nodefs.available": "101%"}}, "must be positive"),
        ({"evictionHard": {"nodefs.available": 5}}, "evictionHard.nodefs.available must be of type str"),
        ({"evictionSoft": {"memory.available": "1Gi"}}, "grace period must be specified"),
        (
            {
                "evictionSoft": {"memory.available": "1Gi"},
                "evictionSoftGracePeriod": {"memory.available": "0s"},
            },
            "evictionSoftGracePeriod.memory.available must be positive",
        ),
        (
            {"evictionMinimumReclaim": {"disk": "1Gi"}},
            "evictionMinimumReclaim: unknown eviction signal 'disk'",
        ),
        ({"evictionMaxPodGracePeriod": -1}, "evictionMaxPodGracePeriod must not be negative"),
    ],
)
def test_senseless_thresholds_are_refused_by_name(document: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        from_document(document)
