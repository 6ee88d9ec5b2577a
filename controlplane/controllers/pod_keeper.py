"""Making and deleting the pods of an object, with what is told and remembered of it.

What was just asked for is remembered until the watch shows it (`Expectations`): acting upon a copy that lags
behind would make a pod twice. Source: upstream's controller_utils.go (PodControl).
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.controllers.base import Controller, Object, SharedInformers, controller_of
from controlplane.controllers.expectations import Expectations
from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.events import EventRecorder
from kubeclient.resources import PODS
from kubeclient.rest import RestClient


class PodKeeper(Controller):
    """Base of controllers whose objects of one `kind` own pods."""

    kind = ""

    def __init__(self, client: RestClient, informers: SharedInformers, recorder: EventRecorder) -> None:
        super().__init__(client, informers, recorder)
        self._expectations = Expectations()

    def _seen(self, event: str, pod: Object) -> None:
        """A pod came, changed or went: if it is one of ours, its owner is looked at."""
        reference = controller_of(pod)
        if reference is None or reference["kind"] != self.kind:
            return
        key = f"{pod['metadata']['namespace']}/{reference['name']}"
        if event == "ADDED":
            self._expectations.created(key)
        if event == "DELETED" or pod["metadata"].get("deletionTimestamp"):
            self._expectations.deleted(key, pod["metadata"]["uid"])
        self.queue.add(key)

    def _create(self, owner: Object, key: str, bodies: Sequence[Object]) -> tuple[int, ApiError | None]:
        """How many there are now, and what the API refused; after a refusal none is tried."""
        for made, body in enumerate(bodies):
            try:
                pod = self.client.create(PODS, body, owner["metadata"]["namespace"])
            except ApiError as error:
                # What was not asked for any more will never be seen.
                self._expectations.created(key, len(bodies) - made)
                if any(cause.get("reason") == "NamespaceTerminating" for cause in error.causes):
                    return made, None
                self.recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error}")
                return made, error
            name = pod["metadata"]["name"]
            self.recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name}")
        return len(bodies), None

    def _delete(self, owner: Object, key: str, pod: Object) -> None:
        """Raises ApiError; the deletions that were expected are forgotten then."""
        metadata = pod["metadata"]
        try:
            self.client.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            self._expectations.deleted(key, metadata["uid"])
            return
        except ApiError as error:
            self._expectations.forget(key)
            self.recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {error}")
            raise
        self.recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")
