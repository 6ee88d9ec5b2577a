"""Removes images that nobody uses: when the disk fills up, or when they have not been used for long.

The rules are the kubelet's (pkg/kubelet/images/image_gc_manager.go). Every five minutes: images unused for
longer than imageMaximumGCAge go (0: never). If the disk is fuller than imageGCHighThresholdPercent, images,
the longest unused first, go until it is at imageGCLowThresholdPercent; those that are used at this moment or
were first seen less than imageMinimumGCAge ago stay. When an image was last used is remembered by this
process only: after a restart, all images count as just seen.

Unlike the kubelet, which adds up the images' sizes, the disk is asked again after each removal: images share
layers. Deleting files takes seconds, so a look runs on a thread of its own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.config import Config
from kubelet_py.errors import ConfigError
from kubelet_py.instruments import Instrument, Number
from runtime.images.errors import ImageError
from runtime.images.store import ImageStore
from runtime.values import Container

log = logging.getLogger(__name__)

PERIOD = 300.0
SPACE, AGE = "space", "age"
Tell = Callable[[str, str, str], None]
"""(Normal or Warning, reason, message): an event about the node."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of the file system that has the images, and those of them that are free for anyone but root."""

    capacity: int
    available: int

    @property
    def used_percent(self) -> int:
        """As the kubelet computes it, rounded up."""
        return 100 - self.available * 100 // self.capacity if self.capacity else 0


