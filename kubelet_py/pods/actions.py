"""PURE: what has to be done to a pod now. The same rules as upstream's computePodActions.

Given the pod's JSON, what the runtime holds (PodView), what the probes say and the clock, compute_pod_actions
answers with a list of verbs; sync_pod only carries them out. Nothing here asks, waits or changes anything.

The order of the rules:
1. no live sandbox: stop what is left of the old one, then make a new one, if any container still has to run;
2. init containers one after the other, each to success; restartable ones (sidecars) only have to be started,
   once: what comes after them goes on even while they are held back from a restart;
3. main containers by restartPolicy, each with its own back-off; one that was killed to come back does so
   whatever its exit code, which a program that heeds its stop signal makes 0;
4. nothing left to run: the pod is over, and its sandbox goes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kubelet_py.pods import backoff
from kubelet_py.pods.model import (
    NO_HEALTH,
    ContainerView,
    Health,
    Object,
    PodView,
    containers,
    ephemeral_containers,
    host_network,
    init_containers,
    is_restartable,
)

BACK = ", will be restarted"


@dataclass(frozen=True, slots=True)
class Start:
    """Start attempt number `attempt` of the container `name`."""

    name: str
    attempt: int
    since: float | None = None  # when its wait began, at an attempt's end; None: this is no restart
    init: bool = False


@dataclass(frozen=True, slots=True)
class Kill:
    """Stop one container; `message` is the Killing event's text. `returns`: it is to start anew then,
    whatever its exit code."""

    container_id: str
    name: str
    message: str
    returns: bool = False


@dataclass(frozen=True, slots=True)
class Postponed:
    """A restart that has to wait until the epoch second `until` (CrashLoopBackOff)."""

    name: str
    until: float
    wait: str  # "10s", "1m20s"


@dataclass(frozen=True, slots=True)
class PodActions:
    kill_pod: bool = False  # stop everything of the present sandbox
    create_sandbox: bool = False
    attempt: int = 0  # of the sandbox to create
    starts: tuple[Start, ...] = ()
    kills: tuple[Kill, ...] = ()
    postponed: tuple[Postponed, ...] = ()
    remove_containers: tuple[str, ...] = ()
    remove_sandboxes: tuple[str, ...] = ()
    finished: bool = False  # nothing will ever run again

    def describe(self) -> str:
        """One sentence for the log and for tests."""
        parts = []
        if self.kill_pod:
            parts.append("stop the sandbox")
        if self.create_sandbox:
            parts.append(f"create sandbox attempt {self.attempt}")
        parts += [f"kill {kill.name}" for kill in self.kills]
        parts += [f"start {start.name} attempt {start.attempt}" for start in self.starts]
        parts += [f"hold {wait.name} back {wait.wait}" for wait in self.postponed]
        if self.finished:
            parts.append("over")
        return ", ".join(parts) or "nothing to do"


def restart_policy(pod: Mapping[str, Any]) -> str:
    return str(pod["spec"].get("restartPolicy", "Always"))


def should_restart(pod: Mapping[str, Any], last: ContainerView | None) -> bool:
    """May a main container be started, given its last attempt? (upstream: ShouldContainerBeRestarted)"""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    if last is None or last.state in ("CREATED", "UNKNOWN"):
        return True
    if last.state == "RUNNING":
        return False
    policy = restart_policy(pod)
    return policy == "Always" or (policy == "OnFailure" and last.exit_code != 0)


def _may_run(pod: Mapping[str, Any], view: PodView, name: str, returning: Collection[str]) -> bool:
    """The same with what is known of the container besides: it was killed to come back, or the runtime has
    forgotten it (`down`, a lost disk) and only the status tells how far it was."""
    last = view.latest(name)
    if last is None and _ended_for_good(pod, name):
        return False
    return should_restart(pod, last) or _returns(last, returning)


def _ended_for_good(pod: Mapping[str, Any], name: str) -> bool:
    """Does the status say that the container ran, and by restartPolicy not again?"""
    policy = restart_policy(pod)
    for entry in (pod.get("status") or {}).get("containerStatuses") or ():
        if entry.get("name") == name:
            state = entry.get("state") or {}
            if policy == "OnFailure":
                return (state.get("terminated") or {}).get("exitCode") == 0
            return policy == "Never" and ("terminated" in state or "running" in state)
    return False


def _has_begun(pod: Mapping[str, Any], view: PodView) -> bool:
    """Has a container of the pod existed, be it by the status only?"""
    status = pod.get("status") or {}
    told = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    return bool(view.containers) or any(entry.get("containerID") for entry in told)


def spec_hash(container: Mapping[str, Any]) -> str:
    """Changes when a running container has to be replaced: its name or its image changed."""
    import hashlib

    text = f"{container['name']}\0{container.get('image', '')}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Decision:
    """Collects verbs while the rules are gone through."""

    pod: Object
    view: PodView
    now: float
    health: Mapping[str, Health]
    backoffs: Mapping[str, backoff.BackoffEntry]
    resized: frozenset[str] = frozenset()
    returning: Collection[str] = ()
    starts: list[Start] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    postponed: list[Postponed] = field(default_factory=list)
    kept: int = 0

    def current(self, name: str) -> ContainerView | None:
        """The newest attempt inside the present sandbox."""
        sandbox = self.view.sandbox
        for container in self.view.containers:
            if container.name == name and sandbox is not None and container.sandbox_id == sandbox.id:
                return container
        return None

    def start(self, name: str, *, init: bool = False) -> None:
        """Start it now, or say until when it is held back."""
        last = self.view.latest(name)
        entry = self.backoffs.get(name)
        since = self._wait_from(last, entry)
        if last is not None and last.state == "EXITED" and since is not None:
            until = backoff.waits_until(entry, since, self.now)
            if until is not None:
                self.postponed.append(Postponed(name, until, backoff.describe(entry)))
                return
        self.starts.append(Start(name, next_attempt(self.pod, last, name), since, init))

    def _wait_from(self, last: ContainerView | None, entry: backoff.BackoffEntry | None) -> float | None:
        """When the wait for the next start began; None where there is none, and the start is no restart.

        Upstream starts what it has killed to come back in the same sync, and the newest end that it knows of
        then is that of the attempt before (doBackOff). Only one that is held back by that waits from its own.
        """
        if last is None:
            return None
        since = last.finished_at if last.finished_at is not None else last.created_at
        if not self.returns(last):
            return since
        before = next((a for a in self.view.attempts(last.name)[1:] if a.finished_at is not None), None)
        if before is None or before.finished_at is None:
            return None
        held = backoff.waits_until(entry, before.finished_at, since) is not None
        return since if held else before.finished_at

    def check_running(self, container: Object, running: ContainerView) -> bool:
        """Keep a running container, or kill it (and say whether it is to come back)."""
        name, sidecar = container["name"], is_restartable(container)
        health = self.health.get(name, NO_HEALTH)
        returns, who, promise = True, "Init container" if sidecar else "Container", "" if sidecar else BACK
        if running.spec_hash and running.spec_hash != spec_hash(container):
            text = f"{who} {name} definition changed{promise}"
        elif health.failed:
            returns = sidecar or restart_policy(self.pod) != "Never"
            text = f"{who} {name} failed {health.failed} probe{promise if returns else ''}"
        elif name in self.resized:
            text = f"Container {name} resize requires restart"
        else:
            self.kept += 1
            return True
        self.kills.append(Kill(running.id, name, text, returns))
        return False

    def returns(self, ended: ContainerView | None) -> bool:
        return _returns(ended, self.returning)


def _returns(ended: ContainerView | None, returning: Collection[str]) -> bool:
    """Was this attempt killed to come back?"""
    return ended is not None and ended.state == "EXITED" and ended.id in returning


def first_start(pod: Object, view: PodView) -> Start | None:
    """The container that a new pod begins with; None for one that had containers before."""
    wanted = [*init_containers(pod), *containers(pod)]
    if view.containers or not wanted:
        return None
    name, init = wanted[0]["name"], bool(init_containers(pod))
    if not init and not _may_run(pod, view, name, ()):
        return None
    return Start(name, next_attempt(pod, None, name), None, init)


def next_attempt(pod: Mapping[str, Any], last: ContainerView | None, name: str) -> int:
    """The restart count of the next start; goes on from the API's count when the runtime forgot (reboot).

    A status without containerID was written since, and counts the start to come already (status.py).
    """
    if last is not None:
        return last.attempt + 1
    status = pod.get("status") or {}
    for key in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for entry in status.get(key) or ():
            if entry.get("name") == name:
                return int(entry.get("restartCount", 0)) + bool(entry.get("containerID"))
    return 0


def compute_pod_actions(
    pod: Object,
    view: PodView,
    now: float,
    *,
    health: Mapping[str, Health] | None = None,
    backoffs: Mapping[str, backoff.BackoffEntry] | None = None,
    resized: Collection[str] = (),
    returning: Collection[str] = (),
) -> PodActions:
    """Decide; see the module's text. `now`: epoch seconds. `resized`: containers that start anew to get other
    resources. `returning`: the ids of the attempts that were killed to come back."""
    remove = _superseded(view)
    sandbox = view.sandbox
    if sandbox is None or not sandbox.ready or (not sandbox.ips and not host_network(pod)):
        return replace(_without_sandbox(pod, view, returning), **remove)
    decision = _Decision(pod, view, now, health or {}, backoffs or {}, frozenset(resized), returning)
    initialized = any(decision.current(c["name"]) is not None for c in containers(pod))
    over = _init_containers(decision, initialized)
    if over:
        return PodActions(kill_pod=True, finished=True, **remove)
    if over is None:
        _main_containers(decision)
    _ephemeral_containers(decision)
    if over is None and _all_main_done(decision):
        return PodActions(kill_pod=True, finished=True, **remove)
    return PodActions(
        starts=tuple(decision.starts),
        kills=tuple(decision.kills),
        postponed=tuple(decision.postponed),
        **remove,
    )


def _without_sandbox(pod: Object, view: PodView, returning: Collection[str]) -> PodActions:
    """Rule 1."""
    old = view.sandbox
    # One that was only created has no process to be stopped, and never will: its sandbox is gone.
    if any(c.state == "RUNNING" for c in view.containers) or (old is not None and old.ready):
        return PodActions(kill_pod=True)
    wanted = any(_may_run(pod, view, c["name"], returning) for c in containers(pod))
    if pod["metadata"].get("deletionTimestamp") or not wanted:
        return PodActions(kill_pod=True, finished=True)
    if restart_policy(pod) == "Never" and _has_begun(pod, view):
        # Upstream: a pod that must not restart gets no second sandbox once a container of it has existed.
        return PodActions(kill_pod=True, finished=True)
    return PodActions(create_sandbox=True, attempt=old.attempt + 1 if old is not None else 0)


def _init_containers(decision: _Decision, initialized: bool) -> bool | None:
    """Rule 2. None: the main containers may go on; False: wait; True: the pod has failed.

    The last one that was ever begun tells how far the pod is. Those before it have had their turn: of them
    only the sidecars are kept going, and one that crashes does not hold up what comes after it.
    """
    wanted = init_containers(decision.pod)
    begun = [index for index, c in enumerate(wanted) if decision.current(c["name"]) is not None]
    turn = len(wanted) if initialized else begun[-1] if begun else 0
    for container in wanted[:turn]:
        if is_restartable(container):
            _sidecar(decision, container, decision.current(container["name"]))
    for container in wanted[turn:]:
        failed = _init_container(decision, container)
        if failed is not None:
            return failed
    return None


def _init_container(decision: _Decision, container: Object) -> bool | None:
    """Whose turn it is. None: it is done with, the next one's turn; False: wait; True: the pod has failed."""
    name = container["name"]
    current = decision.current(name)
    if is_restartable(container):
        return None if _sidecar(decision, container, current) else False
    if current is None:
        decision.start(name, init=True)
        return False
    if current.state == "RUNNING":
        return False  # upstream waits for its end, even when its image was changed meanwhile
    if current.state == "EXITED" and current.exit_code == 0:
        return None
    if current.state == "EXITED" and restart_policy(decision.pod) == "Never":
        return True
    if current.state != "EXITED":
        decision.kills.append(Kill(current.id, name, f"Init container {name} is in an unknown state"))
    decision.start(name, init=True)
    return False


