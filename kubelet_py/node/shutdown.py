"""Graceful node shutdown: the pods end by priority, each group within its own time, the critical ones last.

Begun by `kubelet-py node shutdown`, which signals the agent, or by logind (logind.py), before the machine or
the node's own processes go down. While it lasts the node is NotReady, says so, and refuses pods.
Source: upstream's pkg/kubelet/nodeshutdown/nodeshutdown_manager_linux.go.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from kubelet_py.instruments import Instrument, Number
from kubelet_py.paths import NodePaths
from kubelet_py.pods import resources
from kubelet_py.pods.model import Ending, Object

log = logging.getLogger(__name__)

REASON, MESSAGE = "Terminated", "Pod was terminated in response to imminent node shutdown."
LOOK_SECONDS = 0.1
DEFAULT_GRACE = 30
TERMINATING, TERMINATED = "terminating", "terminated"


@dataclass(frozen=True, slots=True)
class Group:
    """Pods of at least `priority` (and below the next group's) have `seconds` to end."""

    priority: int
    seconds: float


class Living(Protocol):
    """A pod's record, as far as its end here needs it."""

    pod: Object
    ending: Ending | None
    finished: bool
    released: bool

    @property
    def ends(self) -> bool: ...


def groups(config: Config) -> tuple[Group, ...]:
    """The groups in the order in which they end; () when graceful shutdown is off. Raises ConfigError."""
    whole, critical = config.shutdown_grace_period, config.shutdown_grace_period_critical_pods
    listed = config.shutdown_grace_period_by_pod_priority
    if listed and (whole or critical):
        raise ConfigError(
            "Could not use configuration: shutdownGracePeriodByPodPriority excludes shutdownGracePeriod and "
            "shutdownGracePeriodCriticalPods"
        )
    if critical > whole:
        raise ConfigError(
            f"Could not use configuration: shutdownGracePeriodCriticalPods ({critical:g} s) must not be "
            f"longer than shutdownGracePeriod ({whole:g} s)"
        )
    if 0 < whole < 1 or 0 < critical < 1:
        raise ConfigError("Could not use configuration: shutdownGracePeriod must be 0 or at least 1s")
    if listed:
        return tuple(sorted(map(_listed, listed), key=lambda group: group.priority))
    if not whole:
        return ()
    return (Group(0, whole - critical), Group(resources.SYSTEM_CRITICAL, critical))


def _listed(entry: object) -> Group:
    keys = {"priority", "shutdownGracePeriodSeconds"}
    if not isinstance(entry, dict) or set(entry) != keys or any(type(entry[key]) is not int for key in keys):
        raise ConfigError(
            "Could not use configuration: shutdownGracePeriodByPodPriority: each entry needs the integers "
            "priority and shutdownGracePeriodSeconds, and nothing else"
        )
    if entry["shutdownGracePeriodSeconds"] < 0:
        raise ConfigError(
            "Could not use configuration: shutdownGracePeriodByPodPriority.shutdownGracePeriodSeconds must "
            "not be negative"
        )
    return Group(entry["priority"], float(entry["shutdownGracePeriodSeconds"]))


def by_group(pods: Sequence[Living], order: Sequence[Group]) -> list[list[Living]]:
    """PURE: the pods of each group; one of a lower priority than all groups ends with the first."""
    answer: list[list[Living]] = [[] for _ in order]
    for record in pods:
        fitting = [i for i, group in enumerate(order) if group.priority <= resources.priority(record.pod)]
        answer[max(fitting, default=0)].append(record)
    return answer


class Shutdown:
    """`begin` starts it, once; `active` from then on. `wake` has a pod's worker look at it."""

    def __init__(
        self,
        config: Config,
        *,
        request: Path,
        records: Callable[[], Sequence[Living]],
        end: Callable[[Living, Ending], None],
        changed: Callable[[], None],
        tell: Callable[[str, str, str], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        """`request`: the file by which the command and the agent talk. `end` ends one pod. `changed` is
        called when the node's condition is another."""
        self._groups = groups(config)
        self._request, self._records, self._end = request, records, end
        self._changed, self._tell = changed, tell
        self._clock, self._wall, self._wait = clock, wall, wait
        self.active = False
        self.over = threading.Event()
        self._moments = [
            Number(
                f"kubelet_graceful_shutdown_{end}_time_seconds",
                "Last graceful shutdown start time since unix epoch in seconds",
                kind="gauge",
            )
            for end in ("start", "end")
        ]
        for moment in self._moments:
            moment.set(0)
        self.instruments: tuple[Instrument, ...] = tuple(self._moments)

    def begin(self) -> None:
        """End the pods on a thread of its own. Called for a signal, perhaps more than once. Without
        configured periods each pod has its own grace."""
        if self.active:
            return
        self.active = True
        self.over.clear()
        threading.Thread(target=self.run, name="node-shutdown", daemon=True).start()

    def cancel(self) -> None:
        """The machine stays up after all: the node is one that takes pods again. What has ended has ended."""
        if self.active:
            log.info("Heard that the shutdown was cancelled")
            self.active = False
            self._changed()

    @property
    def seconds(self) -> float:
        """What all groups take together; 0 when graceful shutdown is off."""
        return sum(group.seconds for group in self._groups)

    def run(self) -> None:
        self._moments[0].set(self._wall())
        self._write(TERMINATING)
        self._tell("Normal", "Shutdown", "Shutdown manager detected shutdown event")
        self._changed()
        order = self._groups or (Group(0, 0.0), Group(resources.SYSTEM_CRITICAL, 0.0))
        living = [r for r in self._records() if not r.released and not (r.finished and r.ending is None)]
        for group, pods in zip(order, by_group(living, order), strict=True):
            self._end_group(group, pods)
        log.info("Ended the pods for the node's shutdown pods=%d", len(living))
        self._write(TERMINATED)
        self._moments[1].set(self._wall())
        self.over.set()

    def _end_group(self, group: Group, pods: Sequence[Living]) -> None:
        deadline = self._clock()
        for record in pods:
            given = record.pod["spec"].get("terminationGracePeriodSeconds")
            own = float(DEFAULT_GRACE if given is None else given)
            grace = min(own, group.seconds) if self._groups else own
            deadline = max(deadline, self._clock() + (group.seconds if self._groups else own))
            self._end(record, Ending(REASON, MESSAGE, grace, disruption=MESSAGE))
        while any(not r.released for r in pods):
            if self._clock() >= deadline + LOOK_SECONDS * 20:
                log.warning("Pods outlived the time of their group priority=%d", group.priority)
                return
            self._wait(LOOK_SECONDS)

    def _write(self, state: str) -> None:
        self._request.parent.mkdir(parents=True, exist_ok=True)
        new = self._request.with_suffix(".new")
        new.write_text(json.dumps({"state": state}))
        new.rename(self._request)


def request_file(paths: NodePaths) -> Path:
    """Where the agent says how far the shutdown is."""
    return paths.run / "node-shutdown.json"


def state_of(request: Path) -> str:
    """What the file says: "", "terminating" or "terminated"."""
    try:
        return str(json.loads(request.read_text())["state"])
    except FileNotFoundError:
        return ""
