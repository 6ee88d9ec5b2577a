"""The ending half of a pod's life: stop everything in order, say so, let the API forget it, clean up.

Nothing here waits: every look takes the pod as far as it can go now, and the end of a container brings the
next look. What is shown while some containers still run goes out in between. All of it may be repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.resources import PODS
from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Health, PodView, epoch, every_container, full_name, is_mirror, is_static
from kubelet_py.pods.record import Parts, PodRecord
from kubelet_py.pods.stopping import LEAST_GRACE, Stopper, next_to_stop

log = logging.getLogger(__name__)

DEFAULT_GRACE = 30
# Whoever deleted by force does not want to wait (and the API cannot show it any more).
FORCED_GRACE = 1.0
RETRY_SECONDS = 2.0
FLUSH_SECONDS = 5.0


class Publish(Protocol):
    def __call__(
        self, record: PodRecord, view: PodView, health: dict[str, Health], *, soon: bool = False
    ) -> None: ...


def grace_of(record: PodRecord) -> float:
    """Seconds that the pod's containers have from the moment they are told to end: at least one."""
    pod = record.pod
    if record.gone and not is_static(pod):
        return FORCED_GRACE
    given = pod["metadata"].get("deletionGracePeriodSeconds")
    if given is None:
        given = pod["spec"].get("terminationGracePeriodSeconds")
    grace = float(DEFAULT_GRACE if given is None else given)
    if record.ending is not None and record.ending.grace is not None:
        grace = min(grace, record.ending.grace)
    return max(1.0, grace)


def deadline(record: PodRecord) -> float | None:
    """The epoch second at which activeDeadlineSeconds is over; None without one."""
    seconds = record.pod["spec"].get("activeDeadlineSeconds")
    if seconds is None:
        return None
    status = record.status or record.pod.get("status") or {}
    begun = epoch(status["startTime"]) if status.get("startTime") else record.seen_at
    return begun + float(seconds)


class Terminator:
    def __init__(
        self,
        parts: Parts,
        stopper: Stopper,
        publish: Publish,
        forget: Callable[[str], None],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._p = parts
        self._stopper = stopper
        self._publish = publish
        self._forget = forget
        self._clock = clock

    def quiet(self, record: PodRecord, view: PodView) -> bool:
        """Have the containers stopped, each in its turn; True when none runs any more."""
        running = [c for c in view.containers if c.state == "RUNNING"]
        for container in view.containers:
            if container.state == "EXITED":
                self._stopper.ended(container.id)
        if not running:
            record.kill_at = None
            return True
        now, grace = self._clock(), grace_of(record)
        if record.kill_at is None or now + grace < record.kill_at:
            record.kill_at = now + grace
        left = max(min(LEAST_GRACE, grace), record.kill_at - now)
        specs = {c["name"]: c for c in every_container(record.pod)}
        ip = view.ips[0] if view.ips else "127.0.0.1"
        first = next_to_stop(record.pod, running)
        for container in running:
            message = f"Stopping container {container.name}"
            spec, turn = specs.get(container.name, {}), container in first
            self._stopper.stop(record.pod, spec, container, ip, left, message, turn=turn)
        return False

    def finish(self, record: PodRecord) -> float | None:
        """The pod ran to its end: give back what it held, keep its logs and its last containers."""
        view = self._p.pleg.view(record.uid)
        if not record.cleaned:
            self._p.prober.terminate(record.pod, view)
            if not self.quiet(record, view):
                self._publish(record, view, self._p.prober.health(view), soon=True)
                return RETRY_SECONDS
            self._publish(record, view, {})
            self._p.prober.forget(record.uid)
            self._p.sandboxes.stop(view)
            if not self._give_up_volumes(record):
                return RETRY_SECONDS
            self._release(record)
            record.cleaned = True
            view = self._p.pleg.view(record.uid)
        self._publish(record, view, {})
        return None

    def end(self, record: PodRecord) -> float | None:
        """The pod is deleted: stop it, say so, unmount its volumes, let the API forget it, then remove every
        trace."""
        if record.ending_since is None:
            record.ending_since = time.monotonic()
        view = self._p.pleg.view(record.uid)
        self._p.prober.terminate(record.pod, view)
        if not self.quiet(record, view):
            if not record.gone:
                self._publish(record, view, self._p.prober.health(view), soon=True)
            return RETRY_SECONDS
        self._p.prober.forget(record.uid)
        record.finished = True
        self._release(record)
        if not record.gone:
            self._publish(record, view, {})
        self._p.sandboxes.stop(view)
        if not self._give_up_volumes(record):  # whoever waits for the pod's end may want what they held
            return RETRY_SECONDS
        if not record.gone and not is_static(record.pod) and not self._delete_from_api(record):
            return RETRY_SECONDS
        return self._clean(record, view)

    def _give_up_volumes(self, record: PodRecord) -> bool:
        try:
            self._p.volumes.give_up(record.uid)
        except (VolumeError, OSError) as error:
            log.warning("Failed to give up volumes pod=%s error=%s", full_name(record.pod), error)
            return False
        return True

    def _release(self, record: PodRecord) -> None:
        """What the pod took of the node is others' now; processors first, for whom the gate lets in."""
        self._p.cpus.release(record.uid)
        self._p.gate.released(record)

    def _clean(self, record: PodRecord, view: PodView) -> float | None:
        self._p.sandboxes.remove(view, record.pod)
        self._p.sandboxes.remove_logs(record.pod)
        try:
            # Last of all, because an agent that is killed before knows by the pod's folder what is owed.
            self._p.volumes.tear_down(record.uid)
        except (VolumeError, OSError) as error:
            log.warning("Failed to remove volumes pod=%s error=%s", full_name(record.pod), error)
            return RETRY_SECONDS
        self._p.puller.forget(record.uid)
        self._p.tokens.forget(record.uid)
        self._p.statuses.forget(record.uid)
        record.deleted = True
        self._forget(record.uid)
        ms = (time.monotonic() - (record.ending_since or time.monotonic())) * 1000
        log.info("Removed pod=%s ms=%d", full_name(record.pod), ms)
        return None

    def _delete_from_api(self, record: PodRecord) -> bool:
        """DELETE with grace 0, only this very pod; True when the API has it no more."""
        if self._p.client is None or is_mirror(record.pod):
            return True
        if not self._p.statuses.flush(record.uid, FLUSH_SECONDS):
            return False  # whoever holds the pod by a finalizer has to be told how it ended
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
