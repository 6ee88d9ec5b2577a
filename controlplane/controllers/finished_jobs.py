"""Deletes Jobs some time after their end, where they ask for it by ttlSecondsAfterFinished.

Source: upstream's pkg/controller/ttlafterfinished.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from controlplane.controllers import job_end
from controlplane.controllers.base import Controller, Object, SharedInformers, split_key
from controlplane.controllers.stamps import seconds
from kubeclient.errors import Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import JOBS
from kubeclient.rest import RestClient


class FinishedJobs(Controller):
    name = "ttl-after-finished"

    def __init__(
        self,
        client: RestClient,
        informers: SharedInformers,
        recorder: EventRecorder,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, informers, recorder)
        self._clock = clock
        self._jobs = informers.of(JOBS, self.enqueue)

    def sync(self, key: str) -> None:
        namespace, name = split_key(key)
        job = self._jobs.get(name, namespace)
        if job is None or job["metadata"].get("deletionTimestamp"):
            return
        at = expires(job)
        if at is None:
            return
        if (left := at - self._clock()) > 0:
            self.queue.add_after(key, left)
            return
        metadata = job["metadata"]
        try:
            # The resourceVersion: somebody may have prolonged its time, which our copy does not show yet.
            self.client.delete(
                JOBS,
                name,
                namespace,
                uid=metadata["uid"],
                resource_version=metadata["resourceVersion"],
                propagation_policy="Foreground",
            )
        except (NotFound, Conflict):
            return


def expires(job: Object) -> float | None:
    """When the Job's time is over (epoch seconds); None while it goes on or asks for nothing."""
    limit = job["spec"].get("ttlSecondsAfterFinished")
    end = job_end.condition(job, "Complete") or job_end.condition(job, "Failed")
    if limit is None or end is None:
        return None
    return seconds(end["lastTransitionTime"]) + float(limit)
