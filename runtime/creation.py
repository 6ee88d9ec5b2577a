"""A container's folder: what is written down of it when it is created, and its start, compiled ahead."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from runtime import recovery, state
from runtime.ahead import Ahead
from runtime.cleaner import Cleaner
from runtime.errors import StartError
from runtime.namespaces import namespaces_of
from runtime.oci_config import container_config, pause_config, signal_number
from runtime.state import ContainerState
from runtime.values import Container, ContainerConfig, OciRuntime, SandboxConfig
from runtime.views import container_from


class Creation:
    """`folder` holds one folder for each container."""

    def __init__(self, folder: Path, ahead: Ahead, cleaner: Cleaner) -> None:
        self._folder = folder
        self._ahead = ahead
        self._cleaner = cleaner

    def make(
        self,
        sandbox_id: str,
        sandbox: SandboxConfig,
        config: ContainerConfig,
        runtime: OciRuntime | None = None,
        *,
        held: bool = False,
    ) -> tuple[Container, bool]:
        """A container that does not run yet, and whether its start is prepared; to be `held` at a gate.
        `runtime`: who runs it in place of ours. Raises StartError, with nothing left."""
        signal_number(config.stop_signal)
        identifier = os.urandom(32).hex()
        slim = replace(config, spec={})
        record = {
            "id": identifier,
            "sandbox": sandbox_id,
            "created_at": time.time(),
            "cgroup": f"{sandbox.cgroup_parent}/{identifier}".lstrip("/"),
            "config": plain(slim),
        }
        if held:
            record["held"] = True
        if runtime is not None:
            record["runtime"] = plain(runtime)
        folder = self._folder / identifier
        try:
            oci = container_config(config.spec, sandbox)
            write_container(folder, record, oci)
            join = namespaces_of(pause_config(sandbox))
            prepared = self._ahead.container(str(folder), record, oci, join, sandbox.uid, held=held)
        except OSError as error:
            if folder.exists():
                self._cleaner.add(recovery.give_up(folder))
            raise StartError(f"Could not create container {config.name}: {error.strerror}") from error
        return container_from(record, slim, ContainerState()), prepared


def write_container(folder: Path, record: Mapping[str, Any], oci: Mapping[str, Any]) -> None:
    """A container's folder. config.json comes last: without it the folder counts as half made."""
    os.mkdir(folder, 0o700)
    os.mkdir(f"{folder}/work", 0o700)
    os.mkdir(f"{folder}/upper", 0o755)
    os.chmod(f"{folder}/upper", 0o755)  # it becomes the container's own /; the umask must not have a say
    state.write_json(f"{folder}/oci.json", oci)
    state.write_json(f"{folder}/config.json", record)


def plain(value: SandboxConfig | ContainerConfig | OciRuntime) -> dict[str, Any]:
    """The fields by name. What is in them is shared, where `asdict` would copy every text of it."""
    return {each.name: getattr(value, each.name) for each in fields(value)}
