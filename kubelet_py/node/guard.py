"""The node's protection of itself, wired: eviction, graceful shutdown, and what both do to pods.

The decisions are in pressure.py, ranking.py and shutdown.py; this is where they meet the pods' records, the
runtime and the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kubelet_py.config import Config
from kubelet_py.node import disks, eviction, thresholds
from kubelet_py.node.logind import Inhibitor
from kubelet_py.node.pressure import Observation
from kubelet_py.node.ranking import Usage
from kubelet_py.node.shutdown import Shutdown, request_file
from kubelet_py.node.signals import Signals
from kubelet_py.node.status import Machine
from kubelet_py.node.thresholds import Threshold
from kubelet_py.paths import NodePaths
from kubelet_py.pods import preemption
from kubelet_py.pods.containers import Event
from kubelet_py.pods.model import Ending, Object, PodView, full_name
from kubelet_py.pods.record import PodRecord
from kubelet_py.volumes.disk_usage import Used
from runtime.cgroups import CgroupDriver
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

log = logging.getLogger(__name__)

# The longest wait for files that go behind everybody's back: memory has to be looked at as well.
CLEARING_SECONDS = 10.0

# Upstream's words for a pod's end by the node, in the events that tell of it.
_KINDS = {"Evicted": "Warning", "Preempting": "Warning", "Terminated": "Normal"}


class Guard:
    """Implements eviction.Node. `start` when everything else runs."""

    def __init__(
        self,
        *,
        config: Config,
        paths: NodePaths,
        machine: Machine,
        cgroups: CgroupDriver,
        runtime: RuntimeService,
        records: Callable[[], Sequence[PodRecord]],
        view: Callable[[str], PodView],
        wake: Callable[[str], None],
        volumes: Callable[[Object], Mapping[str, Used]],
        reclaim_images: Callable[[], None],
        remove_log: Callable[[str], None],
        event: Event,
        tell: Callable[[str, str, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`volumes` measures a pod's emptyDirs; `remove_log` removes a container's log. `changed` is called
        when the Node's conditions are others; `tell` tells of the node."""
        self._signals = Signals(paths, cgroups, machine)
        self._runtime, self._records, self._view, self._wake = runtime, records, view, wake
        self._volumes, self._reclaim_images, self._event = volumes, reclaim_images, event
        self._remove_log = remove_log
        self.tell, self.conditions_changed = tell, changed
        limits = thresholds.parse(config)
        if "pods" in config.enforce_node_allocatable:
            limits = thresholds.with_allocatable(limits)
        self.eviction = eviction.EvictionManager(
            self,
            limits,
            transition=config.eviction_pressure_transition_period,
            max_pod_grace=config.eviction_max_pod_grace_period,
            local_storage=config.local_storage_capacity_isolation,
        )
        self._request = request_file(paths)
        self.shutdown = Shutdown(
            config, request=self._request, records=records, end=self._end, changed=changed, tell=tell
        )

        # Below another root there may be several nodes, none of which the machine is.
        self._inhibitor = Inhibitor(self.shutdown) if paths.root == Path("/") else None

    def start(self) -> None:
        self._request.unlink(missing_ok=True)  # an earlier agent's
        if self._inhibitor is not None:
            self._inhibitor.start()
        self.tell("Normal", "Starting", "Starting kubelet.")
        self.eviction.start()

    def stop(self) -> None:
        self.eviction.stop()
        if self._inhibitor is not None:
            self._inhibitor.stop()

    def pressures(self) -> frozenset[str]:
        return self.eviction.pressures

    def shutting_down(self) -> bool:
        return self.shutdown.active

    def preempt(self, record: Any) -> None:
        """End a pod to make room for a critical one."""
        self.evict(record, preemption.PREEMPTED)

    # eviction.Node

    def observe(self) -> Mapping[str, Observation]:
        return self._signals.observe()

    def pods(self) -> Sequence[PodRecord]:
        return [record for record in self._records() if record.requests is not None]

    def usage(self, record: Any, resource: str, signal: str = "") -> Usage:
        return self._signals.usage(record.pod, self._view(record.uid), resource, signal)

    def volumes(self, record: Any) -> Mapping[str, int]:
        return {name: used.bytes for name, used in self._volumes(record.pod).items()}

    def reclaim(self, threshold: Threshold) -> None:
        """Dead containers of pods that are over, with their logs, then images that nobody uses: those of them
        that are on the disk. Whoever looks at it next is to see what that gave: else a pod would go for
        nothing."""
        parts = disks.reclaimable(self._signals.disks(), threshold.signal)
        for record in self._records():
            if disks.CONTAINERS in parts and record.cleaned:
                self._remove_dead(record)
        if disks.IMAGES in parts:
            self._reclaim_images()
        if not self._runtime.wait_for_removals(CLEARING_SECONDS):
            log.warning("Failed to clear dead containers away in time seconds=%g", CLEARING_SECONDS)

    def _remove_dead(self, record: PodRecord) -> None:
        for container in self._view(record.uid).containers:
            if container.state != "EXITED":
                continue
            try:
                self._remove_log(container.id)  # first: without its record nobody would find it again
                self._runtime.remove_container(container.id)
            except (RuntimeFailure, OSError) as error:
                log.warning("Failed to remove dead container id=%s error=%s", container.id[:12], error)

    def evict(self, record: Any, ending: Ending) -> None:
        kind = _KINDS[ending.reason]
        self._event(record.pod, "", kind, ending.reason, ending.message)
        self._end(record, ending)

    def _end(self, record: Any, ending: Ending) -> None:
        log.info("Ends pod=%s reason=%s message=%s", full_name(record.pod), ending.reason, ending.message)
        record.ending = ending
        record.nudge.set()
        self._wake(record.uid)
