"""What keeps a node's disk from filling up: one object, looked at once a second by the agent's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kubeclient.events import EventRecorder
from kubelet_py.config import Config
from kubelet_py.node.garbage import ImageGarbage, Policy, disk_of
from kubelet_py.node.log_rotation import LogRotation, parse_limits
from kubelet_py.paths import NodePaths
from runtime.images.store import ImageStore
from runtime.service import RuntimeService


class Housekeeping:
    """Images that nobody uses and logs that have grown too large. Raises ConfigError for senseless limits.

    Node events go to `recorder` where there is one; all is logged in any case.
    """

    def __init__(
        self,
        config: Config,
        paths: NodePaths,
        store: ImageStore,
        runtime: RuntimeService,
        *,
        node_name: str,
        recorder: EventRecorder | None,
        mounted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._node_name, self._recorder = node_name, recorder
        self._images = ImageGarbage(
            store,
            runtime.list_containers,
            Policy.from_config(config),
            self._tell,
            disk=lambda: disk_of(paths.images),
            mounted=mounted,
        )
        size, files = parse_limits(config)
        self._logs = LogRotation(
            runtime.list_containers,
            runtime.reopen_log,
            max_size=size,
            max_files=files,
            period=config.container_log_monitor_interval,
        )

    def look(self) -> None:
        """Do what is due; returns after milliseconds."""
        self._images.look()
        self._logs.look()

    def _tell(self, kind: str, reason: str, message: str) -> None:
        if self._recorder is not None:
            # As the kubelet's node events, which have the node's name in place of a uid.
            metadata = {"name": self._node_name, "uid": self._node_name}
            node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
            self._recorder.event(node, kind, reason, message)
