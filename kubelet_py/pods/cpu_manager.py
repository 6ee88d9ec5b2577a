"""Processors of their own for containers of Guaranteed pods that ask for whole ones: the static CPU policy.

All other containers share the rest. A container is created with its processors (OCI's cpu.cpus: the
kernel's cpuset controller); when the rest changes, those that share it are given it within a second. What
is assigned is on disk before a container starts with it, so the next agent finds it again. Source: upstream's
pkg/kubelet/cm/cpumanager (policy_static.go, cpu_manager.go).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError, NodeError
from kubelet_py.instruments import Instrument, Number
from kubelet_py.node import allocatable, cpu_checkpoint, cpu_topology
from kubelet_py.node.cpu_checkpoint import CpuState
from kubelet_py.node.cpu_topology import CPUS, Topology
from kubelet_py.pods import resources
from kubelet_py.pods.model import (
    Object,
    PodView,
    Waiting,
    containers,
    full_name,
    init_containers,
    is_restartable,
    uid_of,
)
from runtime.errors import RuntimeFailure

log = logging.getLogger(__name__)

NONE, STATIC = "none", "static"
FILE = "cpu_manager_state"
NO_RESIZE = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy"
Update = Callable[[str, Mapping[str, Any]], None]


class SmtAlignmentError(NodeError):
    """With full-pcpus-only: whole cores do not come to what is asked for, or there are too few of them."""


class Views(Protocol):
    """What the runtime has (Pleg)."""

    def uids(self) -> set[str]: ...
    def view(self, uid: str) -> PodView: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """How many processors of its own a container wants. `ends`: it is over before the next one begins, as
    init containers are, but not sidecars."""

    name: str
    count: int
    ends: bool


def own_cpus(pod: Object, container: Object) -> int:
    """How many processors of its own a container gets; 0: it shares."""
    if resources.qos_class(pod) != resources.GUARANTEED:
        return 0
    if resources.pod_level(pod, "requests") or resources.pod_level(pod, "limits"):
        return 0  # the pod's processors are all its containers', as upstream has it
    milli = resources.requests_of(container)["cpu"]
    return 0 if milli % 1000 else milli // 1000


def reserved(config: Config, cpus: CPUS, topology: Topology) -> CPUS:
    """Those that are never anybody's own: reservedSystemCPUs, or as many as are reserved by number."""
    if config.reserved_system_cpus:
        found = allocatable.cpus_of(config.reserved_system_cpus)
        if not found <= cpus:
            text = f"this machine has {cpu_topology.write(cpus)}"
            raise ConfigError(
                f"Could not use configuration: reservedSystemCPUs {config.reserved_system_cpus!r}: {text}"
            )
        return found
    count = -(-allocatable.reserved(None, config).get("cpu", 0) // 1000)
    try:
        return cpu_topology.take(count, cpus, topology)
    except ValueError as error:
        raise ConfigError(f"Could not use configuration: reserved cpu: {error}") from error


class CpuManager:
    """`admit` and `release` of pods' workers, `cpus` of whoever creates a container, `look` of the agent's
    loop; thread-safe. `update` is the runtime's update_resources."""

    def __init__(
        self,
        config: Config,
        state: Path,
        update: Update,
        topology: Topology,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`state` is the folder of the file. Raises ConfigError where what is on disk was for another policy
        or another machine."""
        self._static = config.cpu_manager_policy == STATIC
        self._whole_cores = allocatable.whole_cores(config)
        self._period = config.cpu_manager_reconcile_period
        self._file, self._update, self._topology, self._clock = state / FILE, update, topology, clock
        self._lock = threading.Lock()
        self._shared: CPUS = frozenset(topology)
        self._assigned: dict[str, dict[str, CPUS]] = {}
        self._found: set[str] = set()  # pods of the last agent, which no worker of ours may know
        self._reserved: CPUS = frozenset()
        self._applied: dict[str, str] = {}  # container id → what it was given last
        self._due, self._changed = 0.0, False
        self._requests = Number(
            "kubelet_cpu_manager_pinning_requests_total",
            "The number of cpu core allocations which required pinning.",
        )
        self._errors = Number(
            "kubelet_cpu_manager_pinning_errors_total",
            "The number of cpu core allocations which required pinning failed.",
        )
        self._pool = Number(
            "kubelet_cpu_manager_shared_pool_size_millicores",
            "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.",
            kind="gauge",
        )
        self._exclusive = Number(
            "kubelet_cpu_manager_exclusive_cpu_allocation_count",
            "The total number of CPUs exclusively allocated to containers running on this node",
            kind="gauge",
        )
        found = cpu_checkpoint.read(self._file)
        if found is not None and found.policy != config.cpu_manager_policy:
            raise ConfigError(
                f'Could not use configuration: configured policy "{config.cpu_manager_policy}" differs from '
                f'state checkpoint policy "{found.policy}", please drain this node and delete the CPU '
                f'manager checkpoint file "{self._file}" before restarting Kubelet'
            )
        if self._static:
            self._reserved = reserved(config, frozenset(topology), topology)
            self._take_up(found)
            self._show()
        elif found is None:
            # So that the policy cannot change under pods that run.
            cpu_checkpoint.save(self._file, CpuState(NONE, frozenset()))
        counts = (self._requests, self._errors, self._pool, self._exclusive)
        self.instruments: tuple[Instrument, ...] = counts if self._static else ()

    def _take_up(self, found: CpuState | None) -> None:
        """What the last agent assigned; it has to make up this machine."""
        if found is None:
            self._save()
            return
        own = [cpus for of in found.assigned.values() for cpus in of.values()]
        known = found.shared.union(*own)
        if known != frozenset(self._topology) or not self._reserved <= found.shared:
            raise ConfigError(
                f'Could not use {self._file}: current set of available CPUs "'
                f'{cpu_topology.write(self._topology)}" (reserved "{cpu_topology.write(self._reserved)}") '
                f'doesn\'t match with CPUs in state "{cpu_topology.write(known)}" (drain the node, delete '
                "the file and start again)"
            )
        self._shared = found.shared
        self._assigned = {uid: dict(of) for uid, of in found.assigned.items()}
        self._found = set(found.assigned)

    # pods

    def admit(self, pod: Object) -> Waiting | None:
        """Give the pod's containers their processors, once; or say that there are not enough."""
        uid = uid_of(pod)
        if not self._static or uid in self._assigned:
            return None
        asked = [
            Asked(c["name"], own_cpus(pod, c), first and not is_restartable(c))
            for first, group in ((True, init_containers(pod)), (False, containers(pod)))
            for c in group
        ]
        if not any(each.count for each in asked):
            return None
        with self._lock:
            for _ in (each for each in asked if each.count):
                self._requests.add()
            try:
                found = self._choose(asked)
            except SmtAlignmentError as error:
                self._errors.add()
                return Waiting("SMTAlignmentError", str(error))
            except ValueError as error:
                self._errors.add()
                text = f"Allocate failed due to {error}, which is unexpected"
                return Waiting("UnexpectedAdmissionError", text)
            before = self._shared
            self._assigned[uid] = found
            self._shared -= frozenset().union(*found.values())
            try:
                self._save()
            except OSError as error:
                del self._assigned[uid]
                self._shared = before
                self._errors.add()
                text = f"Allocate failed due to {error}, which is unexpected"
                return Waiting("UnexpectedAdmissionError", text)
            self._show()
        shown = " ".join(f"{name}={cpu_topology.write(cpus)}" for name, cpus in found.items())
        log.info("Assigned processors pod=%s %s", full_name(pod), shown)
        return None

    def _choose(self, asked: Iterable[Asked]) -> dict[str, CPUS]:
        """Raises ValueError, SmtAlignmentError. What one that ends has is given to others before anything
        else is taken."""
        free, again = self._shared - self._kept(), frozenset[int]()
        found: dict[str, CPUS] = {}
        for each in asked:
            if not each.count:
                continue
            self._check_cores(each.count, len(free | again))
            chosen = cpu_topology.take(min(each.count, len(again)), again, self._topology)
            chosen |= cpu_topology.take(each.count - len(chosen), free, self._topology)
            free -= chosen
            found[each.name] = chosen
            again = again | chosen if each.ends else again - chosen
        return found

    def _kept(self) -> CPUS:
        """What nobody gets: the reserved ones; where cores are given whole, their siblings, too."""
        if not self._whole_cores:
            return self._reserved
        return cpu_topology.with_siblings(self._reserved, self._topology)

    def _check_cores(self, count: int, free: int) -> None:
        if not self._whole_cores:
            return
        threads = cpu_topology.threads_per_core(self._topology)
        if count % threads:
            text = f"requested {count} cpus not multiple cpus per core = {threads}"
            raise SmtAlignmentError(f"SMT Alignment Error: {text}")
        if count > free:
            text = f"available physical CPUs = {free}, requested CPUs = {count}, CPUs per core = {threads}"
            raise SmtAlignmentError(f"SMT Alignment Error: not enough free physical CPUs: {text}")

    def release(self, uid: str) -> None:
        """The pod's containers have ended: what they had is everybody's."""
        with self._lock:
            found = self._assigned.pop(uid, None)
            self._found.discard(uid)
            if found is None:
                return
            self._shared |= frozenset().union(*found.values())
            self._show()
            try:
                self._save()
            except OSError as error:
                # The next agent takes them back, as the pod is gone then.
                log.warning("Failed to save %s error=%s", self._file, error)

    def pins(self, pod: Object) -> bool:
        """Whether the pod's processors may be its own, which no resize can change."""
        return self._static and resources.qos_class(pod) == resources.GUARANTEED

    def cpus(self, uid: str, name: str) -> str:
        """What a container is created with, as the kernel writes it; "" where nobody is kept apart."""
        if not self._static:
            return ""
        with self._lock:
            own = self._assigned.get(uid, {}).get(name)
            return cpu_topology.write(own if own is not None else self._shared)

    # the loop

    def look(self, pods: Collection[str], runtime: Views, *, whole: bool) -> None:
        """Give those that share what there is now. `pods`: uids of those that are known; if these are all
        (`whole`), what others had, of which the runtime has nothing, is free."""
        now = self._clock()
        if not self._static or (not self._changed and now < self._due):
            return
        self._due, self._changed = now + self._period, False
        # One of ours is released by its worker; it may have been admitted since `pods` was made.
        for uid in self._found - {*pods, *runtime.uids()} if whole else ():
            self.release(uid)
        running: set[str] = set()
        for view in map(runtime.view, pods):
            for container in view.running():
                running.add(container.id)
                self._apply(view, container.id, container.name)
        for ended in self._applied.keys() - running:
            del self._applied[ended]

    def _apply(self, view: PodView, identifier: str, name: str) -> None:
        wanted = self.cpus(view.uid, name)
        if self._applied.get(identifier) == wanted:
            return
        try:
            self._update(identifier, {"cpu": {"cpus": wanted}})
        except (RuntimeFailure, OSError, RuntimeError) as error:  # RuntimeError: no room for a thread
            # It may just have ended; else the next look tries again.
            log.info("Failed to give processors container=%s cpus=%s error=%s", identifier, wanted, error)
            return
        self._applied[identifier] = wanted

    def _save(self) -> None:
        cpu_checkpoint.save(self._file, CpuState(STATIC, self._shared, self._assigned))

    def _show(self) -> None:
        self._changed = True
        self._pool.set(1000 * len(self._shared - self._reserved))
        self._exclusive.set(len(self._topology) - len(self._shared))
