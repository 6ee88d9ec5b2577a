"""How long each step of a pod's start took: what `kubelet-py inspect pod` and /timeline show.

A start that is slow is slow somewhere: the scheduler, the pull, a CNI plugin, a volume. Every part that does
a step measures it here, where it is done. Nothing is written into the pod (no annotation): the newest starts
are kept in memory, until their pod is gone; what an earlier agent started is not known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubelet_py.instruments import Histogram, Instrument
from kubelet_py.pods.durations import OPERATION_BOUNDS, START_BOUNDS, Distribution, Durations

MOST_STEPS = 200  # of one pod: a container that crashes for days must not fill the memory

SANDBOX, NETWORK, VOLUMES = "sandbox", "network", "volumes"
IMAGE, CREATE, START = "image", "create", "start"
STATUS = "status"
# Which steps are calls of the runtime, under CRI's names for them.
OPERATIONS = {SANDBOX: "run_podsandbox", CREATE: "create_container", START: "start_container"}


@dataclass(frozen=True, slots=True)
class Step:
    """`began` is an epoch second; `seconds` how long it took; `failed`: it will be tried again."""

    name: str
    container: str
    began: float
    seconds: float
    failed: bool = False


@dataclass(slots=True)
class Attempt:
    """A step under way. `void`: it was none after all, and nobody is told of it."""

    void: bool = False


class Timelines:
    """The steps of every pod, in the order in which they ended. Thread-safe.

    `clock` tells durations, `wall` the moments.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._steps: dict[str, list[Step]] = {}
        self._open: dict[tuple[str, str, str], tuple[float, float]] = {}
        self._operations = {name: Durations(OPERATION_BOUNDS) for name in OPERATIONS}
        self._starts = Durations(START_BOUNDS)
        self._since_creation = Histogram(
            "kubelet_pod_start_total_duration_seconds",
            "Duration in seconds to start a pod since creation, including time to pull images and run init "
            "containers, measured from pod creation timestamp to when all its containers are reported as "
            "started",
            bounds=START_BOUNDS,
        )
        self._sli = Histogram(
            "kubelet_pod_start_sli_duration_seconds",
            "Duration in seconds to start a pod, excluding time to pull images, measured from pod creation "
            "timestamp to when all its containers are reported as started",
            bounds=START_BOUNDS,
        )
        self.instruments: tuple[Instrument, ...] = (self._since_creation, self._sli)

    @contextmanager
    def step(
        self, uid: str, name: str, container: str = "", *, goes_on: bool = False
    ) -> Iterator[Attempt]:
        """Measure the body. With `goes_on` a body that raises is only interrupted, and its next attempt
        counts from the first: a pull goes on while the worker does other things."""
        key = (uid, name, container)
        now = (self._clock(), self._wall())
        with self._lock:
            began, moment = self._open.pop(key, now)
        failed, attempt = True, Attempt()
        try:
            yield attempt
            failed = False
        finally:
            if failed and goes_on:
                with self._lock:
                    self._open[key] = (began, moment)
            elif not attempt.void:
                self._add(uid, Step(name, container, moment, self._clock() - began, failed))

    def told(self, uid: str, seconds: float, seen_at: float, created_at: float | None = None) -> None:
        """The API has taken, in so many seconds, a status that says that the pod runs. The first counts, of a
        pod that was started here; `seen_at` is the epoch second at which the node heard of it, `created_at`
        the one at which the API did, whose own pod it is."""
        steps, now = self.of(uid), self._wall()
        names = {step.name for step in steps}
        if START not in names or STATUS in names:
            return
        self._add(uid, Step(STATUS, "", now - seconds, seconds))
        self._starts.observe(max(0.0, now - seen_at))
        if created_at is not None:
            pulls = sum(step.seconds for step in steps if step.name == IMAGE)
            self._since_creation.observe(max(0.0, now - created_at))
            self._sli.observe(max(0.0, now - created_at - pulls))

    def starts(self) -> Distribution:
        """How long pods took from being heard of to running."""
        return self._starts.read()

    def operations(self) -> dict[str, Distribution]:
        """How long calls of the runtime took, by CRI's name of the call."""
        return {OPERATIONS[name]: counted.read() for name, counted in self._operations.items()}

    def _add(self, uid: str, step: Step) -> None:
        if step.name in self._operations:
            self._operations[step.name].observe(step.seconds, failed=step.failed)
        with self._lock:
            steps = self._steps.setdefault(uid, [])
            steps.append(step)
            del steps[:-MOST_STEPS]

    def of(self, uid: str) -> tuple[Step, ...]:
        with self._lock:
            return tuple(self._steps.get(uid, ()))

    def forget(self, uid: str) -> None:
        with self._lock:
            self._steps.pop(uid, None)
            for key in [key for key in self._open if key[0] == uid]:
                del self._open[key]


def document(
    pod: Mapping[str, Any], created_at: float, seen_at: float, steps: Sequence[Step]
) -> dict[str, Any]:
    """A pod's timeline as JSON. `atMilliseconds` counts from when this node heard of the pod; the time
    before, since its creation (the API knows whole seconds only), is the scheduler's.

    `totalMilliseconds` is there once the API was told that the pod runs.
    """
    metadata = pod["metadata"]
    ends = [step.began + step.seconds for step in steps if step.name == STATUS]
    return {
        "pod": {key: metadata[key] for key in ("name", "namespace", "uid")},
        "createdToSeenMilliseconds": _ms(max(0.0, seen_at - created_at)),
        **({"totalMilliseconds": _ms(ends[0] - seen_at)} if ends else {}),
        "steps": [_row(step, seen_at) for step in sorted(steps, key=lambda step: step.began)],
    }


def _row(step: Step, seen_at: float) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step.name}
    if step.container:
        row["container"] = step.container
    row |= {"atMilliseconds": _ms(step.began - seen_at), "milliseconds": _ms(step.seconds)}
    return row | {"failed": True} if step.failed else row


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
