"""A pod's life without a kernel: what compute_pod_actions decides is done at once, on a clock of its own.

Each container follows a script: how its attempts end, one after the other, the last one for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pods_in_words import IP, NOW

from kubelet_py.pods import backoff
from kubelet_py.pods.actions import PodActions, compute_pod_actions
from kubelet_py.pods.model import ContainerView, PodView, SandboxView, Waiting
from kubelet_py.pods.status import Situation, generate


@dataclass(frozen=True, slots=True)
class Run:
    """How an attempt goes: after `seconds` it ends with `code`; None: it runs on."""

    code: int | None = None
    seconds: float = 1.0
    reason: str = ""


GOOD, BAD, STAYS = Run(0), Run(1), Run()
OOM = Run(137, reason="OOMKilled")


@dataclass(slots=True)
class Life:
    pod: dict[str, Any]
    script: Mapping[str, Sequence[Run]]
    now: float = NOW
    sandboxes: tuple[SandboxView, ...] = ()
    containers: tuple[ContainerView, ...] = ()  # newest first
    backoffs: dict[str, backoff.BackoffEntry] = field(default_factory=dict)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    began: list[tuple[str, float]] = field(default_factory=list)  # (container, seconds since the pod's start)
    over: bool = False

    @property
    def view(self) -> PodView:
        return PodView("u", self.sandboxes, self.containers)

    def look(self) -> PodActions:
        """One decision and its execution."""
        actions = compute_pod_actions(self.pod, self.view, self.now, backoffs=self.backoffs)
        kept = set(actions.remove_containers)
        self.containers = tuple(c for c in self.containers if c.id not in kept)
        if actions.create_sandbox:
            self.sandboxes = (SandboxView(f"s{actions.attempt}", actions.attempt, True, ips=(IP,)),)
        for held in actions.postponed:
            self.waiting[held.name] = Waiting("CrashLoopBackOff", f"back-off {held.wait}")
        for start in actions.starts:
            self._start(start.name, start.attempt, start.since)
        self.over = actions.finished
        return actions

    def _start(self, name: str, attempt: int, since: float | None) -> None:
        started = ContainerView(
            f"{name}-{attempt}", name, self.sandboxes[0].id, attempt, "RUNNING",
            created_at=self.now, started_at=self.now,
        )  # fmt: skip
        self.containers = (started, *self.containers)
        self.waiting.pop(name, None)
        self.began.append((name, self.now - NOW))
        if since is not None:
            self.backoffs[name] = backoff.after_try(self.backoffs.get(name), since, self.now)

    def _run(self, container: ContainerView) -> Run:
        runs = self.script[container.name]
        return runs[min(container.attempt, len(runs) - 1)]

    def _ends_at(self, container: ContainerView) -> float | None:
        run = self._run(container)
        return None if run.code is None else (container.started_at or 0.0) + run.seconds

    def live(self, seconds: float = 3600.0) -> None:
        """Look and let time pass until nothing more happens, or for so many seconds."""
        until = self.now + seconds
        while self.now < until and not self.over:
            actions = self.look()
            if self.over:
                break
            if actions.create_sandbox or actions.starts:
                continue
            running = [c for c in self.containers if c.state == "RUNNING"]
            ends = [end for c in running if (end := self._ends_at(c)) is not None]
            soonest = min([*ends, *(held.until for held in actions.postponed)], default=None)
            if soonest is None or soonest > until:
                break
            self.now = soonest
            self.containers = tuple(map(self._ended, self.containers))

    def _ended(self, container: ContainerView) -> ContainerView:
        end = self._ends_at(container)
        if container.state != "RUNNING" or end is None or end > self.now:
            return container
        run = self._run(container)
        return replace(container, state="EXITED", exit_code=run.code, reason=run.reason, finished_at=self.now)

    def stop_the_rest(self) -> None:
        """What the agent does once the pod is over: nothing of it runs any more."""
        self.containers = tuple(
            replace(c, state="EXITED", exit_code=143, finished_at=self.now) if c.state == "RUNNING" else c
            for c in self.containers
        )

    def status(self, **more: Any) -> dict[str, Any]:
        situation = Situation(self.now, started_at=NOW, waiting=self.waiting, finished=self.over, **more)
        return generate(self.pod, self.view, situation)
