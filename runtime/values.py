"""What goes in and out of the runtime service: CRI's messages as frozen values.

Only agents import this; a shim reads the same facts from JSON, because `dataclasses` costs 2 MB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """What runs the containers of pods with the handler `name`: an executable with runc's command line.

    `root`: its --root, "" for a folder of ours. `arguments`: further global options. `hybrid_cgroups`: on a
    host with v1 controllers it uses the v2 tree, too (see runtime/foreign.py).
    """

    name: str
    path: str
    root: str = ""
    arguments: tuple[str, ...] = ()
    hybrid_cgroups: bool = False


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """One pod. `cgroup_parent` is the pod's cgroup, below the hierarchy's root, made by the caller.
    `runtime_handler` names the OCI runtime of its containers, "" for our own. `first_id`: the first of the
    `ids` user and group ids of the host that are the pod's own from 0 on; 0 for a pod with the host's users.
    """

    name: str
    namespace: str
    uid: str
    attempt: int = 0
    hostname: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    log_directory: str = ""
    cgroup_parent: str = ""
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    share_process_namespace: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict)
    runtime_handler: str = ""
    first_id: int = 0
    ids: int = 0


@dataclass(frozen=True, slots=True)
class ContainerConfig:
    """One container. `spec` is an OCI config.json without namespace paths; `layers` are folders, TOP first.

    In a `Container` that the service returns, `spec` is empty: it is on disk, and would be most of an agent's
    memory.
    """

    name: str
    attempt: int
    image: str
    image_id: str
    spec: Mapping[str, Any]
    layers: tuple[str, ...]
    log_path: str
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    stop_signal: str = "SIGTERM"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """`state` READY or NOTREADY; `pid` of pause, 0 when there is none; `netns` "" on the host's network."""

    id: str
    state: str
    pid: int
    netns: str
    created_at: float
    config: SandboxConfig


@dataclass(frozen=True, slots=True)
class Container:
    """`state` CREATED, RUNNING, EXITED or UNKNOWN. Times are seconds since the epoch."""

    id: str
    sandbox_id: str
    config: ContainerConfig
    state: str
    pid: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    exit_code: int | None
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Event:
    """`type`: started, exited, oom (container) or sandbox-exited (`container_id` None)."""

    sandbox_id: str
    container_id: str | None
    type: str
    exit_code: int | None
    at: float


@dataclass(frozen=True, slots=True)
class ExecResult:
    """A finished exec_sync; each output at most 16 MiB, the rest is dropped."""

    exit_code: int
    stdout: bytes
    stderr: bytes
