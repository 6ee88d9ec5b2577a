"""/metrics/cadvisor: containers and pods under cAdvisor's names, as dashboards and alert rules query them.

Source: cadvisor's metrics/prometheus.go for names and help, upstream's server.go for the labels. A pod's own
series have an empty container label (rules leave them out by `container!=""`), its network series hang on
the sandbox. Sizes that this kernel does not count are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from kubelet_py.node.usage import Interface, Load, NodeUsage
from kubelet_py.server.exposition import Family, Sample, family

NANO, MICRO = 1e9, 1e6


@dataclass(frozen=True, slots=True)
class _Series:
    """One cgroup with its labels."""

    labels: Mapping[str, str]
    load: Load
    started_at: float


Value = Callable[[Load], float | None]


def _usage(key: str) -> Value:
    return lambda load: _of(load, "cpu", "usage", key, scale=NANO)


def _throttling(key: str, scale: float = 1) -> Value:
    return lambda load: _of(load, "cpu", "throttling", key, scale=scale)


def _raw(*names: str) -> Value:
    """The first of these lines of memory.stat that is there: v1 calls sums of a tree total_…"""

    def value(load: Load) -> float | None:
        raw = load.detail.get("memory", {}).get("raw", {})
        return next((raw[name] for name in names if name in raw), None)

    return value


def _limit(name: str) -> Value:
    """Nothing for what is not limited, or not known."""

    def value(load: Load) -> float | None:
        found: int = getattr(load.limits, name, 0)
        return found if found > 0 else None

    return value


def _pressure(part: str, kind: str) -> Value:
    return lambda load: _of(load, part, "psi", kind, "total", scale=MICRO)


FAMILIES: tuple[tuple[str, str, str, Value], ...] = (
    ("cpu_user_seconds_total", "counter", "Cumulative user cpu time consumed", _usage("user")),
    ("cpu_system_seconds_total", "counter", "Cumulative system cpu time consumed", _usage("kernel")),
    ("cpu_cfs_periods_total", "counter", "Elapsed enforcement periods", _throttling("periods")),
    (
        "cpu_cfs_throttled_periods_total",
        "counter",
        "Throttled enforcement periods",
        _throttling("throttledPeriods"),
    ),
    (
        "cpu_cfs_throttled_seconds_total",
        "counter",
        "Total time duration the container has been throttled",
        _throttling("throttledTime", NANO),
    ),
    ("memory_usage_bytes", "gauge", "Current memory usage, whenever it was accessed", lambda o: o.memory),
    ("memory_working_set_bytes", "gauge", "Current working set", lambda o: o.working_set),
    ("memory_rss", "gauge", "Size of RSS", lambda o: o.rss),
    ("memory_cache", "gauge", "Page cache memory", _raw("total_cache", "file")),
    ("memory_mapped_file", "gauge", "Size of memory mapped files", _raw("total_mapped_file", "file_mapped")),
    ("memory_swap", "gauge", "Swap usage", lambda o: o.swap),
    ("memory_max_usage_bytes", "gauge", "Largest memory usage", lambda o: _of(o, "memory", "usage", "max")),
    ("memory_failcnt", "counter", "Memory limit hits", lambda o: _of(o, "memory", "usage", "failcnt")),
    ("oom_events_total", "counter", "Count of out of memory events", lambda o: o.oom_kills),
    ("threads", "gauge", "Number of threads running", lambda o: _of(o, "pids", "current")),
    ("threads_max", "gauge", "Most threads allowed", lambda o: _of(o, "pids", "limit")),
    ("spec_memory_limit_bytes", "gauge", "Memory limit, 0 for none", lambda o: o.limit or 0),
    ("spec_cpu_period", "gauge", "CPU period of the container", _limit("period")),
    ("spec_cpu_quota", "gauge", "CPU quota of the container", _limit("quota")),
    ("spec_cpu_shares", "gauge", "CPU share of the container", _limit("shares")),
    ("processes", "gauge", "Number of processes running inside the container", lambda o: o.tasks),
    *(
        (
            f"pressure_{what}_{word}_seconds_total",
            "counter",
            f"Total time duration {who} tasks in the container have waited due to {cause}",
            _pressure(part, kind),
        )
        for what, part, cause in (
            ("cpu", "cpu", "CPU congestion"),
            ("memory", "memory", "memory congestion"),
            ("io", "blkio", "IO congestion"),
        )
        for word, kind, who in (("waiting", "some", "some"), ("stalled", "full", "all"))
    ),
)
NETWORK: tuple[tuple[str, str, Callable[[Interface], int]], ...] = (
    ("receive_bytes", "bytes received", lambda i: i.rx_bytes),
    ("receive_packets", "packets received", lambda i: i.rx_packets),
    ("receive_packets_dropped", "packets dropped while receiving", lambda i: i.rx_dropped),
    ("receive_errors", "errors encountered while receiving", lambda i: i.rx_errors),
    ("transmit_bytes", "bytes transmitted", lambda i: i.tx_bytes),
    ("transmit_packets", "packets transmitted", lambda i: i.tx_packets),
    ("transmit_packets_dropped", "packets dropped while transmitting", lambda i: i.tx_dropped),
    ("transmit_errors", "errors encountered while transmitting", lambda i: i.tx_errors),
)


def cadvisor_families(usage: NodeUsage) -> Iterator[Family]:
    series = list(_series(usage))
    yield family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds",
        [Sample(s.load.cpu_ns / NANO, {"cpu": "total", **s.labels}, s.load.at) for s in series],
    )
    for name, kind, text, value in FAMILIES:
        values = [(s, value(s.load)) for s in series]
        samples = [Sample(found, s.labels, s.load.at) for s, found in values if found is not None]
        yield family(f"container_{name}", kind, text, samples)
    yield family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        [Sample(s.started_at, s.labels, s.load.at) for s in series],
    )
    yield family(
        "container_last_seen",
        "gauge",
        "Last time a container was seen by the exporter",
        [Sample(int(s.load.at), s.labels, s.load.at) for s in series],
    )
    yield family(
        "container_memory_failures_total",
        "counter",
        "Cumulative count of memory allocation failures",
        [
            Sample(count, {"failure_type": kind, "scope": "hierarchy", **s.labels}, s.load.at)
            for s in series
            for kind, count in (("pgfault", s.load.faults), ("pgmajfault", s.load.major_faults))
        ],
    )
    yield from _disks(usage)
    yield from _disk_traffic(series)
    yield from _network(usage)
    machine = usage.machine
    yield family("machine_cpu_cores", "gauge", "Number of logical CPU cores", [Sample(usage.cores, machine)])
    yield family(
        "machine_memory_bytes",
        "gauge",
        "Amount of memory installed on the machine",
        [Sample(usage.memory_total, machine)],
    )
    yield family(
        "machine_swap_bytes", "gauge", "Amount of swap memory available", [Sample(usage.swap_total, machine)]
    )


def _series(usage: NodeUsage) -> Iterator[_Series]:
    yield _Series(_labels("/"), usage.load, usage.booted_at)
    for pod in usage.pods:
        own = _labels(f"/{pod.cgroup}", pod=pod.name, namespace=pod.namespace)
        yield _Series(own, pod.load, pod.started_at)
        for container in pod.containers:
            labels = _labels(
                f"/{container.cgroup}",
                container=container.name,
                image=container.image,
                name=container.id,
                pod=pod.name,
                namespace=pod.namespace,
            )
            yield _Series(labels, container.load, container.started_at)


def _disks(usage: NodeUsage) -> Iterator[Family]:
    """The writable layers; the limit is the disk that they are on."""
    if usage.container_fs is None:
        return
    rows = [
        (
            container.rootfs.bytes,
            container.load.at,
            _labels(
                f"/{container.cgroup}",
                container=container.name,
                image=container.image,
                name=container.id,
                pod=pod.name,
                namespace=pod.namespace,
            ),
        )
        for pod in usage.pods
        for container in pod.containers
        if container.rootfs is not None
    ]
    yield family(
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem",
        [Sample(size, {"device": "", **labels}, at) for size, at, labels in rows],
    )
    yield family(
        "container_fs_limit_bytes",
        "gauge",
        "Number of bytes that can be consumed by the container on this filesystem",
        [Sample(usage.container_fs.capacity, {"device": "", **labels}, at) for _, at, labels in rows],
    )


TRAFFIC = (
    ("reads_bytes", "bytes read", "ioServiceBytesRecursive", "Read"),
    ("reads", "reads completed", "ioServicedRecursive", "Read"),
    ("writes_bytes", "bytes written", "ioServiceBytesRecursive", "Write"),
    ("writes", "writes completed", "ioServicedRecursive", "Write"),
)


def _disk_traffic(series: Iterable[_Series]) -> Iterator[Family]:
    """By device. Only where the cgroup has an I/O controller: on a v2 tree, or with blkio limits on v1."""
    for name, what, key, op in TRAFFIC:
        samples = [
            Sample(row["value"], {"device": _device(row["major"], row["minor"]), **s.labels}, s.load.at)
            for s in series
            for row in s.load.detail.get("blkio", {}).get(key, ())
            if row["op"] == op
        ]
        yield family(f"container_fs_{name}_total", "counter", f"Cumulative count of {what}", samples)


def _device(major: int, minor: int) -> str:
    """The device's file; its number where it is gone."""
    try:
        target = os.readlink(f"/sys/dev/block/{major}:{minor}")
    except OSError:
        return f"{major}:{minor}"
    return f"/dev/{os.path.basename(target)}"


def _network(usage: NodeUsage) -> Iterator[Family]:
    rows = [(usage.load.at, _labels("/"), interface) for interface in usage.interfaces]
    for pod in usage.pods:
        # Our pause has no image; but rules for upstream's, which has one, select by image!="".
        labels = _labels(
            f"/{pod.cgroup}", image="pause", name=pod.sandbox, pod=pod.name, namespace=pod.namespace
        )
        rows += [(pod.load.at, labels, interface) for interface in pod.interfaces]
    for name, what, value in NETWORK:
        yield family(
            f"container_network_{name}_total",
            "counter",
            f"Cumulative count of {what}",
            [Sample(value(i), {"interface": i.name, **labels}, at) for at, labels, i in rows],
        )


def _labels(
    identity: str,
    *,
    container: str = "",
    image: str = "",
    name: str = "",
    pod: str = "",
    namespace: str = "",
) -> dict[str, str]:
    return {
        "container": container,
        "id": identity,
        "image": image,
        "name": name,
        "namespace": namespace,
        "pod": pod,
    }


def _of(load: Load, *path: str, scale: float = 1) -> float | None:
    found = load.detail
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    assert isinstance(found, int)
    return found if scale == 1 else found / scale
