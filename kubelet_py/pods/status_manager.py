"""Tells the API server what became of a pod, once per change, and removes the object when the pod is gone.

What was sent last is remembered per pod; an equal status is not sent again. The patch carries the pod's UID,
so that it can never hit a new pod of the same name. A failed patch is tried again with the pod's next sync.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from kubeclient.errors import ApiError, Conflict, NotFound
from kubeclient.resources import PODS
from kubeclient.rest import RestClient
from kubelet_py.pods.model import Object, full_name

log = logging.getLogger(__name__)


class StatusManager:
    """One per agent; thread-safe as long as each pod has one worker."""

    def __init__(self, client: RestClient | None) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._sent: dict[str, Object] = {}
        self._computed: dict[str, Object] = {}

    def set(self, pod: Object, status: Object) -> bool:
        """Send the status if it differs from what the API has; False when that has to be tried again.

        `pod` is the API's object: for a static pod its mirror, or the manifest itself while there is none.
        """
        uid = pod["metadata"]["uid"]
        with self._lock:
            self._computed[uid] = status
            known = self._sent.get(uid)
        if self._client is None:
            return True
        if known is None:
            known = _comparable(pod.get("status") or {}, status)
        if known == status:
            return True
        metadata = pod["metadata"]
        body: dict[str, Any] = {"metadata": {"uid": uid}, "status": _patch(known, status)}
        try:
            self._client.patch(PODS, metadata["name"], body, metadata["namespace"], subresource="status")
        except NotFound:
            return True
        except Conflict:
            log.info("Dropped status of a pod that was replaced pod=%s", full_name(pod))
            return True
        except ApiError as error:
            log.info("Failed to send status pod=%s error=%s", full_name(pod), error)
            return False
        with self._lock:
            self._sent[uid] = status
        return True

    def get(self, uid: str) -> Object | None:
        """The status computed last, sent or not."""
        with self._lock:
            return self._computed.get(uid)

    def delete(self, pod: Object) -> bool:
        """Remove the pod's object: its containers are gone and its volumes too. False to try again."""
        metadata = pod["metadata"]
        if self._client is not None:
            try:
                self._client.delete(
                    PODS, metadata["name"], metadata["namespace"], grace_period_seconds=0, uid=metadata["uid"]
                )
            except (NotFound, Conflict):
                log.debug("Found pod gone already pod=%s", full_name(pod))
            except ApiError as error:
                log.info("Failed to delete pod object pod=%s error=%s", full_name(pod), error)
                return False
        return True

    def forget(self, uid: str) -> None:
        with self._lock:
            self._sent.pop(uid, None)
            self._computed.pop(uid, None)


def _comparable(present: Object, wanted: Object) -> Object:
    """What the API holds, without fields that others own, for the first comparison after a start."""
    return {key: present[key] for key in wanted if key in present}


def _patch(known: Object, status: Object) -> Object:
    """Only what changed. podIPs and hostIPs are merged by key upstream, so they are replaced as a whole."""
    changed: dict[str, Any] = {}
    for key, value in status.items():
        if known.get(key) != value:
            changed[key] = [{"$patch": "replace"}, *value] if key in ("podIPs", "hostIPs") else value
    for key in known:
        if key not in status:
            changed[key] = None
    return changed
