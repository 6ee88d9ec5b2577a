"""One look at one pod: decide (actions.py), then carry it out in numbered steps that only act.

`PodSyncer.sync` is what a worker runs. It ends with the status the API is to show and the seconds after which
to look again. Every step may be repeated: whatever fails is tried again with the next look.

    1  look        what the runtime has, what the probes say
    2  end         a pod that is deleted, evicted or over: stop everything, last status, DELETE, clean
    3  stop        a dead sandbox's leftovers, containers that failed a probe or changed
    4  volumes     ready before anything can use them
    5  sandbox     cgroup, namespaces, network, our files
    6  containers  init containers first, each to its end
    7  status
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.resources import PODS
from kubeclient.rest import RestClient
from kubelet_py.errors import ContainerError, ImageError, SandboxError, VolumeError
from kubelet_py.pods import backoff, hooks, resources
from kubelet_py.pods.actions import Kill, PodActions, Start, compute_pod_actions
from kubelet_py.pods.containers import ContainerStarter, Event
from kubelet_py.pods.context import NodeFacts, ObjectSource, TokenSource
from kubelet_py.pods.image_puller import ImagePuller
from kubelet_py.pods.model import (
    Health,
    Object,
    PodView,
    Waiting,
    every_container,
    full_name,
    is_mirror,
    is_static,
)
from kubelet_py.pods.pleg import Pleg
from kubelet_py.pods.prober import Prober
from kubelet_py.pods.sandboxes import Sandboxes
from kubelet_py.pods.status import Situation, generate
from kubelet_py.pods.status_manager import StatusManager
from kubelet_py.volumes.manager import VolumeManager
from kubelet_py.volumes.plugin import Context
from runtime.errors import RuntimeFailure
from runtime.service import RuntimeService

log = logging.getLogger(__name__)

DEFAULT_GRACE = 30
RETRY_SECONDS = 2.0
SECOND_LOOK = 0.0
FLUSH_SECONDS = 5.0
STEPS_PER_LOOK = 10


@dataclass(slots=True)
class PodRecord:
    """One pod of this node, with what only the agent remembers. Its worker alone changes it, but for
    `pod` and `gone`."""

    pod: Object
    seen_at: float
    gone: bool = False  # the API (or the manifest folder) has it no more
    finished: bool = False  # phase Succeeded or Failed: never runs again
    cleaned: bool = False  # and what it held was given back
    deleted: bool = False  # everything is gone, the record too
    failure: Waiting | None = None
    volumes: dict[str, Path] | None = None
    waiting: dict[str, Waiting] = field(default_factory=dict)
    backoffs: dict[str, backoff.BackoffEntry] = field(default_factory=dict)
    status: Object | None = None  # what was last said of it

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def ends(self) -> bool:
        return self.gone or bool(self.pod["metadata"].get("deletionTimestamp"))


@dataclass(frozen=True, slots=True)
class Parts:
    """What the syncer works with."""

    runtime: RuntimeService
    sandboxes: Sandboxes
    volumes: VolumeManager
    starter: ContainerStarter
    pleg: Pleg
    prober: Prober
    puller: ImagePuller
    statuses: StatusManager
    objects: ObjectSource
    tokens: TokenSource
    node: NodeFacts
    event: Event
    client: RestClient | None
    cgroup_root: str
    mirror: Callable[[Object], Object | None]  # a static pod's image in the API


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
        self._forget = forget
        self._clock = clock

    def sync(self, uid: str) -> float | None:
        """See the module. Answers the seconds after which to look again, or None."""
        record = self._record(uid)
        if record is None or record.deleted:
            return None
        if record.ends:
            return self._end(record)
        phase = (record.pod.get("status") or {}).get("phase")
        if phase in ("Succeeded", "Failed") and not is_static(record.pod):
            record.finished = True
        if record.finished:
            return self._finish(record)
        for _ in range(STEPS_PER_LOOK):
            again, after = self._step(record)
            if not again:
                return after
            if record.ends:
                return 0
        return SECOND_LOOK

    def _step(self, record: PodRecord) -> tuple[bool, float | None]:
        """One decision and its execution: (whether to decide once more at once, seconds to the next look)."""
        pod, now = record.pod, self._clock()
        view = self._p.pleg.view(record.uid)
        self._p.prober.update(pod, view)
        health = self._p.prober.health(view)
        actions = compute_pod_actions(pod, view, now, health=health, backoffs=record.backoffs)
        log.debug("Decided pod=%s actions=%s", full_name(pod), actions.describe())
        self._remove_old(actions)
        if actions.finished:
            record.finished = True
            return False, self._finish(record)
        if actions.kill_pod:
            if view.sandbox is not None and any(not s.ready for s in view.sandboxes[:1]):
                message = "Pod sandbox changed, it will be killed and re-created."
                self._p.event(pod, "", "Normal", "SandboxChanged", message)
            self._stop_containers(record, view, self._grace(record))
            self._p.sandboxes.stop(view)
            return True, None
        for kill in actions.kills:
            self._kill(record, view, kill)
        if actions.create_sandbox:
            return self._create_sandbox(record, view, actions, health)
        if actions.starts and record.volumes is None and not self._set_up_volumes(record, view):
            self._publish(record, view, health)
            return False, RETRY_SECONDS
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
            record.volumes = self._p.volumes.set_up(self._context(record.pod, view.ips))
        except VolumeError as error:
            self._p.event(record.pod, "", "Warning", "FailedMount", str(error))
            log.info("Failed to set up volumes pod=%s error=%s", full_name(record.pod), error)
            return False
        return True

    def _context(self, pod: Object, ips: tuple[str, ...]) -> Context:
        return Context(
            pod=pod,
            lookup=self._p.objects.lookup(pod["metadata"]["namespace"]),
            token=self._p.tokens.token,
            facts=self._p.starter.field_facts(pod, ips),
            allocatable=self._p.node.allocatable,
        )

    def refresh_volumes(self, record: PodRecord) -> None:
        """Bring changed objects into the files of a running pod."""
        if record.volumes is None or record.ends or record.finished:
            return
        try:
            self._p.volumes.refresh(self._context(record.pod, self._p.pleg.view(record.uid).ips))
        except (VolumeError, OSError) as error:
            log.info("Failed to refresh volumes pod=%s error=%s", full_name(record.pod), error)

    def _create_sandbox(
        self, record: PodRecord, view: PodView, actions: PodActions, health: dict[str, Health]
    ) -> tuple[bool, float | None]:
        self._publish(record, view, health, soon=True)
        if record.volumes is None and not self._set_up_volumes(record, view):
            return False, RETRY_SECONDS
        began = time.monotonic()
        try:
            self._p.sandboxes.create(record.pod, actions.attempt)
        except SandboxError as error:
            reason = "NetworkNotReady" if "network is not ready" in str(error) else "FailedCreatePodSandBox"
            text = str(error) if reason == "NetworkNotReady" else f"Failed to create pod sandbox: {error}"
            self._p.event(record.pod, "", "Warning", reason, text)
            log.warning("Failed to create sandbox pod=%s error=%s", full_name(record.pod), error)
            return False, RETRY_SECONDS
        ms = (time.monotonic() - began) * 1000
        log.info("Created sandbox pod=%s attempt=%d ms=%d", full_name(record.pod), actions.attempt, ms)
        return True, None

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
        started, retry = False, None
        specs = {c["name"]: c for c in every_container(record.pod)}
        for start in starts:
            if record.ends:
                break
            if self._start(record, specs[start.name], start, view, sandbox.id):
                started = True
            else:
                retry = self._retry_after(record, specs[start.name])
        return started, retry

    def _start(
        self, record: PodRecord, container: Object, start: Start, view: PodView, sandbox_id: str
    ) -> bool:
        now, began = self._clock(), time.monotonic()
        name = start.name
        try:
            if record.pod["spec"].get("initContainers"):
                self._publish(record, view, self._p.prober.health(view), soon=True)
            identifier = self._p.starter.start(
                record.pod, container, start, sandbox_id, view.ips, record.volumes or {}
            )
        except ContainerError as error:
            record.waiting[name] = Waiting(error.reason, str(error))
            if not isinstance(error, ImageError):
                self._count_try(record, start, now)
            log.info(
                "Failed to start container pod=%s container=%s reason=%s error=%s",
                full_name(record.pod), name, error.reason, error,
            )  # fmt: skip
            return False
        record.waiting.pop(name, None)
        self._count_try(record, start, now)
        ms = (time.monotonic() - began) * 1000
        log.info("Started container pod=%s container=%s ms=%d", full_name(record.pod), name, ms)
        post_start = (container.get("lifecycle") or {}).get("postStart")
        if post_start:
            return self._post_start(record, container, identifier, post_start, view)
        return True

    @staticmethod
    def _count_try(record: PodRecord, start: Start, now: float) -> None:
        """The first start is free; every later one doubles the wait before the next."""
        if start.since is not None:
            entry = record.backoffs.get(start.name)
            record.backoffs[start.name] = backoff.after_try(entry, start.since, now)

    def _post_start(
        self, record: PodRecord, container: Object, identifier: str, hook: Object, view: PodView
    ) -> bool:
        ip = view.ips[0] if view.ips else "127.0.0.1"
        try:
            hooks.run(self._p.runtime, hook, container, identifier, ip, timeout=None)
        except hooks.HookFailed as error:
            name = container["name"]
            self._p.event(
                record.pod, name, "Warning", "FailedPostStartHook", f"PostStartHook failed: {error}"
            )
            record.waiting[name] = Waiting("PostStartHookError", str(error))
            self._kill(record, self._p.pleg.view(record.uid), Kill(identifier, name, "FailedPostStartHook"))
            return False
        return True

    def _retry_after(self, record: PodRecord, container: Object) -> float:
        at = self._p.puller.retry_at(record.pod, container["image"])
        return max(0.5, at - self._clock()) if at is not None else RETRY_SECONDS

    # 3

    def _kill(self, record: PodRecord, view: PodView, kill: Kill) -> None:
        self._p.event(record.pod, kill.name, "Normal", "Killing", kill.message)
        spec = next((c for c in every_container(record.pod) if c["name"] == kill.name), {})
        grace = self._grace(record)
        if "failed liveness" in kill.message or "failed startup" in kill.message:
            probe = spec.get("livenessProbe" if "liveness" in kill.message else "startupProbe") or {}
            grace = float(probe.get("terminationGracePeriodSeconds") or grace)
        self._stop_one(record.pod, spec, kill.container_id, view, grace)

    def _stop_one(self, pod: Object, spec: Object, container_id: str, view: PodView, grace: float) -> None:
        """preStop within the grace, then the stop signal, then SIGKILL."""
        began = time.monotonic()
        pre_stop = (spec.get("lifecycle") or {}).get("preStop")
        if pre_stop and grace > 0:
            ip = view.ips[0] if view.ips else "127.0.0.1"
            try:
                hooks.run(self._p.runtime, pre_stop, spec, container_id, ip, timeout=grace)
            except hooks.HookFailed as error:
                text = f"PreStopHook failed: {error}"
                self._p.event(pod, spec.get("name", ""), "Warning", "FailedPreStopHook", text)
            grace = max(2.0, grace - (time.monotonic() - began))
        try:
            self._p.runtime.stop_container(container_id, grace)
        except RuntimeFailure as error:
            log.warning("Failed to stop container id=%s error=%s", container_id[:12], error)

    def _grace(self, record: PodRecord) -> float:
        pod = record.pod
        given = pod["metadata"].get("deletionGracePeriodSeconds")
        if given is None:
            given = pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE)
        return max(1.0, float(given))

    def _stop_containers(self, record: PodRecord, view: PodView, grace: float) -> None:
        """All at once, each in a thread; a deletion that got shorter meanwhile is obeyed."""
        specs = {c["name"]: c for c in every_container(record.pod)}
        threads = []
        for container in view.containers:
            if container.state != "RUNNING":
                continue
            name = container.name
            self._p.event(record.pod, name, "Normal", "Killing", f"Stopping container {name}")
            arguments = (record.pod, specs.get(name, {}), container.id, view, grace)
            threads.append(threading.Thread(target=self._stop_one, args=arguments, daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.25)
                shorter = self._grace(record)
                if thread.is_alive() and shorter < grace:
                    grace = shorter
                    for container in view.containers:
                        arguments = (record.pod, {}, container.id, view, grace)
                        threading.Thread(target=self._stop_one, args=arguments, daemon=True).start()

    def _remove_old(self, actions: PodActions) -> None:
        for identifier in actions.remove_containers:
            self._p.runtime.remove_container(identifier)
        for identifier in actions.remove_sandboxes:
            self._p.runtime.remove_pod_sandbox(identifier)

    # 2

    def _finish(self, record: PodRecord) -> float | None:
        """The pod ran to its end: give back what it held, keep its logs and its last containers."""
        view = self._p.pleg.view(record.uid)
        if not record.cleaned:
            self._stop_containers(record, view, self._grace(record))
            self._publish(record, self._p.pleg.view(record.uid), {})
            self._p.prober.forget(record.uid)
            self._p.sandboxes.stop(view)
            record.cleaned = True
        self._publish(record, self._p.pleg.view(record.uid), {})
        return None

    def _end(self, record: PodRecord) -> float | None:
        """The pod is deleted: stop it, say so, let the API forget it, then remove every trace."""
        began = time.monotonic()
        self._p.prober.forget(record.uid)
        view = self._p.pleg.view(record.uid)
        self._stop_containers(record, view, self._grace(record))
        record.finished = True
        if not record.gone:
            self._publish(record, self._p.pleg.view(record.uid), {})
        self._p.sandboxes.stop(view)
        if not record.gone and not is_static(record.pod) and not self._delete_from_api(record):
            return RETRY_SECONDS
        # An orphan's spec is not known any more: its cgroup is what its sandbox was given.
        own = [s for s in self._p.runtime.list_sandboxes() if s.config.uid == record.uid]
        known = own[0].config.cgroup_parent if own else ""
        cgroup = known or resources.pod_cgroup(self._p.cgroup_root, record.pod)
        self._p.sandboxes.remove(view, cgroup)
        try:
            self._p.volumes.tear_down(record.uid)
        except (VolumeError, OSError) as error:
            log.warning("Failed to remove volumes pod=%s error=%s", full_name(record.pod), error)
            return RETRY_SECONDS
        self._p.sandboxes.remove_logs(record.pod)
        self._p.puller.forget(record.uid)
        self._p.tokens.forget(record.uid)
        self._p.statuses.forget(record.uid)
        record.deleted = True
        self._forget(record.uid)
        ms = (time.monotonic() - began) * 1000
        log.info("Removed pod=%s ms=%d", full_name(record.pod), ms)
        return None

    def _delete_from_api(self, record: PodRecord) -> bool:
        """DELETE with grace 0, only this very pod; True when the API has it no more."""
        if self._p.client is None or is_mirror(record.pod):
            return True
        self._p.statuses.flush(record.uid, FLUSH_SECONDS)
        metadata = record.pod["metadata"]
        try:
            self._p.client.delete(
                PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0, uid=record.uid
            )
        except (NotFound, Conflict):
            return True
        except ApiError as error:
            log.info("Failed to delete pod=%s error=%s", full_name(record.pod), error)
            return False
        return True

    # 7

    def _publish(
        self, record: PodRecord, view: PodView, health: dict[str, Health], *, soon: bool = False
    ) -> None:
        pod = record.pod
        known = record.status
        if known is not None:
            # Transition times and the phase's memory go on from what we said last, not from what the
            # informer has seen of it; other writers' conditions come from the pod itself.
            others = [
                c for c in (pod.get("status") or {}).get("conditions") or () if c["type"] not in _types(known)
            ]
            pod = {**pod, "status": {**known, "conditions": [*known["conditions"], *others]}}
        situation = Situation(
            now=self._clock(),
            host_ips=tuple(self._p.node.ips),
            started_at=record.seen_at,
            waiting=record.waiting,
            health=health,
            finished=record.finished,
            failure=record.failure,
        )
        status = generate(pod, view, situation)
        record.status = status
        shown = self._p.mirror(record.pod) if is_static(record.pod) else record.pod
        if shown is not None:
            self._p.statuses.set(shown, status, soon=soon)


def _types(status: Object) -> set[str]:
    return {c["type"] for c in status.get("conditions") or ()}
