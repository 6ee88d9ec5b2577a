"""`kubelet-py lab status` and `lab logs`: what is there, how it is, and what it says."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from kubelet_py.cli.lab import state, traffic
from kubelet_py.cli.lab.branch import Branch
from kubelet_py.cli.lab.errors import LabError
from kubelet_py.cli.lab.layout import CONTROL, SWITCH, LabPaths
from kubelet_py.cli.lab.machines import Machines
from kubelet_py.cli.lab.state import Lab

BOOT = "boot"


@dataclass(frozen=True, slots=True)
class Row:
    """One machine. `memory` is the PSS in bytes of its own processes, `ready` what the API server says."""

    name: str
    address: str
    power: str
    cable: str
    ready: str
    pods: int
    memory: int


def run(args: argparse.Namespace, paths: LabPaths) -> int:
    lab = state.require(paths)
    if args.verb == "logs":
        lab.machine(args.name)
        return _logs(args, paths)
    machines = Machines(paths, Branch.of_host(paths.cgroup))
    ready, pods, problem = _cluster(paths)
    found = rows(lab, machines, ready, pods)
    switch = machines.identity(SWITCH) is not None
    if args.output == "json":
        report = {"root": str(paths.root), "switch": switch, "server": lab.server, "problem": problem}
        print(json.dumps(report | {"machines": [asdict(row) for row in found]}, indent=2))
    else:
        print(table(found))
        if not switch:
            print(f"The switch is gone (take the lab away: {paths.command} down)")
        if problem:
            print(f"API server: {problem}")
    nodes = [row for row in found if row.name != CONTROL]
    good = all(row.power == "on" for row in found) and all(row.ready == "True" for row in nodes)
    return 0 if switch and good else 1


def rows(lab: Lab, machines: Machines, ready: dict[str, str], pods: Counter[str]) -> list[Row]:
    return [
        Row(
            machine.name,
            lab.address(machine.number),
            machines.state(machine.name),
            traffic.describe(machine.cable),
            ready.get(machine.name, "-" if machine.name == CONTROL else "Unknown"),
            pods[machine.name],
            machines.memory(machine.name),
        )
        for machine in lab.machines
    ]


def table(found: list[Row]) -> str:
    """PURE."""
    lines = [("MACHINE", "ADDRESS", "POWER", "CABLE", "READY", "PODS", "MEMORY")]
    lines += [
        (r.name, r.address, r.power, r.cable, r.ready, str(r.pods), f"{r.memory / 1e6:.0f} MB") for r in found
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cluster(paths: LabPaths) -> tuple[dict[str, str], Counter[str], str]:
    """Ready by node, pods by node, and why they are not known."""
    from kubeclient import kubeconfig
    from kubeclient.errors import KubeClientError
    from kubeclient.resources import NODES, PODS
    from kubeclient.rest import RestClient
    from kubelet_py.cli.readiness import condition

    ready: dict[str, str] = {}
    pods: Counter[str] = Counter()
    try:
        client = RestClient(kubeconfig.load(paths.kubeconfig), user_agent="kubelet-py-lab", timeout=3.0)
        for node in client.list(NODES)["items"]:
            ready[node["metadata"]["name"]] = condition(node, "Ready")
        items: list[dict[str, Any]] = client.list(PODS)["items"]
        pods.update(pod["spec"].get("nodeName", "") for pod in items)
        client.close()
    except (KubeClientError, OSError) as error:
        return ready, pods, str(error)
    return ready, pods, ""


def _logs(args: argparse.Namespace, paths: LabPaths) -> int:
    """Becomes tail(1)."""
    folder = paths.node(args.name).logs
    there = {file.stem: file for file in sorted(folder.glob("*.log"))} | {BOOT: paths.boot_log(args.name)}
    if args.process is not None and args.process not in there:
        raise LabError(f"{args.name} has no log of {args.process} (it has {', '.join(there)})")
    if args.lines < 0:
        raise LabError(f"--lines {args.lines}: it must be 0 or more")
    files = [there[args.process]] if args.process else list(there.values())
    follow = ["-F"] if args.follow else []
    os.execvp(
        "tail", ["tail", "-n", str(args.lines), *follow, *(str(file) for file in files if file.exists())]
    )
