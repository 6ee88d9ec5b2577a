"""Pages that are only read: the pods, the settings in use, and what is used of the node.

Each path measures no more than it shows: folders are walked for /stats/summary, /metrics and
/metrics/cadvisor only, and metrics-server, which asks most often, costs the reading of a few cgroup files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from kubelet_py.instruments import Instrument
from kubelet_py.node.usage import NodeUsage
from kubelet_py.pods.durations import Distribution
from kubelet_py.server import cadvisor, exposition, metrics, resource_metrics, stats
from kubelet_py.server.errors import HttpError
from kubelet_py.server.exposition import Family

JSON = "application/json"
NOT_FOUND = "404 page not found\n"


class Observed(Protocol):
    """The agent, as far as it is read here."""

    def pods(self) -> list[dict[str, Any]]: ...

    def running_pods(self) -> list[dict[str, Any]]: ...

    def settings(self) -> dict[str, Any]: ...

    def starts(self) -> Distribution: ...

    def operations(self) -> Mapping[str, Distribution]: ...

    def timeline(self, namespace: str, pod: str) -> dict[str, Any]: ...

    def measure(self, *, disks: bool, network: bool, detail: bool) -> NodeUsage: ...

    def probe_results(self) -> Iterable[tuple[Mapping[str, str], Mapping[str, int], Distribution]]: ...

    def instruments(self) -> Iterable[Instrument]: ...

    def expiries(self) -> Mapping[str, float]: ...

    def volume_counts(self) -> Mapping[tuple[str, str], int]: ...


Answer = tuple[bytes, str]
"""Body and Content-Type."""
Query = Mapping[str, list[str]]


def _json(document: dict[str, Any]) -> Answer:
    import orjson

    return orjson.dumps(document), JSON


def _pod_list(pods: list[dict[str, Any]]) -> Answer:
    return _json({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})


def pods_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /pods: those that the node is to run, with their status. Raises HttpError, as all of these."""
    _only(parts)
    return _pod_list(node.pods())


def running_pods_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /runningpods/: those that the runtime runs."""
    _only(parts)
    return _pod_list(node.running_pods())


def configz_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /configz: the KubeletConfiguration in use."""
    _only(parts)
    return _json({"kubeletconfig": node.settings()})


def timeline_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /timeline/NAMESPACE/POD: the steps of the pod's start. Ours alone: upstream has no such page."""
    if len(parts) != 2:
        raise HttpError(404, NOT_FOUND)
    try:
        return _json(node.timeline(*parts))
    except LookupError as error:
        raise HttpError(404, f"{error.args[0]}\n") from error


def _only(parts: list[str]) -> None:
    if parts:
        raise HttpError(404, NOT_FOUND)


def stats_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /stats/summary."""
    if parts != ["summary"]:
        raise HttpError(404, NOT_FOUND)
    brief = query.get("only_cpu_and_memory", [""])[-1] == "true"
    usage = node.measure(disks=not brief, network=not brief, detail=False)
    return _json(stats.summary(usage))


def metrics_answer(node: Observed, parts: list[str], query: Query) -> Answer:
    """GET /metrics and its siblings."""
    families: Iterable[Family]
    match parts:
        case []:
            usage = node.measure(disks=True, network=False, detail=False)
            families = (
                *metrics.own_families(node.pods(), usage),
                *metrics.start_families(node.starts(), node.operations()),
                *metrics.volume_families(node.volume_counts()),
                *metrics.certificate_families(node.expiries(), time.time()),
                *metrics.instrument_families(node.instruments()),
            )
        case ["resource"]:
            families = resource_metrics.resource_families(
                node.measure(disks=False, network=False, detail=False)
            )
        case ["cadvisor"]:
            families = cadvisor.cadvisor_families(node.measure(disks=True, network=True, detail=True))
        case ["probes"]:
            families = metrics.probe_families(node.probe_results())
        case _:
            raise HttpError(404, NOT_FOUND)
    return _exposed(families)


def instruments_answer(instruments: Iterable[Instrument]) -> Answer:
    """GET /metrics/slis: what the server's own checks have counted."""
    return _exposed(metrics.instrument_families(instruments))


def _exposed(families: Iterable[Family]) -> Answer:
    return exposition.text(families).encode(), exposition.CONTENT_TYPE


PAGES: dict[str, Callable[[Observed, list[str], Query], Answer]] = {
    "pods": pods_answer,
    "runningpods": running_pods_answer,
    "configz": configz_answer,
    "timeline": timeline_answer,
    "stats": stats_answer,
    "metrics": metrics_answer,
}
