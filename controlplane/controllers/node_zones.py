"""How fast pods may be sent away from silent nodes, when several are silent at once. Pure but for its memory.

One silent node is a broken machine; most of them silent at once are more likely a broken network or a control
plane that was cut off, and sending everybody away would make it worse. So a zone's nodes get their NoExecute
taint one at a time, slower (in small zones not at all) while most are silent; and when no node anywhere is
ready, nobody is sent away. Source: upstream's ComputeZoneState, handleDisruption, RateLimitedTimedQueue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from controlplane.controllers.base import Object
from controlplane.node_deadlines import Rates

State = Literal["normal", "partial", "full"]
REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"
FEW_SILENT = 2  # so many at most are no disruption of their zone, whatever share of it they are


def zone_of(node: Object) -> str:
    labels = node["metadata"].get("labels") or {}
    return f"{labels.get(REGION, '')}/{labels.get(ZONE, '')}"


def state(ready: Sequence[bool], unhealthy: float) -> State:
    """The zone's state, by whether each of its nodes is ready."""
    silent = len(ready) - sum(ready)
    if silent == len(ready):
        return "full"
    return "partial" if silent > FEW_SILENT and silent / len(ready) >= unhealthy else "normal"


def by_zone(nodes: Iterable[tuple[Object, bool]]) -> dict[str, list[bool]]:
    found: dict[str, list[bool]] = {}
    for node, ready in nodes:
        found.setdefault(zone_of(node), []).append(ready)
    return found


class Evictions:
    """Remembers when each zone's last node was tainted. `calm` seconds must pass after no node was ready."""

    def __init__(self, rates: Rates, calm: float, clock: Callable[[], float]) -> None:
        self._rates = rates
        self._calm = calm
        self._clock = clock
        self._last: dict[str, float] = {}
        self._dark = False
        self._calm_until = -math.inf

    def look(self, zones: Mapping[str, Sequence[bool]]) -> bool:
        """Whether any node anywhere is ready. The first that is again gives all others time to come back."""
        dark = all(state(ready, self._rates.unhealthy) == "full" for ready in zones.values())
        if self._dark and not dark:
            self._calm_until = self._clock() + self._calm
            self._last.clear()
        self._dark = dark
        return not dark

    def wait(self, zone: str, ready: Sequence[bool]) -> float:
        """Seconds until a node of the zone may be tainted: infinite while its state forbids it."""
        if not self._rate(ready):
            return math.inf
        last = self._last.get(zone)
        due = -math.inf if last is None else last + 1 / self._rate(ready)
        return max(0.0, max(self._calm_until, due) - self._clock())

    def took(self, zone: str) -> None:
        """A node of the zone was tainted."""
        self._last[zone] = self._clock()

    def _rate(self, ready: Sequence[bool]) -> float:
        if state(ready, self._rates.unhealthy) != "partial":
            return self._rates.normal
        return self._rates.secondary if len(ready) > self._rates.large else 0.0
