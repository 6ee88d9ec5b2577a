"""Downloads that broke off, kept so that the next pull goes on where they ended.

A pull writes its blobs into a folder of its own, which is removed when it ends, however it ends. On a bad
line a large image would begin from nothing each time the kubelet tries again, and might never arrive. So what
a failed, interrupted or killed pull had of its blobs moves here, named by digest: root/partial/<hex>. Whoever
wants the blob takes the file by renaming it, so no two pulls write to one; and whoever takes it hashes it
from the start, so nothing here is believed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "blob-"
_KEPT_SECONDS = 24 * 3600.0


def blob_file(folder: Path, digest: str) -> Path:
    """Where a pull that works in `folder` writes the blob."""
    return folder / f"{PREFIX}{digest.partition(':')[2]}"


class Partials:
    """The folder of broken-off downloads of one store."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    def keep_from(self, work: Path) -> None:
        """Take the blobs out of a pull's folder; of two of the same blob the longer one stays."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for file in work.glob(f"{PREFIX}*"):
            kept = self._folder / file.name.removeprefix(PREFIX)
            size = file.stat().st_size
            if size and size > _size(kept):
                os.replace(file, kept)
                log.info("Kept a broken-off download digest=%s bytes=%d", kept.name, size)

    def claim(self, digest: str, file: Path) -> bool:
        """Move what there is of the blob to `file`; False where there is nothing."""
        try:
            os.rename(self._folder / digest.partition(":")[2], file)
        except FileNotFoundError:
            return False
        return True

    def forget(self, digest: str) -> None:
        """The blob will not be needed: its layer is in the store."""
        (self._folder / digest.partition(":")[2]).unlink(missing_ok=True)

    def drop(self, *, older_than: float = _KEPT_SECONDS) -> int:
        """Delete those not touched for so many seconds (0: all); returns how many bytes."""
        freed, limit = 0, self._clock() - older_than
        for file in list(self._folder.iterdir()) if self._folder.is_dir() else ():
            try:
                status = file.stat()
                if not older_than or status.st_mtime < limit:
                    file.unlink()
                    freed += status.st_size
            except FileNotFoundError:
                continue  # a pull has just claimed it
        return freed


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
