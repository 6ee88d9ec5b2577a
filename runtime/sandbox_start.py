"""The start of a sandbox: its folder, its shim and its network, up to where pause runs.

While the shim gets ready the agent makes the network namespace and prepares pause's start; the shim begins
with that when it is greeted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from runtime import recovery, shim_link, state
from runtime.ahead import Ahead
from runtime.creation import plain
from runtime.early_network import EarlyNetwork
from runtime.endings import Endings
from runtime.errors import RuntimeFailure, ShimError, StartError
from runtime.forkserver_link import Forkserver
from runtime.known import Known
from runtime.oci_config import pause_config
from runtime.shim_link import ShimLink
from runtime.shims import Shims
from runtime.spare_network import SpareNetwork
from runtime.values import Sandbox, SandboxConfig
from runtime.views import sandbox_from

log = logging.getLogger(__name__)

START_SECONDS = 60.0


class SandboxStart:
    """A sandbox whose shim is starting pause. `id` is its own for ever; `netns` is its network namespace
    until `finish`, "" where that is not there before."""

    def __init__(
        self,
        identifier: str,
        config: SandboxConfig,
        network: EarlyNetwork | None,
        wait: Callable[[], Sandbox],
    ) -> None:
        self.id = identifier
        self.config = config
        self.netns = network.path if network else ""
        self._network = network
        self._wait = wait
        self._result: Sandbox | RuntimeFailure | None = None

    def finish(self) -> Sandbox:
        """The sandbox, with the lasting path of its namespace; the same when asked again. Raises StartError,
        with nothing left behind but what was done to the namespace outside of it."""
        if self._result is None:
            try:
                self._result = self._wait()
            except RuntimeFailure as failure:
                self._result = failure
            finally:
                if self._network is not None:
                    self._network.close()
        if isinstance(self._result, RuntimeFailure):
            raise self._result
        return self._result


class SandboxStarter:
    """`sandboxes` and `containers` hold one folder for each."""

    def __init__(
        self,
        *,
        sandboxes: Path,
        containers: Path,
        forkserver: Forkserver,
        ahead: Ahead,
        networks: SpareNetwork,
        known: Known,
        shims: Shims,
        endings: Endings,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._forkserver = forkserver
        self._ahead = ahead
        self._networks = networks
        self._known = known
        self._shims = shims
        self._endings = endings

    def begin(self, config: SandboxConfig, meanwhile: Callable[[], None]) -> SandboxStart:
        """Give its shim its orders. Raises StartError, with nothing left, and what `meanwhile` raises."""
        identifier = os.urandom(32).hex()
        folder = self._sandboxes / identifier
        folder.mkdir(mode=0o700)
        created_at = time.time()
        record = {
            "id": identifier,
            "created_at": created_at,
            "config": plain(config),
            "cgroup": f"{config.cgroup_parent}/{identifier}".lstrip("/"),
            "oci": pause_config(config),
        }
        try:
            link, started, network = self._fork_shim(identifier, folder, record, meanwhile)
        except (OSError, ShimError) as error:
            raise self._failed(identifier, config, error) from error
        except BaseException:
            self._abandon(identifier)
            raise

        def wait() -> Sandbox:
            try:
                answer = link.receive("start sandbox", started, START_SECONDS)
                if "error" in answer:
                    self._abandon(identifier)
                    raise StartError(answer["error"])
                found = state.sandbox_state_from(answer["sandbox"])
                return self._begun(sandbox_from(identifier, created_at, config, found), folder)
            except ShimError as error:
                raise self._failed(identifier, config, error) from error
            finally:
                self._shims.listen(identifier, link)

        return SandboxStart(identifier, config, network, wait)

    def _fork_shim(
        self, identifier: str, folder: Path, record: Mapping[str, Any], meanwhile: Callable[[], None]
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]], EarlyNetwork | None]:
        """The second is where its answer comes."""
        with shim_link.listen(str(folder)) as listener:
            connection = self._forkserver.fork_shim(str(folder), str(self._containers), listener)
        link = self._shims.add(identifier, connection)
        try:
            return self._greet_shim(link, folder, record, meanwhile)
        except BaseException:
            self._shims.listen(identifier, link)
            raise

    def _greet_shim(
        self, link: ShimLink, folder: Path, record: Mapping[str, Any], meanwhile: Callable[[], None]
    ) -> tuple[ShimLink, SimpleQueue[dict[str, Any]], EarlyNetwork | None]:
        started = link.expect(0)
        state.write_json(f"{folder}/sandbox.json", record)
        meanwhile()
        network = EarlyNetwork.of(self._networks.take, record["oci"], folder)
        try:
            self._ahead.pause(str(folder), record, network.join if network else None)
        except Exception:
            # A defect in there must not leave a shim that waits for ever: it starts pause without a program.
            log.exception("Failed to prepare pause sandbox=%s", folder.name)
        try:
            link.tell("hello")
        except ShimError:
            if network is not None:
                network.close()
            raise
        return link, started, network

    def _begun(self, sandbox: Sandbox, folder: Path) -> Sandbox:
        """It is known from here on; what its shim has told before nobody has heard."""
        self._known.add_sandbox(sandbox)
        if sandbox.id not in self._shims.links:
            self._endings.end_lost(sandbox.id)
        elif (found := recovery.sandbox_state(folder)).exited_at is not None:
            self._known.sandbox_changed(sandbox.id, found)
        return self._known.sandbox(sandbox.id)

    def _failed(self, identifier: str, config: SandboxConfig, error: Exception) -> StartError:
        self._abandon(identifier)
        pod = f"{config.namespace}/{config.name}"
        return StartError(f"Could not create sandbox for pod {pod}: {error}")

    def _abandon(self, identifier: str) -> None:
        link = self._shims.links.get(identifier)
        if link is not None:
            link.expected_to_end = True
        self._endings.abandon_sandbox(identifier)
        if link is not None:
            link.hang_up()  # one that was not greeted yet finds that there is nothing for it to do
