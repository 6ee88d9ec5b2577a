"""/metrics/resource: the few numbers that metrics-server reads, each with the moment it was taken at.

Source: upstream's pkg/kubelet/metrics/collectors/resource_metrics.go.
"""

from __future__ import annotations

from kubelet_py.node.usage import ContainerUsage, NodeUsage, PodUsage
from kubelet_py.server.exposition import Family, Sample, family

NANO = 1e9


def resource_families(usage: NodeUsage) -> list[Family]:
    node, pods = usage.load, usage.pods
    containers = [(pod, container) for pod in pods for container in pod.containers]
    return [
        family(
            "node_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the node in core-seconds",
            [Sample(node.cpu_ns / NANO, at=node.at)],
        ),
        family(
            "node_memory_working_set_bytes",
            "gauge",
            "Current working set of the node in bytes",
            [Sample(node.working_set, at=node.at)],
        ),
        family(
            "node_swap_usage_bytes",
            "gauge",
            "Current swap usage of the node in bytes",
            [Sample(node.swap, at=node.at)],
        ),
        family(
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the container in core-seconds",
            [Sample(c.load.cpu_ns / NANO, _of(p, c), c.load.at) for p, c in containers],
        ),
        family(
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set of the container in bytes",
            [Sample(c.load.working_set, _of(p, c), c.load.at) for p, c in containers],
        ),
        family(
            "container_swap_usage_bytes",
            "gauge",
            "Current amount of the container swap usage in bytes",
            [Sample(c.load.swap, _of(p, c), c.load.at) for p, c in containers],
        ),
        family(
            "container_start_time_seconds",
            "gauge",
            "Start time of the container since unix epoch in seconds",
            [Sample(c.started_at, _of(p, c)) for p, c in containers],
        ),
        family(
            "pod_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed by the pod in core-seconds",
            [Sample(p.load.cpu_ns / NANO, _of(p), p.load.at) for p in pods],
        ),
        family(
            "pod_memory_working_set_bytes",
            "gauge",
            "Current working set of the pod in bytes",
            [Sample(p.load.working_set, _of(p), p.load.at) for p in pods],
        ),
        family(
            "pod_swap_usage_bytes",
            "gauge",
            "Current amount of the pod swap usage in bytes",
            [Sample(p.load.swap, _of(p), p.load.at) for p in pods],
        ),
        family(
            "resource_scrape_error",
            "gauge",
            "1 if there was an error while getting container metrics, 0 otherwise",
            [Sample(0)],
        ),
    ]


def _of(pod: PodUsage, container: ContainerUsage | None = None) -> dict[str, str]:
    place = {"pod": pod.name, "namespace": pod.namespace}
    return place if container is None else {"container": container.name, **place}
