"""Events about pods and their containers: to the API where there is one, else to the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kubeclient.events import EventRecorder
from kubelet_py.pods.model import Object, every_container, init_containers

log = logging.getLogger(__name__)


class PodEvents:
    """`mirror` finds the API's image of a static pod, which is what its events are about."""

    def __init__(self, recorder: EventRecorder | None, mirror: Callable[[Object], Object | None]) -> None:
        self._recorder = recorder
        self._mirror = mirror

    def tell(self, pod: Object, container: str, kind: str, reason: str, message: str) -> None:
        """An event about a pod, or about one of its containers ("" for none)."""
        if self._recorder is None:
            log.info("Event pod=%s reason=%s message=%s", pod["metadata"]["name"], reason, message)
            return
        where = None
        if container and any(c["name"] == container for c in every_container(pod)):
            init = any(c["name"] == container for c in init_containers(pod))
            where = f"spec.{'initContainers' if init else 'containers'}{{{container}}}"
        self._recorder.event(self._mirror(pod) or pod, kind, reason, message, field_path=where)

    def tell_of_probe(self, pod: Object, container: Object, kind: str, reason: str, message: str) -> None:
        self.tell(pod, container["name"], kind, reason, message)