def _sidecar(decision: _Decision, container: Object, current: ContainerView | None) -> bool:
    """Keep a restartable init container going; True once it has started."""
    name = container["name"]
    if current is not None and current.state == "RUNNING":
        # One that is killed is not started in the same breath: its exit wakes the worker again.
        kept = decision.check_running(container, current)
        decision.kept -= int(kept)  # a sidecar alone does not keep a pod alive
        return kept and decision.health.get(name, NO_HEALTH).started
    decision.start(name, init=True)
    return False


def _main_containers(decision: _Decision) -> None:
    """Rule 3."""
    for container in containers(decision.pod):
        name = container["name"]
        current = decision.current(name)
        if current is not None and current.state == "RUNNING":
            # A killed container is not started in the same breath: its exit wakes the worker again.
            if not decision.check_running(container, current):
                decision.kept += 1
        elif _may_run(decision.pod, decision.view, name, decision.returning) or _resizes(decision, current):
            if current is not None and current.state != "EXITED":
                decision.kills.append(
                    Kill(
                        current.id,
                        name,
                        f"Container {name} is in an unknown state, try killing it before restart",
                    )
                )
            decision.start(name)


def _resizes(decision: _Decision, current: ContainerView | None) -> bool:
    return current is not None and current.name in decision.resized


def _ephemeral_containers(decision: _Decision) -> None:
    for container in ephemeral_containers(decision.pod):
        if decision.view.latest(container["name"]) is None:
            decision.start(container["name"])


def _all_main_done(decision: _Decision) -> bool:
    """Rule 4: no main container runs, starts or is held back."""
    if decision.kept:
        return False
    main = {c["name"] for c in containers(decision.pod)}
    busy = {s.name for s in decision.starts} | {p.name for p in decision.postponed}
    return not main & busy


def _superseded(view: PodView) -> dict[str, Any]:
    """Dead attempts beyond the newest and the one before it, and old sandboxes that hold nothing any more."""
    seen: dict[str, int] = {}
    remove = []
    for container in view.containers:
        seen[container.name] = seen.get(container.name, 0) + 1
        if seen[container.name] > 2 and container.state == "EXITED":
            remove.append(container.id)
    used = {c.sandbox_id for c in view.containers if c.id not in remove}
    old = tuple(s.id for s in view.sandboxes[1:] if s.id not in used)
    return {"remove_containers": tuple(remove), "remove_sandboxes": old}
