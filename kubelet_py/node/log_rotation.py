"""Keeps containers' logs small: a file that is full is renamed, and the container goes on in a new one.

Names and numbers are the kubelet's (pkg/kubelet/logs): `0.log` becomes `0.log.20261121-031500`, of which
containerLogMaxFiles - 1 are kept beside the current one. The runtime writes on to the renamed file until
it has opened the new one, between two writes, so that no line is lost, cut or doubled. Files are not
compressed: `kubectl logs -f` reads on through the renamed ones.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from runtime.errors import RuntimeFailure
from runtime.values import Container

log = logging.getLogger(__name__)


def parse_limits(config: Config) -> tuple[int, int]:
    """containerLogMaxSize in bytes and containerLogMaxFiles; raises ConfigError."""
    from kubeclient import quantity

    text, files = config.container_log_max_size, config.container_log_max_files
    try:
        size = quantity.value(text)
    except ValueError as error:
        raise ConfigError(
            f"Could not use configuration: containerLogMaxSize {text!r} is no quantity"
        ) from error
    if size <= 0:
        raise ConfigError(f"Could not use configuration: containerLogMaxSize {text!r} must be positive")
    if files < 2:
        raise ConfigError("Could not use configuration: containerLogMaxFiles must be at least 2")
    return size, files


class LogRotation:
    """`look` is called often; every `period` seconds it rotates what is too large."""

    def __init__(
        self,
        containers: Callable[[], Iterable[Container]],
        reopen: Callable[[str], None],
        *,
        max_size: int,
        max_files: int,
        period: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._containers, self._reopen = containers, reopen
        self._max_size, self._max_files, self._period = max_size, max_files, period
        self._clock, self._wall_clock = clock, wall_clock
        self._looked = clock()

    def look(self) -> None:
        """Rotate what is due, if it is time."""
        if self._clock() - self._looked < self._period:
            return
        self._looked = self._clock()
        for container in self._containers():
            if container.state == "RUNNING" and container.config.log_path:
                try:
                    self.rotate(container.id, Path(container.config.log_path))
                except (RuntimeFailure, OSError) as error:
                    log.warning("Failed to rotate log container=%s error=%s", container.id[:12], error)

    def rotate(self, container_id: str, path: Path) -> bool:
        """Rotate one log if it is too large; raises RuntimeFailure, OSError."""
        try:
            if path.lstat().st_size < self._max_size:
                return False
        except FileNotFoundError:
            self._recover(container_id, path)
            return False
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(self._wall_clock()))
        target = path.with_name(f"{path.name}.{stamp}")
        if target.exists():
            return False  # the second time within a second: the next look will do
        # The one that is about to be renamed and the new one count, too.
        for old in rotated_files(path)[: -(self._max_files - 2) or None]:
            old.unlink(missing_ok=True)
        os.rename(path, target)
        try:
            self._reopen(container_id)
        finally:
            if not path.exists():
                # The container ended meanwhile, or the runtime could not: its log must have its name.
                os.rename(target, path)
        log.info("Rotated log container=%s file=%s", container_id[:12], target.name)
        return True


    def _recover(self, container_id: str, path: Path) -> None:
        """An agent was killed between renaming a log and telling the runtime, which still writes to the
        renamed file: finish that, as the kubelet does. Without its folder the pod is going."""
        if rotated_files(path):
            self._reopen(container_id)
            log.info("Finished an interrupted rotation container=%s", container_id[:12])


def rotated_files(path: Path) -> list[Path]:
    """What was once the log `path`, the oldest first."""
    return sorted(path.parent.glob(f"{path.name}.[0-9]*"))
