"""Eviction thresholds: from the texts of a KubeletConfiguration to values that can be compared.

A threshold says how little of something may be left: a quantity ("100Mi"), or a share of what there is
("10%"). A hard one acts at once, a soft one when it was met for its grace period. Source: upstream's
pkg/kubelet/eviction/helpers.go (ParseThresholdConfig) and api/types.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from kubeclient import quantity
from kubelet_py.config import Config, parse_duration
from kubelet_py.errors import ConfigError

MEMORY, ALLOCATABLE_MEMORY = "memory.available", "allocatableMemory.available"
NODE_FS, NODE_INODES = "nodefs.available", "nodefs.inodesFree"
IMAGE_FS, IMAGE_INODES = "imagefs.available", "imagefs.inodesFree"
CONTAINER_FS, CONTAINER_INODES = "containerfs.available", "containerfs.inodesFree"
PIDS = "pid.available"

CONDITION = {
    MEMORY: "MemoryPressure",
    ALLOCATABLE_MEMORY: "MemoryPressure",
    NODE_FS: "DiskPressure",
    NODE_INODES: "DiskPressure",
    IMAGE_FS: "DiskPressure",
    IMAGE_INODES: "DiskPressure",
    CONTAINER_FS: "DiskPressure",
    CONTAINER_INODES: "DiskPressure",
    PIDS: "PIDPressure",
}
# What a pod has too much of when a signal falls; the word of upstream's events.
RESOURCE = {
    MEMORY: "memory",
    ALLOCATABLE_MEMORY: "memory",
    NODE_FS: "ephemeral-storage",
    NODE_INODES: "inodes",
    IMAGE_FS: "ephemeral-storage",
    IMAGE_INODES: "inodes",
    CONTAINER_FS: "ephemeral-storage",
    CONTAINER_INODES: "inodes",
    PIDS: "pids",
}
COUNTED = (NODE_INODES, IMAGE_INODES, CONTAINER_INODES, PIDS)  # in pieces, not in bytes


@dataclass(frozen=True, slots=True)
class Amount:
    """So many bytes (or pieces), or a share of the capacity."""

    number: int = 0
    share: Fraction | None = None

    def of(self, capacity: int) -> int:
        return self.number if self.share is None else int(capacity * self.share)


@dataclass(frozen=True, slots=True)
class Threshold:
    """`grace` in seconds: 0 for a hard one. `reclaim`: what has to be free on top before it is over."""

    signal: str
    least: Amount
    grace: float = 0.0
    reclaim: Amount | None = None

    @property
    def hard(self) -> bool:
        return self.grace == 0

    @property
    def condition(self) -> str:
        return CONDITION[self.signal]

    @property
    def resource(self) -> str:
        return RESOURCE[self.signal]


def parse(config: Config) -> tuple[Threshold, ...]:
    """All thresholds of a configuration. Raises ConfigError with the key and the signal."""
    reclaim = {
        signal: _amount("evictionMinimumReclaim", signal, text, positive=False)
        for signal, text in _known("evictionMinimumReclaim", config.eviction_minimum_reclaim).items()
    }
    graces = {
        signal: _grace(signal, text)
        for signal, text in _known("evictionSoftGracePeriod", config.eviction_soft_grace_period).items()
    }
    found = []
    for signal, text in _known("evictionHard", config.eviction_hard).items():
        if text not in ("0%", "100%"):  # upstream's way to turn one off
            found.append(Threshold(signal, _amount("evictionHard", signal, text), 0.0, reclaim.get(signal)))
    for signal, text in _known("evictionSoft", config.eviction_soft).items():
        if signal not in graces:
            raise ConfigError(
                f"Could not use configuration: evictionSoft.{signal}: grace period must be specified for the "
                "soft eviction threshold (in evictionSoftGracePeriod)"
            )
        if text not in ("0%", "100%"):
            least = _amount("evictionSoft", signal, text)
            found.append(Threshold(signal, least, graces[signal], reclaim.get(signal)))
    return tuple(found)


def with_allocatable(thresholds: tuple[Threshold, ...]) -> tuple[Threshold, ...]:
    """The same, and the hard memory threshold also for what all pods together may have (kubepods)."""
    more = [
        Threshold(ALLOCATABLE_MEMORY, t.least, 0.0, t.reclaim)
        for t in thresholds
        if t.signal == MEMORY and t.hard
    ]
    return (*thresholds, *more)


def _known(key: str, table: Mapping[str, str]) -> Mapping[str, str]:
    unknown = sorted(set(table) - set(CONDITION))
    if unknown:
        raise ConfigError(
            f"Could not use configuration: {key}: unknown eviction signal {unknown[0]!r} "
            f"(known: {', '.join(sorted(CONDITION))})"
        )
    for signal, text in table.items():
        if not isinstance(text, str):
            raise ConfigError(f"Could not use configuration: {key}.{signal} must be of type str")
    return table


def _amount(key: str, signal: str, text: str, *, positive: bool = True) -> Amount:
    try:
        if text.endswith("%"):
            number = Fraction(text.removesuffix("%")) / 100
            amount = Amount(share=number)
        else:
            number = quantity.parse(text)
            amount = Amount(quantity.value(text))
    except ValueError as error:
        text = f"{key}.{signal} {text!r}: a quantity or a percentage is needed ({error})"
        raise ConfigError(f"Could not use configuration: {text}") from error
    if number < 0 or (positive and number == 0) or (amount.share is not None and number > 1):
        raise ConfigError(f"Could not use configuration: {key}.{signal} {text!r} must be positive")
    return amount


def _grace(signal: str, text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ConfigError(f"Could not use configuration: evictionSoftGracePeriod.{signal} must be positive")
    return seconds
