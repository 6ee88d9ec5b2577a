"""What an earlier agent has left: taken over where its shim lives, ended where it does not.

Everything comes from the folders and the shims' sockets. A folder without its record is that of something
half made, which nobody was ever told of; it goes, and so does one whose record cannot be read.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from runtime import recovery, shim_link
from runtime.cgroups import CgroupDriver
from runtime.endings import Endings
from runtime.errors import ShimError
from runtime.known import Known
from runtime.shims import Shims
from runtime.state import CREATED
from runtime.values import Container, ContainerConfig, SandboxConfig
from runtime.views import container_from, sandbox_from

log = logging.getLogger(__name__)

ADOPT_SECONDS = 5.0


class Adoption:
    """Before the event thread runs, and before anything is started."""

    def __init__(self, cgroups: CgroupDriver, known: Known, shims: Shims, endings: Endings) -> None:
        self._cgroups = cgroups
        self._known = known
        self._shims = shims
        self._endings = endings

    def adopt(self, sandboxes: Path, containers: Path) -> list[Container]:
        """What was held and never let go (held.py) and so has never been a container: for the caller to
        remove. Raises OSError, CgroupError."""
        folders = recovery.folders(sandboxes)
        for folder, connection in zip(folders, shim_link.greet(map(str, folders)), strict=True):
            self._adopt_sandbox(folder, connection)
        held = [self._adopt_container(each) for each in recovery.folders(containers)]
        return [each for each in held if each is not None]

    def _adopt_sandbox(self, folder: Path, greeting: socket.socket | OSError) -> None:
        identifier = folder.name
        record = recovery.record_of(f"{folder}/sandbox.json")
        if record is None:
            if isinstance(greeting, socket.socket):
                greeting.close()
            self._endings.abandon_sandbox(identifier)
            return
        try:
            # Subscribed before the state files are read, so that no change falls in between.
            connection = shim_link.greeted(greeting, ADOPT_SECONDS)
        except (OSError, ShimError) as error:
            log.warning("Ended pod whose shim does not answer sandbox=%s error=%s", identifier[:12], error)
            found = recovery.end_sandbox(self._cgroups, folder)
        else:
            self._shims.listen(identifier, self._shims.add(identifier, connection))
            found = recovery.sandbox_state(folder)
        config = SandboxConfig(**record["config"])
        self._known.add_sandbox(sandbox_from(identifier, record["created_at"], config, found))

    def _adopt_container(self, folder: Path) -> Container | None:
        """The container, if it was held."""
        record = recovery.record_of(f"{folder}/config.json")
        if record is None or not self._known.has_sandbox(record["sandbox"]):
            self._endings.abandon_container(folder.name)
            return None
        if record["sandbox"] not in self._shims.links or recovery.is_lost(recovery.container_state(folder)):
            recovery.end_container(self._cgroups, folder)
        config = ContainerConfig(**{**record["config"], "layers": tuple(record["config"]["layers"])})
        found = container_from(record, config, recovery.container_state(folder))
        self._known.add_container(found)
        return found if found.state == CREATED and record.get("held") else None
