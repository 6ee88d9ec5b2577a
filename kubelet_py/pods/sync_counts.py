"""What the workers did to pods, counted: upstream's names, in its words (pkg/kubelet/metrics/metrics.go)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

from kubelet_py.instruments import Histogram, Instrument, Number
from kubelet_py.pods.model import Object, is_static
from kubelet_py.pods.record import PodRecord
from kubelet_py.pods.resources import COUNTED

CREATE, UPDATE, SYNC, KILL = "create", "update", "sync", "kill"


class SyncCounts:
    """Thread-safe, as its instruments are."""

    def __init__(self) -> None:
        self._worker = Histogram(
            "kubelet_pod_worker_duration_seconds",
            "Duration in seconds to sync a single pod. Broken down by operation type: "
            "create, update, sync or kill",
            "operation_type",
        )
        self._first = Histogram(
            "kubelet_pod_worker_start_duration_seconds",
            "Duration in seconds from kubelet seeing a pod to starting a worker.",
        )
        self._pods = Number("kubelet_started_pods_total", "Cumulative number of pods started")
        self._pod_errors = Number(
            "kubelet_started_pods_errors_total", "Cumulative number of errors when starting pods"
        )
        self._containers = Number(
            "kubelet_started_containers_total", "Cumulative number of containers started", "container_type"
        )
        self._container_errors = Number(
            "kubelet_started_containers_errors_total",
            "Cumulative number of errors when starting containers",
            "container_type",
            "code",
        )
        self._sizes = Histogram(
            "kubelet_containers_per_pod_count", "The number of containers per pod.", bounds=(1, 2, 4, 8, 16)
        )
        self._refusals = Number(
            "kubelet_admission_rejections_total",
            "Cumulative number pod admission rejections by the Kubelet.",
            "reason",
        )
        self.instruments: tuple[Instrument, ...] = (
            self._worker, self._first, self._pods, self._pod_errors, self._containers, self._container_errors,
            self._sizes, self._refusals,
        )  # fmt: skip

    @contextmanager
    def sync(self, record: PodRecord, now: float) -> Iterator[None]:
        """Around one look at a pod: its first, one after a change, one that ends it, or another."""
        operation = _operation(record)
        if record.synced is None:
            self._first.observe(max(0.0, now - record.seen_at))
            self._sizes.observe(len(record.pod["spec"]["containers"]))
        record.synced = record.pod
        with self._worker.timed(operation):
            yield

    def sandbox(self, *, failed: bool) -> None:
        """A sandbox was tried; as upstream, errors are among those that were started."""
        self._pods.add()
        if failed:
            self._pod_errors.add()

    def refused(self, reason: str) -> None:
        """The node did not let a pod in. Names that people gave to resources make no series of their own."""
        named = reason.startswith("OutOf") and reason.removeprefix("OutOf") not in ("pods", *COUNTED)
        self._refusals.add("OutOfExtendedResources" if named else reason)

    def container(self, pod: Object, name: str, code: str = "") -> None:
        """A container was tried; `code` is the reason of its failure."""
        kind = container_type(pod, name)
        self._containers.add(kind)
        if code:
            self._container_errors.add(kind, code)


def _operation(record: PodRecord) -> str:
    if record.ends:
        return KILL
    if record.synced is None:
        return CREATE
    return SYNC if record.synced is record.pod else UPDATE


def container_type(pod: Object, name: str) -> str:
    """container, init_container or ephemeral_container."""
    for key, kind in (("initContainers", "init_container"), ("ephemeralContainers", "ephemeral_container")):
        if any(container["name"] == name for container in pod["spec"].get(key) or ()):
            return kind
    return "container"


def working_pods(records: Sequence[PodRecord]) -> Number:
    """PURE. The pods that have a worker, by where they are in their life and whether anybody still wants
    them: one that was deleted by force, or whose manifest went, takes of the node until its worker is done.
    """
    found = Number(
        "kubelet_working_pods",
        "Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is "
        "desired, orphaned, or runtime only (also orphaned), and whether the pod is static. An orphaned pod "
        "has been removed from local configuration or force deleted in the API and consumes resources that "
        "are not otherwise visible.",
        *("lifecycle", "config", "static"),
        kind="gauge",
    )
    # What the runtime alone knows of is ended without a worker (leftovers.py), so none of it is counted.
    kinds = [*product(("desired", "orphan"), ("", "true")), ("runtime_only", "unknown")]
    for lifecycle, kind in product(("sync", "terminating", "terminated"), kinds):
        found.set(0, lifecycle, *kind)
    for record in records:
        config = "orphan" if record.gone else "desired"
        found.add(_lifecycle(record), config, "true" if is_static(record.pod) else "")
    return found


def _lifecycle(record: PodRecord) -> str:
    if record.cleaned:
        return "terminated"
    return "terminating" if record.ends or record.finished else "sync"
