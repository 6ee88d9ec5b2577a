"""Binds the claims that waited for a pod's node, before the pod itself is bound.

The scheduler only promises: it points the volume at the claim, or names the node to the class's provisioner,
and waits until the controller has bound the two (upstream: VolumeBinding's PreBind). Runs on a thread of its
own, so that no other pod waits for a provisioner.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from controlplane import claims
from controlplane.controllers.base import SharedInformers
from controlplane.controllers.volume_binder import reference_to
from controlplane.scheduler.volumes import Choice, Storage
from kubeclient.errors import ApiError
from kubeclient.resources import PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES, STORAGE_CLASSES
from kubeclient.rest import RestClient

log = logging.getLogger("scheduler")

Object = dict[str, Any]
LONGEST_SECONDS = 600.0


class ClaimBinding:
    """The scheduler's view of claims, volumes and classes, and the writes that bind them.

    `changed` is called when something changed that may help a pod.
    """

    def __init__(self, client: RestClient, informers: SharedInformers, changed: Callable[[], None]) -> None:
        self._client = client
        self._changed = changed
        self._promised: dict[str, str] = {}
        self._moved = threading.Condition()
        self._claims = informers.of(PERSISTENT_VOLUME_CLAIMS, self._on_event)
        self._volumes = informers.of(PERSISTENT_VOLUMES, self._on_volume)
        self._classes = informers.of(STORAGE_CLASSES, self._on_event)

    def wait_synced(self, seconds: float) -> bool:
        return all(i.wait_synced(seconds) for i in (self._claims, self._volumes, self._classes))

    def storage(self) -> Storage:
        """Everything as it is known now."""
        return Storage(
            {(c["metadata"]["namespace"], c["metadata"]["name"]): c for c in self._claims.list()},
            {v["metadata"]["name"]: v for v in self._volumes.list()},
            {c["metadata"]["name"]: c for c in self._classes.list()},
            dict(self._promised),
        )

    def promise(self, choices: Sequence[Choice]) -> None:
        """From now on these volumes are nobody else's."""
        for choice in choices:
            if choice.volume is not None:
                self._promised[choice.volume["metadata"]["name"]] = choice.claim["metadata"]["uid"]

    def bind(self, choices: Sequence[Choice], node: str) -> str:
        """Have all of them bound; "" when they are, else why not. Waits."""
        try:
            for choice in choices:
                self._ask(choice, node)
        except ApiError as error:
            self._take_back(choices)
            return str(error)
        deadline = time.monotonic() + LONGEST_SECONDS
        with self._moved:
            while not all(self._is_bound(choice.claim) for choice in choices):
                left = deadline - time.monotonic()
                if left <= 0:
                    self._take_back(choices)
                    return "timed out waiting for the volumes to be bound"
                self._moved.wait(left)
        return ""

    def _ask(self, choice: Choice, node: str) -> None:
        claim, volume = choice.claim, choice.volume
        metadata = claim["metadata"]
        if volume is None:
            body = {"metadata": {"annotations": {claims.SELECTED_NODE: node}}}
            self._client.patch(PERSISTENT_VOLUME_CLAIMS, metadata["name"], body, metadata["namespace"])
        elif not claims.reserved_for(volume, claim):
            given = claims.annotations_of(volume) | {claims.BOUND_BY_CONTROLLER: "yes"}
            body = volume | {
                "metadata": volume["metadata"] | {"annotations": given},
                "spec": volume["spec"] | {"claimRef": reference_to(claim)},
            }
            self._client.update(PERSISTENT_VOLUMES, body)

    def _is_bound(self, claim: Object) -> bool:
        metadata = claim["metadata"]
        found = self._claims.get(metadata["name"], metadata["namespace"])
        return found is not None and claims.is_bound(found)

    def _take_back(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            if choice.volume is not None:
                self._promised.pop(choice.volume["metadata"]["name"], None)

    def _on_volume(self, kind: str, new: Object, old: Object | None) -> None:
        if new["spec"].get("claimRef") or kind == "DELETED":
            self._promised.pop(new["metadata"]["name"], None)
        self._on_event(kind, new, old)

    def _on_event(self, kind: str, new: Object, old: Object | None) -> None:
        with self._moved:
            self._moved.notify_all()
        self._changed()
