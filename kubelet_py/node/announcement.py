"""The address that the node announces, with its reason, for people: `run/kubelet-py/node-address.json`.

The agent writes it, `status` shows it, and `join` ends at once where it says that the cluster has another
node with this address.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.errors import AddressTaken
from kubelet_py.node import addresses
from kubelet_py.node.addresses import NodeAddress
from kubelet_py.paths import NodePaths
from kubelet_py.pods.model import Object

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announced:
    """What the file says; `refused` is why the node does not register with this address, or ""."""

    address: str
    interface: str
    reason: str
    refused: str


def file(paths: NodePaths) -> Path:
    return paths.run / "node-address.json"


def read(paths: NodePaths) -> Announced | None:
    """None before the first agent, and after `down`."""
    try:
        said = json.loads(file(paths).read_text())
    except FileNotFoundError:
        return None
    return Announced(said["address"], said["interface"], said["reason"], said["refused"])


class Announcement:
    """The address of Node `me`; `nodes` tells the Nodes there are."""

    def __init__(
        self, paths: NodePaths, me: str, address: NodeAddress, nodes: Callable[[], Sequence[Object]]
    ) -> None:
        self._file, self._me, self._address, self._nodes = file(paths), me, address, nodes
        log.info(
            "Chose node address=%s interface=%s reason=%s", address.address, address.interface, address.reason
        )
        self._write("")

    def check(self) -> None:
        """Raise AddressTaken if another Node announces this address."""
        refused = addresses.clash(self._address, self._me, self._nodes())
        self._write(refused)
        if refused:
            raise AddressTaken(refused)

    def _write(self, refused: str) -> None:
        address = self._address
        said = {"address": address.address, "interface": address.interface, "reason": address.reason}
        new = self._file.with_suffix(".new")
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(said | {"refused": refused}) + "\n")
        new.rename(self._file)
