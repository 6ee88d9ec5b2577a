"""In-place resize, acted: agree on what is wanted, write it down, change the cgroups, say what came of it.

What the node agreed to is kept by allocations.py. What a container has is read from its cgroup, once after
its start and after each change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from kubelet_py.pods import resize, resources
from kubelet_py.pods.admission import Admitted, Gate
from kubelet_py.pods.allocations import Allocations
from kubelet_py.pods.cpu_manager import NO_RESIZE
from kubelet_py.pods.model import ContainerView, Object, PodView, full_name, is_static
from kubelet_py.pods.resize import DEFERRED, INFEASIBLE, Held, Progress, Table
from kubelet_py.pods.resources import Rules
from runtime.cgroups import CgroupDriver
from runtime.cgroups.files import CgroupLimits
from runtime.errors import CgroupError, RuntimeFailure

log = logging.getLogger(__name__)

REMEMBERED = 10_000


class Resized(Admitted, Protocol):
    """A pod's record, as far as its size is concerned."""

    resize: Progress
    restarting: frozenset[str]


class Resizer:
    """`update(container id, linux.resources)`: the runtime's. `pins(pod)`: whether its processors may be
    its own. Only the pod's worker calls these."""

    def __init__(
        self,
        cgroups: CgroupDriver,
        *,
        rules: Rules,
        gate: Gate,
        allocatable: Mapping[str, str],
        allocations: Allocations,
        update: Callable[[str, Mapping[str, Any]], None],
        pins: Callable[[Object], bool] = lambda pod: False,
    ) -> None:
        self._update, self._pins = update, pins
        self._cgroups, self._rules, self._gate = cgroups, rules, gate
        self._allocatable, self._allocations = allocatable, allocations
        self._protected = rules.throttling is not None
        self._settled: dict[str, Table] = {}
        self._limits: dict[str, CgroupLimits] = {}

    def agree(self, record: Resized) -> None:
        """Allocate what an admitted pod asks for, or later what it asks for instead, if the node can."""
        if is_static(record.pod):
            return
        wanted = resize.table(record.wanted)
        if not wanted or wanted == record.allocated:
            record.resize = replace(record.resize, held=None)
            return
        held = resize.infeasible(record.wanted, self._allocatable)
        if held is None and self._pins(record.pod):
            held = Held(INFEASIBLE, NO_RESIZE)
        if held is None:
            lacking = self._gate.resized(record, record.wanted)
            held = Held(DEFERRED, lacking.refusal.message) if lacking is not None else None
        if held is None:
            record.allocate(wanted)
            self._allocations.keep(record)
            record.resize = replace(record.resize, under_way=True)
            log.info("Agreed to resize pod=%s", full_name(record.pod))
        elif held != record.resize.held:
            log.info("Held resize back pod=%s reason=%s", full_name(record.pod), held.reason)
        record.resize = replace(record.resize, held=held)

    def act(self, record: Resized, view: PodView) -> frozenset[str]:
        """Bring the cgroups to what is allocated; the names of the containers that have to restart for it."""
        home = view.sandbox.cgroup if view.sandbox is not None else ""
        if not record.allocated or not home:
            return frozenset()
        specs = {c["name"]: c for c in resize.resizable(record.pod)}
        changes: list[tuple[ContainerView, dict[str, Any]]] = []
        again = {name for name in record.restarting if _ended(view, name)}
        for container in view.containers:
            spec = specs.get(container.name)
            if spec is None or container.state != "RUNNING":
                continue
            protecting = self._protected and record.resize.under_way
            if self._settled.get(container.id) is record.allocated and not protecting:
                continue  # it was looked at, and nobody has agreed to anything else since
            expected = resources.container_resources(spec, self._rules)
            actual = self._actual(home, container)
            changed = resize.differing(expected, actual)
            if changed and resize.restarts(spec, changed):
                # Nothing is restarted for a value that was read while it was still being set.
                self._limits.pop(container.id, None)
                actual = self._actual(home, container)
                changed = resize.differing(expected, actual)
            if not (actual.shares or actual.memory_known):
                # It has ended since the view was taken. If it was to start anew, that still holds.
                again |= record.restarting & {container.name}
                continue
            if changed and resize.restarts(spec, changed):
                again.add(container.name)
            elif changed or protecting:
                changes.append((container, resize.whole(expected, protected=self._protected)))
            else:
                self._settle(container.id, record.allocated)
        busy = bool(changes or again or record.resize.under_way)
        error = self._change(record.pod, home, changes, shrink=not again) if busy else ""
        record.restarting = frozenset(again)
        record.resize = replace(record.resize, under_way=bool(again or error), error=error)
        return record.restarting

    def _change(
        self, pod: Object, home: str, changes: list[tuple[ContainerView, dict[str, Any]]], *, shrink: bool
    ) -> str:
        """The pod's own limits where they grow, the containers', the pod's where they shrink; "" or an error.

        In this order a child never has more than its parent, which the kernel refuses for cpu on v1.
        """
        expected = resources.pod_resources(pod, self._rules)
        try:
            whole = self._cgroups.open(self._cgroups.names.group_of(home))
            first = resize.grows(expected, whole.limits())
            if first:
                whole.update(first)
            for container, values in changes:
                self._limits.pop(container.id, None)
                swap = {"swap": values["memory"]["limit"]}
                values = {**values, "memory": {**values["memory"], **swap}}
                self._update(container.id, values)
            if shrink:
                whole.update(resize.whole(expected, protected=self._protected))
        except RuntimeFailure as error:
            log.warning("Failed to resize pod=%s error=%s", full_name(pod), error)
            return str(error)
        for container, _ in changes:
            log.info("Resized container pod=%s container=%s", full_name(pod), container.name)
        return ""

    def shown(self, record: Resized, view: PodView) -> dict[str, Object]:
        """What the containers' statuses say of their resources, by name."""
        home = view.sandbox.cgroup if view.sandbox is not None else ""
        answer = {}
        for name, allocated in (record.allocated or {}).items():
            latest = view.latest(name)
            running = latest is not None and latest.state == "RUNNING"
            actual = self._actual(home, latest) if running and latest is not None and home else None
            answer[name] = resize.shown(allocated, actual)
        return answer

    def _actual(self, home: str, container: ContainerView) -> CgroupLimits:
        known = self._limits.get(container.id)
        if known is None:
            try:
                known = self._cgroups.open(f"{home}/{container.id}").limits()
            except CgroupError:
                return CgroupLimits()  # it has just ended
            if len(self._limits) > REMEMBERED:
                self._limits.clear()
            self._limits[container.id] = known
        return known

    def _settle(self, container_id: str, allocated: Table) -> None:
        if len(self._settled) > REMEMBERED:
            self._settled.clear()
        self._settled[container_id] = allocated


def _ended(view: PodView, name: str) -> bool:
    latest = view.latest(name)
    return latest is not None and latest.state == "EXITED"
