"""The cgroups above the pods': kubepods with the node's allocatable, one for Burstable pods and one for
BestEffort, with their weights.

Source: upstream's qos_container_manager_linux.go: Burstable has the shares of all its pods' requests
together, BestEffort always the least there is. Guaranteed pods lie beside the two.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.pods.admission import Totals
from kubelet_py.pods.resources import KUBEPODS, MIN_SHARES, shares
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError

log = logging.getLogger(__name__)


class QosCgroups:
    """`protect`: give kubepods and the Burstable pods memory.min as well (MemoryQoS, cgroup v2). A pod's own
    memory.min protects nothing unless those above it have as much."""

    def __init__(self, driver: CgroupDriver, root: str, *, protect: bool = False) -> None:
        self._driver = driver
        self._protect = protect
        self._pods = driver.names.group(root, KUBEPODS)
        self._burstable = driver.names.group(root, KUBEPODS, "burstable")
        self._best_effort = driver.names.group(root, KUBEPODS, "besteffort")
        self._written: dict[str, Mapping[str, Any]] = {}
        # Pods' cgroups, which their sandboxes make, count here as well: a metric is told once.
        self.durations = Histogram(
            "kubelet_cgroup_manager_duration_seconds",
            "Duration in seconds for cgroup manager operations. Broken down by method.",
            "operation_type",
        )
        self.instruments: tuple[Instrument, ...] = (self.durations,)

    def enforce(self, limits: Mapping[str, Any]) -> None:
        """Limit all pods together (OCI's linux.resources). Raises CgroupError."""
        self._driver.create(self._pods).update(limits)

    def make(self) -> None:
        """Create both. Raises CgroupError."""
        with self.durations.timed("create"):
            self._driver.create(self._best_effort).update({"cpu": {"shares": MIN_SHARES}})
            self._driver.create(self._burstable)
        self.set_requests(Totals())

    def set_requests(self, totals: Totals) -> None:
        """Weigh and protect by what the pods ask for; written only when it changes."""
        burstable: dict[str, Any] = {"cpu": {"shares": shares(totals.burstable_cpu)}}
        if self._protect:
            burstable["unified"] = {"memory.min": str(totals.burstable_memory)}
            self._write(self._pods, {"unified": {"memory.min": str(totals.memory)}})
        self._write(self._burstable, burstable)

    def _write(self, path: str, values: Mapping[str, Any]) -> None:
        if self._written.get(path) == values:
            return
        try:
            with self.durations.timed("update"):
                self._driver.open(path).update(values)
        except CgroupError as error:
            log.warning("Failed to weigh cgroup path=%s error=%s", path, error)
            return
        self._written[path] = values
