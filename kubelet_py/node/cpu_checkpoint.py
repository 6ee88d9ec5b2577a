"""cpu_manager_state: which container has which processors, in upstream's format, for the next agent. Pure but
for reading and writing the file.

The checksum is upstream's: FNV-1a of 32 bits over the state as Go's spew prints it, types and all
(checkpointmanager/checksum, and CPUManagerCheckpointV2 under its old name). So either kubelet reads the
other's file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubelet_py.errors import ConfigError
from kubelet_py.node import cpu_topology
from kubelet_py.node.cpu_topology import CPUS

Assigned = Mapping[str, Mapping[str, CPUS]]
"""Processors by pod uid and container name."""


@dataclass(frozen=True, slots=True)
class CpuState:
    """`shared` are the processors of all containers that have none of their own."""

    policy: str
    shared: CPUS
    assigned: Assigned = field(default_factory=dict)

    def text(self) -> str:
        shared, entries = cpu_topology.write(self.shared), _entries(self.assigned)
        document: dict[str, Any] = {"policyName": self.policy, "defaultCpuSet": shared}
        if entries:
            document["entries"] = entries
        document["checksum"] = checksum(self.policy, shared, entries)
        return json.dumps(document, separators=(",", ":"))


def _entries(assigned: Assigned) -> dict[str, dict[str, str]]:
    return {
        uid: {name: cpu_topology.write(cpus) for name, cpus in containers.items()}
        for uid, containers in assigned.items()
    }


def checksum(policy: str, shared: str, entries: Mapping[str, Mapping[str, str]]) -> int:
    shown = " ".join(
        f"{uid}:map[{' '.join(f'{name}:{cpus}' for name, cpus in sorted(containers.items()))}]"
        for uid, containers in sorted(entries.items())
    )
    text = (
        f"(*state.CPUManagerCheckpoint){{PolicyName:(string){policy} DefaultCPUSet:(string){shared} "
        f"Entries:(map[string]map[string]string)map[{shown}] Checksum:(checksum.Checksum)0}}"
    )
    value = 0x811C9DC5
    for byte in text.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def read(file: Path) -> CpuState | None:
    """None where there is no file. Raises ConfigError for one that is not what it should be."""
    try:
        document = json.loads(file.read_text())
        policy, shared = document["policyName"], document["defaultCpuSet"]
        entries = document.get("entries") or {}
        known = document["checksum"]
        state = CpuState(
            policy,
            cpu_topology.parse(shared),
            {u: {n: cpu_topology.parse(t) for n, t in of.items()} for u, of in entries.items()},
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"Could not read {file}: {error!r} ({_REMEDY})") from error
    if known and known != checksum(policy, shared, entries):  # 0 was written by old ones
        raise ConfigError(f"Could not read {file}: checkpoint is corrupted ({_REMEDY})")
    return state


_REMEDY = "drain the node, delete the file and start again"


def save(file: Path, state: CpuState) -> None:
    """Whole or not at all, also where the power goes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    with new.open("w") as out:
        out.write(state.text())
        out.flush()
        os.fsync(out.fileno())
    new.rename(file)
