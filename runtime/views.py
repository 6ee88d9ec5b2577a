"""Sandboxes and containers as the service shows them: what the agent has written down of them beside what
their shim has; and how an exec ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from runtime.errors import ExecTimeout, RuntimeFailure
from runtime.state import CREATED, NOT_READY, READY, RUNNING, ContainerState, SandboxState
from runtime.streams import STDERR, STDOUT
from runtime.values import Container, ContainerConfig, ExecResult, Sandbox, SandboxConfig


def sandbox_from(identifier: str, created_at: float, config: SandboxConfig, found: SandboxState) -> Sandbox:
    """The public view of a sandbox."""
    ready = found.pause is not None and found.exited_at is None
    pid = found.pause.pid if ready and found.pause is not None else 0
    netns = f"/proc/{pid}/ns/net" if ready and not config.host_network else ""
    return Sandbox(identifier, READY if ready else NOT_READY, pid, netns, created_at, config)


def container_from(record: Mapping[str, Any], config: ContainerConfig, found: ContainerState) -> Container:
    """The public view of a container, from its record on disk and its state."""
    empty = Container(
        record["id"], record["sandbox"], config, CREATED, 0, record["created_at"], None, None, None, "", ""
    )
    return with_state(empty, found)


def with_state(container: Container, found: ContainerState) -> Container:
    running = found.state == RUNNING and found.process is not None
    return replace(
        container,
        state=found.state,
        pid=found.process.pid if running and found.process is not None else 0,
        started_at=found.started_at,
        finished_at=found.finished_at,
        exit_code=found.exit_code,
        reason=found.reason,
        message=found.message,
    )


def exec_result(
    ended: Mapping[str, Any], collected: Mapping[int, bytearray], argv: Sequence[str]
) -> ExecResult:
    """The result behind an EXIT frame. Raises ExecTimeout."""
    if ended.get("timedOut"):
        raise ExecTimeout(f"command {' '.join(argv)!r} timed out")
    if "exitCode" not in ended:
        raise RuntimeFailure(str(ended.get("error", "the exec ended without an exit code")))
    return ExecResult(ended["exitCode"], bytes(collected[STDOUT]), bytes(collected[STDERR]))
