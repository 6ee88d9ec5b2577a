"""/metrics: the kubelet's own numbers; names and help are upstream's (pkg/kubelet/metrics/metrics.go)."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kubelet_py.instruments import Instrument
from kubelet_py.node.status import KUBERNETES_VERSION
from kubelet_py.node.usage import Disk, NodeUsage
from kubelet_py.pods.durations import Distribution
from kubelet_py.pods.model import is_static
from kubelet_py.server.exposition import Family, Sample, family

STATES = ("running", "waiting", "terminated")
GO_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
VOLUMES: tuple[tuple[str, str, Callable[[Disk], int]], ...] = (
    ("available_bytes", "Number of available bytes in the volume", lambda disk: disk.available),
    ("capacity_bytes", "Capacity in bytes of the volume", lambda disk: disk.capacity),
    ("used_bytes", "Number of used bytes in the volume", lambda disk: disk.used),
    ("inodes", "Maximum number of inodes in the volume", lambda disk: disk.inodes),
    ("inodes_free", "Number of free inodes in the volume", lambda disk: disk.inodes_free),
    ("inodes_used", "Number of used inodes in the volume", lambda disk: disk.inodes_used),
)


def own_families(pods: Sequence[Mapping[str, Any]], usage: NodeUsage) -> Iterator[Family]:
    """`usage` with disks, for the volumes of claims."""
    yield family(
        "kubelet_node_name",
        "gauge",
        "The node's name. The count is always 1.",
        [Sample(1, {"node": usage.name})],
    )
    yield family(
        "kubelet_running_pods",
        "gauge",
        "Number of pods that have a running pod sandbox",
        [Sample(len(usage.pods))],
    )
    statuses = [
        status
        for pod in pods
        for key in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
        for status in pod.get("status", {}).get(key) or ()
    ]
    counts = {state: sum(1 for s in statuses if state in (s.get("state") or {})) for state in STATES}
    yield family(
        "kubelet_running_containers",
        "gauge",
        "Number of containers currently running",
        [Sample(count, {"container_state": _cri_name(state)}) for state, count in counts.items()],
    )
    yield from _pod_counts(pods)
    yield family(
        "kubelet_managed_ephemeral_containers",
        "gauge",
        "Current number of ephemeral containers in pods managed by this kubelet.",
        [Sample(sum(len(pod.get("spec", {}).get("ephemeralContainers") or ()) for pod in pods))],
    )
    yield from _volumes(usage)
    yield family(
        "kubernetes_build_info",
        "gauge",
        "A metric with a constant '1' value labeled by the version that is spoken",
        [Sample(1, build_info())],
    )
    yield from process_families(usage)


def build_info() -> dict[str, str]:
    """Labels of kubernetes_build_info, for the version that is spoken; what is Go's own is left out."""
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    return {
        "git_version": KUBERNETES_VERSION,
        "major": major,
        "minor": minor,
        "platform": f"linux/{GO_MACHINES.get(platform.machine(), platform.machine())}",
    }


def _pod_counts(pods: Sequence[Mapping[str, Any]]) -> Iterator[Family]:
    """Pods that are to run, those of them that are not over, and the static ones, which have a mirror pod."""
    active = [pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    for name, text, counted in (
        ("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run.", pods),
        ("kubelet_active_pods", "The number of pods the kubelet considers active.", active),
    ):
        static = sum(1 for pod in counted if is_static(pod))
        samples = [Sample(static, {"static": "true"}), Sample(len(counted) - static, {"static": ""})]
        yield family(name, "gauge", f"{text} static is true if the pod is not from the apiserver.", samples)
    yield family(
        "kubelet_mirror_pods",
        "gauge",
        "The number of mirror pods the kubelet will try to create (one per admitted static pod)",
        [Sample(sum(1 for pod in active if is_static(pod)))],
    )


def _cri_name(state: str) -> str:
    """CRI's words, which upstream counts by: what waits was not created yet."""
    return {"terminated": "exited", "waiting": "created"}.get(state, state)


def _volumes(usage: NodeUsage) -> Iterator[Family]:
    rows = [(pod.namespace, volume) for pod in usage.pods for volume in pod.volumes if volume.claim]
    for name, text, value in VOLUMES:
        # Two pods of one claim say the same: a series is told once.
        found = {(namespace, volume.claim): value(volume.disk) for namespace, volume in rows}
        samples = [
            Sample(number, {"namespace": namespace, "persistentvolumeclaim": claim})
            for (namespace, claim), number in found.items()
        ]
        yield family(f"kubelet_volume_stats_{name}", "gauge", text, samples)


def process_families(usage: NodeUsage) -> Iterator[Family]:
    """This process, under the names that every Prometheus client has."""
    since, load = usage.system["kubelet"]
    numbers: tuple[tuple[str, str, str, float], ...] = (
        (
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            load.cpu_ns / 1e9,
        ),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", load.rss),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", _virtual_bytes()),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", since),
        ("open_fds", "gauge", "Number of open file descriptors.", len(os.listdir("/proc/self/fd"))),
        (
            "max_fds",
            "gauge",
            "Maximum number of open file descriptors.",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        ),
    )
    for name, kind, text, value in numbers:
        yield family(f"process_{name}", kind, text, [Sample(value)])


