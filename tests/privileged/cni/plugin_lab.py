"""Plugins as a runtime runs them, with what it gives them: configurations and variables."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from network_lab import Namespace

from cni import skeleton

PORTS = {"portMappings": [{"hostPort": 8081, "containerPort": 80, "protocol": "tcp"}]}
LIMITS = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 80_000,
                        "egressRate": 8_000_000, "egressBurst": 80_000}}  # fmt: skip


def bridge(tmp_path: Path, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.6.0.0/24", "dataDir": str(tmp_path / "leases"),
            "routes": [{"dst": "0.0.0.0/0"}]}  # fmt: skip
    body = {"type": "bridge", "bridge": "kpy0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
    return {**body, "ipam": ipam, **more}


def portmap() -> dict[str, Any]:
    return {"type": "portmap", "capabilities": {"portMappings": True}}


def bandwidth() -> dict[str, Any]:
    return {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def alone(section: dict[str, Any], version: str = "1.1.0") -> dict[str, Any]:
    return {"cniVersion": version, "name": "net", **section}


def run(
    program: Path, command: str, config: Any, path: str = "", **variables: str
) -> tuple[int, dict[str, Any]]:
    """Run one plugin as a runtime does: exit status, and the JSON on stdout."""
    environment = _environment(command, path or str(program.parent), variables)
    done = subprocess.run(
        [str(program)], input=json.dumps(config).encode(), env=environment, capture_output=True
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


def body_of(
    kind: str, own_bin: Path, command: str, config: Any, **variables: str
) -> tuple[int, dict[str, Any]]:
    """The same without a process, for long tables: what the program consists of behind `main`."""
    out = io.StringIO()
    environment = _environment(command, str(own_bin), variables)
    status = skeleton.main(
        kind, str(own_bin), environ=environment, stdin=io.BytesIO(json.dumps(config).encode()), stdout=out
    )
    return status, json.loads(out.getvalue()) if out.getvalue() else {}


def _environment(command: str, path: str, variables: dict[str, str]) -> dict[str, str]:
    named = {"PATH": os.environ["PATH"], "CNI_COMMAND": command, "CNI_PATH": path}
    return named | {f"CNI_{key}": value for key, value in variables.items()}


def names(pod: Namespace, container: str = "c1") -> dict[str, str]:
    return {"CONTAINERID": container, "IFNAME": "eth0", "NETNS": pod.path}


def stub(folder: Path, name: str, script: str) -> None:
    """A plugin in shell, with $log beside it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\nlog={folder}/log.{name}\nconfig=$(cat)\n{script}\n")
    (folder / name).chmod(0o755)


def eth0(pod: Namespace) -> tuple[str, list[str]] | None:
    with pod.netlink() as inside:
        link = inside.link("eth0")
        return (link.mac, sorted(a.address for a in inside.addresses(link.index))) if link else None
