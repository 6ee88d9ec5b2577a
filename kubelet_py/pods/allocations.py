"""What the node has agreed to give each pod, found again by the next agent.

An agreed resize is in `pods/<uid>/allocated.json`. A pod that was never resized has no such file: what it has
stands in the status that we wrote ourselves, or, before there is one, in its spec. So a wish that was never
agreed to is not taken for a promise.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Protocol

from kubelet_py.pods import resize
from kubelet_py.pods.model import Object, full_name, is_static, uid_of
from kubelet_py.pods.resize import Table

log = logging.getLogger(__name__)

FILE = "allocated.json"


class Allocated(Protocol):
    """A pod's record, as far as its allocation is concerned."""

    pod: Object
    wanted: Object
    allocated: Table | None

    def allocate(self, allocated: Table) -> None: ...


class Allocations:
    """`pods`: the folder of the pods' folders."""

    def __init__(self, pods: Path) -> None:
        self._pods = pods

    def restore(self, record: Allocated) -> None:
        """Give the record what the pod has, unless it has it already. Static pods are never resized."""
        if record.allocated is None and not is_static(record.pod):
            record.allocate(self._read(record) or resize.told(record.wanted))

    def keep(self, record: Allocated) -> None:
        """Write down what was agreed to."""
        folder = self._pods / uid_of(record.pod)
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{FILE}.new"
        new.write_text(json.dumps(record.allocated))
        new.rename(folder / FILE)

    def _read(self, record: Allocated) -> Table | None:
        try:
            known: Table = json.loads((self._pods / uid_of(record.pod) / FILE).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:  # a power cut has left it empty; the status tells nearly the same
            log.warning("Forgot what was agreed to pod=%s error=%s", full_name(record.pod), error)
            return None
        return known