def _virtual_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def instrument_families(instruments: Iterable[Instrument]) -> Iterator[Family]:
    """What the parts of the agent counted."""
    for each in instruments:
        samples: list[Sample] = []
        for labels, value in each.rows():
            samples += (
                _histogram(value, labels) if isinstance(value, Distribution) else [Sample(value, labels)]
            )
        yield family(each.name, each.kind, each.help, samples)


def certificate_families(expiries: Mapping[str, float], now: float) -> Iterator[Family]:
    """How long the agent's certificates are valid yet; `expiries`: of client and server, epoch seconds,
    infinite where there is none."""
    for side, at in expiries.items():
        yield family(
            f"kubelet_certificate_manager_{side}_ttl_seconds",
            "gauge",
            f"Gauge of the TTL (time-to-live) of the Kubelet's {side} certificate. The value is in seconds "
            "until certificate expiry (negative if already expired). Without one, the value will be +INF.",
            [Sample(at - now)],
        )


def volume_families(volumes: Mapping[tuple[str, str], int]) -> Iterator[Family]:
    """`volumes`: how many by plugin and state."""
    yield family(
        "volume_manager_total_volumes",
        "gauge",
        "Number of volumes in Volume Manager",
        [Sample(n, {"plugin_name": plugin, "state": state}) for (plugin, state), n in volumes.items()],
    )


def start_families(starts: Distribution, operations: Mapping[str, Distribution]) -> Iterator[Family]:
    """How long pods took to run, and how often, how long and how unsuccessfully the runtime was called."""
    yield family(
        "kubelet_pod_start_duration_seconds",
        "histogram",
        "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
        _histogram(starts, {}),
    )
    rows = [({"operation_type": name}, counted) for name, counted in operations.items() if counted.count]
    yield family(
        "kubelet_runtime_operations_total",
        "counter",
        "Cumulative number of runtime operations by operation type.",
        [Sample(counted.count, labels) for labels, counted in rows],
    )
    yield family(
        "kubelet_runtime_operations_errors_total",
        "counter",
        "Cumulative number of runtime operation errors by operation type.",
        [Sample(counted.failures, labels) for labels, counted in rows if counted.failures],
    )
    yield family(
        "kubelet_runtime_operations_duration_seconds",
        "histogram",
        "Duration in seconds of runtime operations. Broken down by operation type.",
        [sample for labels, counted in rows for sample in _histogram(counted, labels)],
    )


def _histogram(counted: Distribution, labels: Mapping[str, str]) -> Iterator[Sample]:
    """Each bucket counts what is not above its bound, so also all that is in those below it."""
    below = 0
    for bound, count in zip((*counted.bounds, None), counted.counts, strict=True):
        below += count
        limit = "+Inf" if bound is None else f"{bound:g}"
        yield Sample(below, {**labels, "le": limit}, suffix="_bucket")
    yield Sample(counted.total, labels, suffix="_sum")
    yield Sample(below, labels, suffix="_count")


def probe_families(
    probes: Iterable[tuple[Mapping[str, str], Mapping[str, int], Distribution]],
) -> Iterator[Family]:
    """/metrics/probes: how often each probe came to which result, and how long its successes took."""
    known = list(probes)
    yield family(
        "prober_probe_total",
        "counter",
        "Cumulative number of a liveness, readiness or startup probe for a container by result.",
        [
            Sample(count, {**labels, "result": result})
            for labels, results, _ in known
            for result, count in results.items()
        ],
    )
    samples: list[Sample] = []
    for labels, _, durations in known:
        if durations.count:
            samples += _histogram(durations, {k: v for k, v in labels.items() if k != "pod_uid"})
    yield family(
        "prober_probe_duration_seconds", "histogram", "Duration in seconds for a probe response.", samples
    )
