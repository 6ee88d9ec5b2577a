"""How long a node waits for the successor of a daemon pod that ended.

Each end of a pod doubles the wait for the next, until the place (a DaemonSet on a node) has been quiet for
long enough. What is remembered of a place goes with its set and with its node, and by age: sets and nodes
come and go for as long as the control plane runs. Source: upstream's failedPodsBackoff (flowcontrol).
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY, LONGEST_DELAY = 1.0, 900.0
"""Seconds between the end of a node's pod and its successor."""
FORGOTTEN_AFTER = 2 * LONGEST_DELAY


@dataclass(frozen=True, slots=True)
class _Wait:
    delay: float
    since: float


class DaemonBackOff:
    """By uid of the DaemonSet and name of the node; times are epoch seconds."""

    def __init__(self) -> None:
        self._waits: dict[tuple[str, str], _Wait] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def left(self, uid: str, node: str, now: float) -> float:
        """Seconds that the pod which ended there still has to stay; 0 or less: its time has come."""
        found = self._waits.get((uid, node))
        if found is None or now - found.since > FORGOTTEN_AFTER:
            return 0.0
        return found.since + found.delay - now

    def ended(self, uid: str, node: str, now: float) -> None:
        """A pod there is replaced now: the next one waits twice as long."""
        self._forget_old(now)
        found = self._waits.get((uid, node))
        delay = min(LONGEST_DELAY, found.delay * 2) if found else FIRST_DELAY
        self._waits[uid, node] = _Wait(delay, now)

    def forget_set(self, uid: str) -> None:
        self._forget([place for place in [*self._waits] if place[0] == uid])

    def forget_node(self, name: str) -> None:
        self._forget([place for place in [*self._waits] if place[1] == name])

    def _forget_old(self, now: float) -> None:
        # Also what was noted after its set or node was deleted: by a sync that had begun before.
        old = [place for place, wait in [*self._waits.items()] if now - wait.since > FORGOTTEN_AFTER]
        self._forget(old)

    def _forget(self, places: list[tuple[str, str]]) -> None:
        for place in places:
            self._waits.pop(place, None)
