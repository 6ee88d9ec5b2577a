"""The cgroups above the pods': kubepods with the node's allocatable, one for Burstable pods and one for
BestEffort, with their weights.

Source: upstream's qos_container_manager_linux.go: Burstable has the shares of all its pods' requests
together, BestEffort always the least there is. Guaranteed pods lie beside the two.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from kubelet_py.pods.resources import KUBEPODS, MIN_SHARES, shares
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError

log = logging.getLogger(__name__)


class QosCgroups:
    def __init__(self, driver: CgroupDriver, root: str) -> None:
        self._driver = driver
        self._pods = driver.names.group(root, KUBEPODS)
        self._burstable = driver.names.group(root, KUBEPODS, "burstable")
        self._best_effort = driver.names.group(root, KUBEPODS, "besteffort")
        self._shares = 0

    def enforce(self, limits: Mapping[str, Any]) -> None:
        """Limit all pods together (OCI's linux.resources). Raises CgroupError."""
        self._driver.create(self._pods).update(limits)

    def make(self) -> None:
        """Create both. Raises CgroupError."""
        self._driver.create(self._best_effort).update({"cpu": {"shares": MIN_SHARES}})
        self._driver.create(self._burstable)
        self.set_burstable(0)

    def set_burstable(self, milli_cpu: int) -> None:
        """Give the Burstable pods the shares of `milli_cpu`; written only when they change."""
        wanted = shares(milli_cpu)
        if wanted == self._shares:
            return
        try:
            self._driver.open(self._burstable).update({"cpu": {"shares": wanted}})
        except CgroupError as error:
            log.warning("Failed to weigh cgroup path=%s error=%s", self._burstable, error)
            return
        self._shares = wanted
