"""What keeps a node's disk from filling up: one object, looked at once a second by the agent's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kubelet_py.config import Config
from kubelet_py.instruments import Instrument
from kubelet_py.node.garbage import ImageGarbage, Policy, Tell, disk_of
from kubelet_py.node.log_rotation import LogRotation, parse_limits
from kubelet_py.paths import NodePaths
from runtime.images.store import ImageStore
from runtime.service import RuntimeService


class Housekeeping:
    """Images that nobody uses and logs that have grown too large. Raises ConfigError for senseless limits.

    `tell` gets the events about the node.
    """

    def __init__(
        self,
        config: Config,
        paths: NodePaths,
        store: ImageStore,
        runtime: RuntimeService,
        *,
        tell: Tell,
        mounted: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._images = ImageGarbage(
            store,
            runtime.list_containers,
            Policy.from_config(config),
            tell,
            disk=lambda: disk_of(paths.images),
            mounted=mounted,
        )
        self.instruments: tuple[Instrument, ...] = self._images.instruments
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

    def reclaim_images(self) -> None:
        """Remove every image that nobody uses: the disk is under pressure."""
        self._images.remove_unused()
