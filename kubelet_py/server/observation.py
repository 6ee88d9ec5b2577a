"""What can be read of a node's use of things: /stats and /metrics with all that is below it.

Each path measures no more than it shows: folders are walked for /stats/summary, /metrics and
/metrics/cadvisor only, and metrics-server, which asks most often, costs the reading of a few cgroup files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from kubelet_py.node.usage import NodeUsage
from kubelet_py.server import cadvisor, exposition, metrics, resource_metrics, stats
from kubelet_py.server.errors import HttpError
from kubelet_py.server.exposition import Family

JSON = "application/json"


class Observed(Protocol):
    """The agent, as far as it is read here."""

    def pods(self) -> list[dict[str, Any]]: ...

    def measure(self, *, disks: bool, network: bool, detail: bool) -> NodeUsage: ...

    def probe_results(self) -> Iterable[tuple[Mapping[str, str], int]]: ...


Answer = tuple[bytes, str]
"""Body and Content-Type."""


def stats_answer(node: Observed, parts: list[str], query: Mapping[str, list[str]]) -> Answer:
    """GET /stats/summary. Raises HttpError."""
    import orjson

    if parts != ["summary"]:
        raise HttpError(404, "404 page not found\n")
    brief = query.get("only_cpu_and_memory", [""])[-1] == "true"
    usage = node.measure(disks=not brief, network=not brief, detail=False)
    return orjson.dumps(stats.summary(usage)), JSON


def metrics_answer(node: Observed, parts: list[str]) -> Answer:
    """GET /metrics and its siblings. Raises HttpError."""
    families: Iterable[Family]
    match parts:
        case []:
            usage = node.measure(disks=True, network=False, detail=False)
            families = metrics.own_families(node.pods(), usage)
        case ["resource"]:
            families = resource_metrics.resource_families(
                node.measure(disks=False, network=False, detail=False)
            )
        case ["cadvisor"]:
            families = cadvisor.cadvisor_families(node.measure(disks=True, network=True, detail=True))
        case ["probes"]:
            families = metrics.probe_families(node.probe_results())
        case _:
            raise HttpError(404, "404 page not found\n")
    return exposition.text(families).encode(), exposition.CONTENT_TYPE
