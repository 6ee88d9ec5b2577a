"""PURE: which thresholds are met, since when, which node conditions follow, and which are to be acted on.

A condition stays for the transition period after it was last seen, so that a node at the edge does not flap;
a threshold that was acted on stays met until its minimum reclaim is free as well. Source: upstream's
eviction_manager.go (synchronize) and helpers.go, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kubelet_py.node.thresholds import ALLOCATABLE_MEMORY, MEMORY, Threshold


@dataclass(frozen=True, slots=True)
class Observation:
    """What is left of what there is, in bytes or pieces."""

    available: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What one look leaves for the next. Times are seconds of the clock."""

    acted_on: tuple[Threshold, ...] = ()
    first_met: Mapping[Threshold, float] = field(default_factory=dict)
    condition_seen: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`due`: the thresholds to act on, the most urgent first."""

    memory: Memory
    conditions: frozenset[str]
    due: tuple[Threshold, ...]


def met(
    thresholds: Sequence[Threshold], seen: Mapping[str, Observation], *, reclaimed: bool = False
) -> list[Threshold]:
    """Those of which less is left than they want; `reclaimed`: with their minimum reclaim on top."""
    answer = []
    for threshold in thresholds:
        observation = seen.get(threshold.signal)
        if observation is None:
            continue
        wanted = threshold.least.of(observation.capacity)
        if reclaimed and threshold.reclaim is not None:
            wanted += threshold.reclaim.of(observation.capacity)
        if wanted > observation.available:
            answer.append(threshold)
    return answer


def judge(
    memory: Memory,
    thresholds: Sequence[Threshold],
    seen: Mapping[str, Observation],
    now: float,
    transition: float,
) -> Judgement:
    """One look; see the module."""
    now_met = met(thresholds, seen)
    now_met += [t for t in met(memory.acted_on, seen, reclaimed=True) if t not in now_met]
    first_met = {t: memory.first_met.get(t, now) for t in now_met}
    condition_seen = {**memory.condition_seen, **{t.condition: now for t in now_met}}
    conditions = frozenset(kind for kind, at in condition_seen.items() if now - at < transition or at == now)
    due = tuple(sorted((t for t in now_met if now - first_met[t] >= t.grace), key=_urgency))
    kept = {kind: at for kind, at in condition_seen.items() if kind in conditions}
    return Judgement(Memory(due, first_met, kept), conditions, due)


def _urgency(threshold: Threshold) -> tuple[bool, bool]:
    """Memory first: it runs out fastest. Hard before soft."""
    return threshold.signal not in (MEMORY, ALLOCATABLE_MEMORY), not threshold.hard
