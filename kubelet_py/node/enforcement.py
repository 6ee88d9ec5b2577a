"""Node allocatable in the kernel: the limits of kubepods, and of the cgroups of reservations.

What a host cannot give (memory.high on cgroup v1) is said in `problems`, which the Ready condition shows.
Source: upstream's enforceNodeAllocatableCgroups; the events' words are its.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from kubeclient import quantity
from kubelet_py.config import Config
from kubelet_py.node import allocatable
from kubelet_py.node.qos import QosCgroups
from kubelet_py.node.status import Machine
from kubelet_py.pods.resources import Rules
from runtime.cgroups import CgroupDriver
from runtime.errors import CgroupError

log = logging.getLogger(__name__)

MAKE_IT = "make it, on a host of cgroup v1 in each hierarchy and in the v2 tree beside them"


def rules_of(config: Config, machine: Machine, cgroups: CgroupDriver) -> Rules:
    """How requests and limits become cgroup values on this node."""
    throttled = config.feature_gates.get("MemoryQoS", False) and cgroups.name != "hybrid"
    return Rules(
        cfs_quota=config.cpu_cfs_quota,
        period_us=int(config.cpu_cfs_quota_period * 1_000_000),
        throttling=config.memory_throttling_factor if throttled else None,
        allocatable_memory=quantity.value(allocatable.allocatable(machine, config)["memory"]),
        huge_pages=tuple(size for size, total in machine.huge_pages if total),
    )


class Enforcement:
    """`enforce` once at start. `tell` tells of the node."""

    def __init__(
        self,
        cgroups: CgroupDriver,
        qos: QosCgroups,
        machine: Machine,
        config: Config,
        tell: Callable[[str, str, str], None],
    ) -> None:
        self._cgroups, self._qos, self._machine, self._config = cgroups, qos, machine, config
        self._tell = tell
        self.problems: list[str] = []
        if config.feature_gates.get("MemoryQoS") and cgroups.name == "hybrid":
            self.problems.append("MemoryQoS: cgroup v1 has no memory.high")

    def enforce(self) -> None:
        """A limit that cannot be set is told, and the node goes on without it."""
        wanted = self._config.enforce_node_allocatable
        try:
            if "pods" in wanted:
                self._qos.enforce(allocatable.pods_limits(self._machine, self._config))
            else:
                self._qos.enforce({"memory": {"limit": -1}})
        except CgroupError as error:
            self._failed("Failed to update Node Allocatable Limits", error)
        else:
            if "pods" in wanted:
                text = "Updated Node Allocatable limit across pods"
                self._tell("Normal", "NodeAllocatableEnforced", text)
        kube, system = self._config.kube_reserved_cgroup, self._config.system_reserved_cgroup
        cpus = self._config.reserved_system_cpus
        if "kube-reserved" in wanted:
            limits = allocatable.reserved_limits(dict(self._config.kube_reserved))
            self._reserve("Kube", kube, limits)
        if "system-reserved" in wanted:
            limits = allocatable.reserved_limits(dict(self._config.system_reserved), cpus)
            self._reserve("System", system, limits)

    def _reserve(self, whose: str, cgroup: str, limits: dict[str, object]) -> None:
        try:
            self._cgroups.open(cgroup.strip("/")).update(limits)
        except CgroupError as error:
            missing = error.errno == errno.ENOENT
            self._failed(f'Failed to enforce {whose} Reserved Cgroup Limits on "{cgroup}"', error, missing)
        else:
            text = f"Updated limits on {whose.lower()} reserved cgroup {cgroup}"
            self._tell("Normal", "NodeAllocatableEnforced", text)

    def _failed(self, what: str, error: CgroupError, missing: bool = False) -> None:
        log.warning("%s error=%s", what, error)
        hint = f" ({MAKE_IT})" if missing else ""
        self._tell("Warning", "FailedNodeAllocatableEnforcement", f"{what}: {error}{hint}")
