"""ReadWriteOncePod: a persistent volume that one pod at a time may have.

The scheduler keeps pods apart, but a pod that names its node passes it by, so the node looks again, as
upstream does (operation_generator.go). Who has a volume is a file in that pod's folder: it outlives the
agent, and goes with the pod's volumes.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kubelet_py.errors import VolumeError
from kubelet_py.pods.model import Object

FOLDER = "exclusive-volumes"


class InUse(VolumeError):
    """Another pod has the volume; the text is upstream's."""


class Exclusive:
    """`pods` is the folder of all pods. For any thread."""

    def __init__(self, pods: Path) -> None:
        self._pods = pods
        self._lock = threading.Lock()

    @contextmanager
    def held(self, uid: str, volume: Object) -> Iterator[None]:
        """The PersistentVolume is the pod's from here on, until `give_back`, or until the body fails that
        made it so. Raises InUse."""
        # With several modes nobody knows which one the pod wants.
        if volume["spec"].get("accessModes") != ["ReadWriteOncePod"]:
            yield
            return
        mark = self._pods / uid / FOLDER / volume["metadata"]["uid"]
        with self._lock:
            if any(other != mark for other in self._pods.glob(f"*/{FOLDER}/{mark.name}")):
                text = "volume uses the ReadWriteOncePod access mode and is already in use by another pod"
                raise InUse(text)
            mark.parent.mkdir(parents=True, exist_ok=True)
            new = not mark.exists()
            mark.touch()
        try:
            yield
        except BaseException:
            if new:
                mark.unlink(missing_ok=True)
            raise

    def give_back(self, uid: str) -> None:
        """Let others have what the pod had."""
        folder = self._pods / uid / FOLDER
        if folder.is_dir():
            shutil.rmtree(folder)
