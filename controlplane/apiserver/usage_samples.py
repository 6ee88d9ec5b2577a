"""What nodes and containers use, worked out from the counters that kubelets expose; metrics-server's rules.

Pure. A CPU counter says something only together with an earlier reading of the same container, so of every
node the last two scrapes are kept, and usage is what lies between them. A container that started after the
earlier scrape is measured from its start. Where a container of a pod has no pair yet, nothing is said of the
pod: half a pod would look idle. Source: kubernetes-sigs/metrics-server pkg/storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PodKey = tuple[str, str]  # namespace, name

_LINE = re.compile(r"(\w+)(?:\{([^}]*)\})? (\S+)(?: (\d+))?")
_LABEL = re.compile(r'(?<!\w)(\w+)="((?:[^"\\]|\\.)*)"')
_CPU, _MEMORY = "cpu_usage_seconds_total", "memory_working_set_bytes"
_START = "container_start_time_seconds"
_LEAST_SECONDS = 0.5  # a rate over less is noise


@dataclass(frozen=True, slots=True)
class Point:
    """One reading: when (epoch seconds), core-seconds used so far, bytes in use, and since when it counts."""

    at: float
    cpu: float
    memory: int
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one kubelet said at once."""

    node: Point | None = None
    pods: Mapping[PodKey, Mapping[str, Point]] = field(default_factory=dict)

    @property
    def at(self) -> float:
        return self.node.at if self.node is not None else 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Billionths of a core and bytes, over `window` seconds that ended at `at`."""

    at: float
    window: float
    cpu: int
    memory: int


def parse(text: str) -> Scrape:
    """Read a page of /metrics/resource; series that are not needed are passed over."""
    node: dict[str, tuple[float, float]] = {}
    found: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {}
    for line in text.splitlines():
        if not line.startswith(("node_", "container_")):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        name, labels, value, at = match.groups()
        reading = (float(value), int(at or 0) / 1000)
        if name.startswith("node_"):
            node[name] = reading
        elif name in (f"container_{_CPU}", f"container_{_MEMORY}", _START):
            given = dict(_LABEL.findall(labels or ""))
            key = (given.get("namespace", ""), given.get("pod", ""), given.get("container", ""))
            found.setdefault(key, {})[name] = reading
    pods: dict[PodKey, dict[str, Point]] = {}
    for (namespace, pod, container), readings in found.items():
        point = _point(readings, "container_")
        if point is not None:
            pods.setdefault((namespace, pod), {})[container] = point
    return Scrape(_point(node, "node_"), pods)


def _point(readings: Mapping[str, tuple[float, float]], prefix: str) -> Point | None:
    """None unless both numbers are there; a machine or container without any use was not measured."""
    cpu, memory = readings.get(prefix + _CPU), readings.get(prefix + _MEMORY)
    if cpu is None or memory is None or (prefix == "node_" and not (cpu[0] and memory[0])):
        return None
    return Point(cpu[1], cpu[0], int(memory[0]), readings.get(_START, (0.0, 0.0))[0])


def between(before: Point | None, last: Point) -> Usage | None:
    """Usage from one reading to the next; None where they do not make a pair.

    Without an earlier reading of this very container it began at nothing when it started.
    """
    if before is None or last.started > before.at:
        if not last.started:
            return None
        before = Point(last.started, 0.0, 0)
    window = last.at - before.at
    if window < _LEAST_SECONDS or last.cpu < before.cpu:
        return None
    return Usage(last.at, window, round((last.cpu - before.cpu) / window * 1e9), last.memory)


class Samples:
    """The last two scrapes of every node."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Scrape | None, Scrape]] = {}

    def add(self, node: str, scrape: Scrape) -> None:
        """A scrape too near to the one before takes its place."""
        before, last = self._known.get(node, (None, None))
        if last is not None and scrape.at - last.at < _LEAST_SECONDS:
            self._known[node] = (before, scrape)
        else:
            self._known[node] = (last, scrape)

    def drop(self, node: str) -> None:
        """Nothing is known of a node that does not answer any more."""
        self._known.pop(node, None)

    def nodes(self) -> Iterator[str]:
        yield from self._known

    def complete(self, node: str) -> bool:
        return self._known.get(node, (None,))[0] is not None

    def node(self, name: str) -> Usage | None:
        before, last = self._known.get(name, (None, None))
        if before is None or last is None or before.node is None or last.node is None:
            return None
        return between(before.node, last.node)

    def pod(self, namespace: str, name: str) -> dict[str, Usage] | None:
        """Usage by container; None unless it is known of each."""
        for before, last in self._known.values():
            points = last.pods.get((namespace, name))
            if points is None:
                continue
            earlier = before.pods.get((namespace, name), {}) if before is not None else {}
            usages = {c: between(earlier.get(c), point) for c, point in points.items()}
            known = {container: usage for container, usage in usages.items() if usage is not None}
            return known if len(known) == len(usages) else None
        return None
