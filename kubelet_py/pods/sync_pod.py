"""One look at one pod: decide (actions.py), then carry it out in numbered steps that only act.

`PodSyncer.sync` is what a worker runs. It ends with the status the API is to show and the seconds after which
to look again. Every step may be repeated: whatever fails is tried again with the next look. What takes long
(a pull, a graceful stop) goes on by itself and wakes the pod when it is done, so that a worker is always free
to see a deletion; only a postStart hook is waited for, and left when the pod ends.

    1  look        what the runtime has, what the probes say
    2  end         a pod that is deleted, refused, too old or over: termination.py
    3  stop        a dead sandbox's leftovers, containers that failed a probe or changed
    4  volumes     ready before anything can use them
    5  sandbox     cgroup, namespaces, network, our files
    6  containers  init containers first, each to its end
    7  status
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from functools import partial

from kubelet_py.errors import ContainerError, ImageError, ImagePulling, SandboxError, VolumesError
from kubelet_py.pods import backoff, hooks, timeline
from kubelet_py.pods.actions import (
    Kill,
    PodActions,
    Start,
    compute_pod_actions,
    first_start,
    restart_policy,
    spec_hash,
)
from kubelet_py.pods.admission import LATER
from kubelet_py.pods.held_start import HeldStart
from kubelet_py.pods.model import (
    ContainerView,
    Health,
    Object,
    PodView,
    Waiting,
    every_container,
    full_name,
    is_static,
)
from kubelet_py.pods.record import Parts, PodRecord
from kubelet_py.pods.status import Situation, generate
from kubelet_py.pods.stopping import Stopper
from kubelet_py.pods.sync_counts import SyncCounts
from kubelet_py.pods.termination import RETRY_SECONDS, Terminator, deadline, grace_of
from kubelet_py.volumes.plugin import Context
from runtime.sandbox_start import SandboxStart

log = logging.getLogger(__name__)

SECOND_LOOK = 0.0
ROOM_SECONDS = 0.5
NETWORK_SECONDS = 1.0
STEPS_PER_LOOK = 10
TOO_OLD = Waiting("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


class PodSyncer:
    """`record(uid)` finds a pod; `forget(uid)` is called when nothing of it is left."""

    def __init__(
        self,
        parts: Parts,
        record: Callable[[str], PodRecord | None],
        forget: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._p = parts
        self._record = record
        self._clock = clock
        self._counts = SyncCounts()
        self.instruments = self._counts.instruments
        self._stopper = Stopper(parts.runtime, parts.event, clock=clock)
        self._terminator = Terminator(parts, self._stopper, self._publish, forget, clock=clock)

    def sync(self, uid: str) -> float | None:
        """See the module. Answers the seconds after which to look again, or None."""
        record = self._record(uid)
        if record is None or record.deleted:
            return None
        with self._counts.sync(record, self._clock()):
            try:
                return self._sync(record)
            finally:
                self._let_go(record)

    def _sync(self, record: PodRecord) -> float | None:
        if record.ends:
            return self._terminator.end(record)
        phase = (record.pod.get("status") or {}).get("phase")
        if phase in ("Succeeded", "Failed") and not is_static(record.pod):
            record.finished = True
        if not record.finished and not self._judge(record):
            return ROOM_SECONDS
        if record.finished:
            return self._terminator.finish(record)
        self._keep_volumes(record)
        for _ in range(STEPS_PER_LOOK):
            again, after = self._step(record)
            if not again:
                return self._until_deadline(record, after)
            if record.ends:
                return 0
        return SECOND_LOOK

    def _judge(self, record: PodRecord) -> bool:
        """End a pod that may not run here, or not any longer. False: room is being made for it."""
        refused = self._p.gate.admit(record) if record.ending is None else None
        if refused is LATER:
            return False
        if refused is None and record.ending is None:
            refused = self._p.cpus.admit(record.pod)
        if record.ending is not None:
            record.failure = Waiting(record.ending.reason, record.ending.message)
        elif refused is not None:
            self._p.event(record.pod, "", "Warning", refused.reason, refused.message)
            record.failure = Waiting(refused.reason, f"Pod was rejected: {refused.message}")
            self._counts.refused(refused.reason)
            log.info("Refused pod=%s reason=%s", full_name(record.pod), refused.reason)
        else:
            due = deadline(record)
            if due is not None and due <= self._clock():
                self._p.event(record.pod, "", "Normal", TOO_OLD.reason, TOO_OLD.message)
                record.failure = TOO_OLD
        record.finished = record.failure is not None
        if not record.finished:
            self._p.resizer.agree(record)
        return True

    def _until_deadline(self, record: PodRecord, after: float | None) -> float | None:
        """`after`, or sooner where activeDeadlineSeconds is over before."""
        due = deadline(record)
        if due is None or record.finished:
            return after
        left = max(0.01, due - self._clock())
        return left if after is None else min(after, left)

    def _step(self, record: PodRecord) -> tuple[bool, float | None]:
        """One decision and its execution: (whether to decide once more at once, seconds to the next look)."""
        pod, now = record.pod, self._clock()
        view = self._p.pleg.view(record.uid)
        self._p.prober.update(pod, view)
        health = self._p.prober.health(view)
        resized = self._p.resizer.act(record, view)
        record.returning &= {c.id for c in view.containers}
        _forgive(record, view)
        actions = compute_pod_actions(
            pod, view, now,
            health=health, backoffs=record.backoffs, resized=resized, returning=record.returning,
        )  # fmt: skip
        log.debug("Decided pod=%s actions=%s", full_name(pod), actions.describe())
        if actions.kills or not actions.starts:
            self._let_go(record)
        self._remove_old(actions)
        if actions.finished:
            record.finished = True
            return False, self._terminator.finish(record)
        if actions.kill_pod:
            if restart_policy(pod) != "Never":
                record.returning |= {c.id for c in view.containers if c.state == "RUNNING"}
            if not self._terminator.quiet(record, view):
                self._publish(record, view, health)
                return False, RETRY_SECONDS
            self._p.sandboxes.stop(view)
            return True, None
        for kill in actions.kills:
            self._kill(record, view, kill)
        if actions.create_sandbox:
            return self._create_sandbox(record, view, actions, health)
        if actions.starts and record.volumes is None and not self._set_up_volumes(record, view):
            self._publish(record, view, health)
            return False, self._failed(record)
        after = self._postpone(record, actions, now)
        started, retry = self._start_all(record, actions.starts, view)
        fresh = self._p.pleg.view(record.uid)
        if started:
            self._p.prober.update(pod, fresh)
        self._publish(record, fresh, self._p.prober.health(fresh))
        waits = [wait for wait in (after, retry) if wait is not None]
        return False, min(waits) if waits else None

    # 4, 5

    def _set_up_volumes(self, record: PodRecord, view: PodView) -> bool:
        try:
            with self._p.timelines.step(record.uid, timeline.VOLUMES):
                record.volumes = self._p.volumes.set_up(self._context(record.pod, view.ips))
        except VolumesError as error:
            self._tell_of_volumes(record.pod, error)
            log.info("Failed to set up volumes pod=%s error=%s", full_name(record.pod), error)
            return False
        return True

    def _tell_of_volumes(self, pod: Object, error: VolumesError) -> None:
        for text in error.texts:
            self._p.event(pod, "", "Warning", "FailedMount", text)

    def _context(self, pod: Object, ips: tuple[str, ...]) -> Context:
        return Context(
            pod=pod,
            lookup=self._p.objects.lookup(pod),
            token=self._p.tokens.token,
            facts=self._p.starter.field_facts(pod, ips),
            allocatable=self._p.node.allocatable,
            node=self._p.node_object(),
        )

    def _keep_volumes(self, record: PodRecord) -> None:
        """Bring what has changed into the files of a running pod: objects, tokens, its own labels."""
        metadata = record.pod["metadata"]
        shown = (metadata.get("labels"), metadata.get("annotations"))
        changed = record.stale or (record.shown is not None and record.shown != shown)
        record.stale, record.shown = False, shown
        if not changed:
            return
        try:
            self._p.volumes.refresh(self._context(record.pod, self._p.pleg.view(record.uid).ips))
        except VolumesError as error:
            self._tell_of_volumes(record.pod, error)
            log.info("Failed to refresh volumes pod=%s error=%s", full_name(record.pod), error)
        except OSError as error:
            log.info("Failed to refresh volumes pod=%s error=%s", full_name(record.pod), error)

    def _create_sandbox(
        self, record: PodRecord, view: PodView, actions: PodActions, health: dict[str, Health]
    ) -> tuple[bool, float | None]:
        self._publish(record, view, health, soon=True)
        if record.volumes is None and not self._set_up_volumes(record, view):
            return False, self._failed(record)
        if view.sandbox is not None:
            message = "Pod sandbox changed, it will be killed and re-created."
            self._p.event(record.pod, "", "Normal", "SandboxChanged", message)
        began = time.monotonic()
        # One that lost its shim has no process any more, but its address and its host ports.
        self._p.sandboxes.stop(view)
        try:
            hold = partial(self._hold, record, view)
            record.held = self._p.sandboxes.create(record.pod, actions.attempt, hold)
        except SandboxError as error:
            self._counts.sandbox(failed=True)
            reason = "NetworkNotReady" if "network is not ready" in str(error) else "FailedCreatePodSandBox"
            text = str(error) if reason == "NetworkNotReady" else f"Failed to create pod sandbox: {error}"
            self._p.event(record.pod, "", "Warning", reason, text)
            log.warning("Failed to create sandbox pod=%s error=%s", full_name(record.pod), error)
            # The network comes by itself, and soon, as upstream has it (backOffOnTransientErrorPeriod).
            return False, NETWORK_SECONDS if reason == "NetworkNotReady" else self._failed(record)
        self._counts.sandbox(failed=False)
        record.failures = 0
        ms = (time.monotonic() - began) * 1000
        log.info("Created sandbox pod=%s attempt=%d ms=%d", full_name(record.pod), actions.attempt, ms)
        return True, None

    def _hold(self, record: PodRecord, view: PodView, sandbox: SandboxStart) -> HeldStart | None:
        """The pod's first container, as far as it gets while the pod is being made."""
        start = first_start(record.pod, view)
        if start is None:
            return None
        container = next(c for c in every_container(record.pod) if c["name"] == start.name)
        return self._p.starter.hold(record.pod, container, start, sandbox, record.volumes or {})

    def _let_go(self, record: PodRecord, but: str = "") -> None:
        """Of a container that was held and never started, unless it is `but`: the pod ends, or its image has
        gone. Its shim has no ear for anything else before."""
        held = record.held
        if held is not None and held.name != but:
            record.held = None
            self._p.starter.drop(held)

    # 6

    def _postpone(self, record: PodRecord, actions: PodActions, now: float) -> float | None:
        """Tell about restarts that are held back; seconds until the first of them is due."""
        for held in actions.postponed:
            where = full_name(record.pod)
            message = f"back-off {held.wait} restarting failed container={held.name} pod={where}"
            before = record.waiting.get(held.name)
            record.waiting[held.name] = Waiting("CrashLoopBackOff", message)
            if before is None or before.reason != "CrashLoopBackOff":
                text = f"Back-off restarting failed container {held.name} in pod {where}"
                self._p.event(record.pod, held.name, "Warning", "BackOff", text)
        return min((held.until - now for held in actions.postponed), default=None)

    def _start_all(
        self, record: PodRecord, starts: tuple[Start, ...], view: PodView
    ) -> tuple[bool, float | None]:
        """Start what is to start: (whether something did, seconds to wait before trying the rest again)."""
        sandbox = view.sandbox
        if not starts or sandbox is None:
            return False, None
        started, soonest = False, math.inf
        specs = {c["name"]: c for c in every_container(record.pod)}
        for start in starts:
            if self._to_end(record):
                break
            self._let_go(record, but=start.name)
            wait = self._start(record, specs[start.name], start, view, sandbox.id)
            started |= wait is None
            soonest = min(soonest, math.inf if wait is None else wait)
        return started, None if soonest == math.inf else soonest

    def _start(
        self, record: PodRecord, container: Object, start: Start, view: PodView, sandbox_id: str
    ) -> float | None:
        """Start one: None when it runs, else the seconds to wait (infinite when something will wake us)."""
        now, began = self._clock(), time.monotonic()
        name = start.name
        try:
            if record.pod["spec"].get("initContainers"):
                self._publish(record, view, self._p.prober.health(view), soon=True)
            identifier = self._p.starter.start(
                record.pod, container, start, sandbox_id, view, record.volumes or {},
                partial(record.take_held, name, sandbox_id),
            )  # fmt: skip
        except ImagePulling:
            return math.inf
        except ContainerError as error:
            self._counts.container(record.pod, name, error.reason)
            record.waiting[name] = Waiting(error.reason, str(error))
            if not isinstance(error, ImageError):
                self._count_try(record, start, now)
            log.info(
                "Failed to start container pod=%s container=%s reason=%s error=%s",
                full_name(record.pod), name, error.reason, error,
            )  # fmt: skip
            return self._retry_after(record, container)
        self._counts.container(record.pod, name)
        record.waiting.pop(name, None)
        record.failures = 0
        self._count_try(record, start, now)
        ms = (time.monotonic() - began) * 1000
        log.info("Started container pod=%s container=%s ms=%d", full_name(record.pod), name, ms)
        post_start = (container.get("lifecycle") or {}).get("postStart")
        if post_start and not self._post_start(record, container, identifier, post_start, view):
            return RETRY_SECONDS
        return None

    def _count_try(self, record: PodRecord, start: Start, now: float) -> None:
        """The first start is free; every later one doubles the wait before the next."""
        if start.since is not None:
            entry = record.backoffs.get(start.name)
            longest = self._p.longest_wait
            record.backoffs[start.name] = backoff.after_try(entry, start.since, now, longest)

    def _post_start(
        self, record: PodRecord, container: Object, identifier: str, hook: Object, view: PodView
    ) -> bool:
        """Run the hook to its end, or until the pod ends; False when it failed."""
        ip = view.ips[0] if view.ips else "127.0.0.1"
        over = threading.Event()
        failed: list[str] = []
        warn = partial(self._p.event, record.pod, container["name"], "Warning")

        def work() -> None:
            try:
                hooks.run(self._p.runtime, hook, container, identifier, ip, timeout=None, warn=warn)
            except hooks.HookFailed as error:
                failed.append(str(error))
            finally:
                over.set()
                record.nudge.set()

        record.nudge.clear()
        threading.Thread(target=work, name="post-start", daemon=True).start()
        while not over.is_set() and not self._to_end(record):
            record.nudge.wait(RETRY_SECONDS)
            record.nudge.clear()
        if not failed or self._to_end(record):
            return True
        name = container["name"]
        log.info("Failed postStart hook pod=%s container=%s error=%s", full_name(record.pod), name, failed[0])
        self._p.event(record.pod, name, "Warning", "FailedPostStartHook", "PostStartHook failed")
        text = hooks.told(hook, container, full_name(record.pod), failed[0])
        record.waiting[name] = Waiting("PostStartHookError", text)
        self._kill(record, self._p.pleg.view(record.uid), Kill(identifier, name, "FailedPostStartHook"))
        return False

    def _to_end(self, record: PodRecord) -> bool:
        """Deleted, ended by the node, or too old: nothing of it is to be waited for or started any more."""
        due = deadline(record)
        return record.ends or record.ending is not None or (due is not None and due <= self._clock())

    def _retry_after(self, record: PodRecord, container: Object) -> float:
        at = self._p.puller.retry_at(record.pod, container["image"])
        return max(0.5, at - self._clock()) if at is not None else self._failed(record)

    @staticmethod
    def _failed(record: PodRecord) -> float:
        """Count a failure; the seconds after which to try again."""
        record.failures += 1
        return backoff.retry_seconds(record.failures)

    # 3

    def _kill(self, record: PodRecord, view: PodView, kill: Kill) -> None:
        spec = next((c for c in every_container(record.pod) if c["name"] == kill.name), {})
        grace = grace_of(record)
        if "failed liveness" in kill.message or "failed startup" in kill.message:
            probe = spec.get("livenessProbe" if "liveness" in kill.message else "startupProbe") or {}
            grace = float(probe.get("terminationGracePeriodSeconds") or grace)
        found: ContainerView | None = next((c for c in view.containers if c.id == kill.container_id), None)
        if found is not None and found.state == "RUNNING":
            if kill.returns:
                record.returning |= {found.id}
            ip = view.ips[0] if view.ips else "127.0.0.1"
            self._stopper.stop(record.pod, spec, found, ip, grace, kill.message)

    def _remove_old(self, actions: PodActions) -> None:
        for identifier in actions.remove_containers:
            self._p.sandboxes.remove_log(identifier)  # first: without its record nobody would find it again
            self._p.runtime.remove_container(identifier)
        for identifier in actions.remove_sandboxes:
            self._p.runtime.remove_pod_sandbox(identifier)

    # 7

    def _publish(
        self, record: PodRecord, view: PodView, health: dict[str, Health], *, soon: bool = False
    ) -> None:
        pod = record.pod
        shown = self._p.mirror(pod) if is_static(pod) else pod
        known = record.status
        if is_static(pod) and shown is not None and not record.mirrored:
            # What an earlier agent said of it: its start and its transitions are no other for a new one.
            known, record.mirrored = shown.get("status") or known, True
        if known is not None:
            # Transition times and the phase's memory go on from what we said last, not from what the
            # informer has seen of it; other writers' conditions come from the pod itself.
            others = [
                c for c in (pod.get("status") or {}).get("conditions") or () if c["type"] not in _types(known)
            ]
            pod = {**pod, "status": {**known, "conditions": [*(known.get("conditions") or ()), *others]}}
        situation = Situation(
            now=self._clock(),
            host_ips=tuple(self._p.node.ips),
            started_at=record.seen_at,
            waiting=record.waiting,
            health=health,
            finished=record.finished,
            failure=record.failure,
            disruption=record.ending.disruption if record.ending is not None else "",
            resources=self._p.resizer.shown(record, view),
            resize=record.resize,
            returning=record.returning,
        )
        status = generate(pod, view, situation)
        record.status = status
        if shown is not None:
            self._p.statuses.set(shown, status, soon=soon)


def _forgive(record: PodRecord, view: PodView) -> None:
    """A container that was given another image is new: upstream's back-off is one of name and image."""
    for container in every_container(record.pod) if record.backoffs else ():
        last = view.latest(container["name"])
        if last is not None and last.spec_hash not in ("", spec_hash(container)):
            record.backoffs.pop(container["name"], None)


def _types(status: Object) -> set[str]:
    return {c["type"] for c in status.get("conditions") or ()}