@dataclass(frozen=True, slots=True)
class Policy:
    """Percentages of the disk, ages in seconds; `maximum_age` 0 turns removal by age off."""

    high_percent: int = 85
    low_percent: int = 80
    minimum_age: float = 120.0
    maximum_age: float = 0.0

    @classmethod
    def from_config(cls, config: Config) -> Policy:
        """Raises ConfigError where the numbers make no sense."""
        high, low = config.image_gc_high_threshold_percent, config.image_gc_low_threshold_percent
        if not 0 <= low <= high <= 100 or (low == high and high < 100):
            raise ConfigError(
                f"Could not use configuration: imageGCLowThresholdPercent {low} must be below"
                f" imageGCHighThresholdPercent {high}, and both from 0 to 100"
            )
        oldest, youngest = config.image_maximum_gc_age, config.image_minimum_gc_age
        if oldest and oldest <= youngest:
            raise ConfigError(
                f"Could not use configuration: imageMaximumGCAge ({oldest:g} s) must be longer than"
                f" imageMinimumGCAge ({youngest:g} s)"
            )
        return cls(high, low, youngest, oldest)

    def excess(self, disk: Disk) -> int:
        """Bytes to free now; 0 below the high threshold."""
        if self.high_percent == 100 or disk.used_percent < self.high_percent:
            return 0
        return max(0, disk.capacity * (100 - self.low_percent) // 100 - disk.available)


@dataclass(slots=True)
class Use:
    """When an image was first seen here and last used, as seconds of the clock."""

    first_seen: float
    last_used: float = 0.0

    @property
    def idle_since(self) -> float:
        return self.last_used or self.first_seen


def removable(uses: dict[str, Use], in_use: Collection[str], now: float, minimum_age: float) -> list[str]:
    """Images that may go for lack of space, the longest unused first."""
    idle = [
        (use.last_used, use.first_seen, image)
        for image, use in uses.items()
        if image not in in_use and use.last_used < now and now - use.first_seen >= minimum_age
    ]
    return [image for _, _, image in sorted(idle)]


class ImageGarbage:
    """`look` is called often and returns at once; `collect` does the work.

    `mounted`: the names of the images that pods have as volumes.
    """

    def __init__(
        self,
        store: ImageStore,
        containers: Callable[[], Iterable[Container]],
        policy: Policy,
        tell: Tell,
        *,
        disk: Callable[[], Disk],
        mounted: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._containers, self._policy, self._tell = store, containers, policy, tell
        self._disk, self._clock, self._mounted = disk, clock, mounted
        self._uses: dict[str, Use] = {}
        self._began = self._looked = clock()
        self._thread: threading.Thread | None = None
        self._failed_before = False
        self._removed = Number(
            "kubelet_image_garbage_collected_total",
            "Total number of images garbage collected by the kubelet, "
            "whether through disk usage or image age.",
            "reason",
        )
        self.instruments: tuple[Instrument, ...] = (self._removed,)
        self._observe(self._began)

    def look(self) -> None:
        """Collect on a thread of its own, if it is time and the last one is done."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or self._clock() - self._looked < PERIOD:
            return
        self._looked = self._clock()
        self._thread = threading.Thread(target=self._work, name="image-garbage", daemon=True)
        self._thread.start()

    def collect(self) -> list[str]:
        """Remove what the policy says; the ids of the removed images. Tells when it was not enough."""
        in_use = self._observe(self._clock())
        now = self._clock()  # later, so that what was just seen is older than nothing
        removed = self._by_age(in_use, now)
        excess = self._policy.excess(self._disk())
        if not excess:
            self._failed_before = False
            return removed
        log.info("Found the disk too full bytes_to_free=%d percent=%d", excess, self._disk().used_percent)
        target = self._disk().available + excess
        self._store.sweep()  # what killed pulls left, which no pod would miss
        for image in removable(self._uses, in_use, now, self._policy.minimum_age):
            if self._disk().available >= target:
                break
            if self._remove(image, SPACE):
                removed.append(image)
        self._judge(target - self._disk().available, excess)
        return removed

    def remove_unused(self) -> list[str]:
        """Remove every image that nobody uses, whatever the disk says; the ids of those removed."""
        in_use = self._observe(self._clock())
        now = self._clock()
        unused = removable(self._uses, in_use, now, self._policy.minimum_age)
        return [image for image in unused if self._remove(image, SPACE)]

    def _work(self) -> None:
        try:
            self.collect()
        except (ImageError, OSError) as error:
            log.warning("Failed to collect images error=%s", error)
            self._tell("Warning", "ImageGCFailed", str(error))

    def _observe(self, now: float) -> set[str]:
        """Note which images there are and which are used; the ids of the latter."""
        images = self._store.list()
        by_name = {digest: image.id for image in images for digest in image.repo_digests}
        # A pulled image is written down by its repository digest, as the CRI shows it, others by their id.
        named = {container.config.image_id for container in self._containers()}
        in_use = {by_name.get(name, name) for name in named}
        for name in self._mounted():
            image = self._store.lookup(name)
            if image is not None:
                in_use.add(image.id)
        present = {image.id for image in images}
        for gone in set(self._uses) - present:
            del self._uses[gone]
        for identifier in present:
            use = self._uses.setdefault(identifier, Use(first_seen=now))
            if identifier in in_use:
                use.last_used = now
        return in_use

    def _by_age(self, in_use: Collection[str], now: float) -> list[str]:
        oldest = self._policy.maximum_age
        # Before this process has watched for that long, it cannot know.
        if not oldest or now - self._began <= oldest:
            return []
        old = [
            image for image in removable(self._uses, in_use, now, self._policy.minimum_age)
            if now - self._uses[image].idle_since > oldest
        ]
        return [image for image in old if self._remove(image, AGE)]

    def _remove(self, image: str, reason: str) -> bool:
        # A pod may have started to use it since: the runtime is asked once more.
        in_use = self._observe(self._clock())
        try:
            self._store.remove(image, in_use=in_use)
        except (ImageError, OSError) as error:
            log.info("Kept image id=%s error=%s", image, error)
            return False
        self._uses.pop(image, None)
        self._removed.add(reason)
        log.info("Removed unused image id=%s reason=%s", image, reason)
        return True

    def _judge(self, missing: int, wanted: int) -> None:
        if missing <= 0:
            self._failed_before = False
            return
        text = (
            f"Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, "
            f"but only found {wanted - missing} bytes eligible to free."
        )
        log.warning("Failed to free enough disk space wanted=%d missing=%d", wanted, missing)
        self._tell("Warning", "FreeDiskSpaceFailed", text)
        if self._failed_before:  # once may be chance; upstream, too, speaks up the second time
            self._tell("Warning", "ImageGCFailed", text)
        self._failed_before = True


def disk_of(folder: Path) -> Disk:
    """The file system below `folder`, or below its closest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    status = os.statvfs(folder)
    return Disk(status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)
