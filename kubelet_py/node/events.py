"""Events about the node itself, as the kubelet tells them: with the node's name in place of a uid.

What happens before the API server has the node (limits set, the kubelet started) is told when it has it.
"""

from __future__ import annotations

import logging
import threading

from kubeclient.events import EventRecorder

log = logging.getLogger(__name__)


class NodeEvents:
    """To the API where there is one, and to the log."""

    def __init__(self, recorder: EventRecorder | None, node_name: str) -> None:
        self._recorder = recorder
        metadata = {"name": node_name, "uid": node_name}
        self._node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
        self._lock = threading.Lock()
        self._held: list[tuple[str, str, str]] | None = []

    def tell(self, kind: str, reason: str, message: str) -> None:
        """`kind`: Normal or Warning."""
        if self._recorder is not None:
            with self._lock:
                if self._held is not None:
                    self._held.append((kind, reason, message))
                    return
            self._recorder.event(self._node, kind, reason, message)
        log.info("Event of the node reason=%s message=%s", reason, message)

    def release(self) -> None:
        """The API server answers now."""
        with self._lock:
            held, self._held = self._held, None
        for kind, reason, message in held or ():
            self.tell(kind, reason, message)
