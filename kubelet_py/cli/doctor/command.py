"""The command: observe, judge, print. The exit code is 1 when something is missing that pods need."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kubelet_py.cli.doctor import (
    cgroups,
    kernel,
    machine,
    netfilter,
    network,
    observe_kernel,
    observe_machine,
    observe_network,
)
from kubelet_py.cli.doctor.finding import MISSING, OK, Finding
from kubelet_py.paths import NodePaths


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check what a node needs of this host",
        description="Check rights, kernel, cgroups, netfilter, network, clock, disks and ports; each with "
        "what it is for and the command that mends it. Changes nothing. The exit code is 1 when something is "
        "missing that pods cannot run without, 0 when all is well or only degraded.",
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="prefix of all paths (default /)")
    parser.add_argument("--output", "-o", choices=("text", "json"), default="text", help="form of the answer")
    parser.set_defaults(handler=run)


def run(args: argparse.Namespace) -> int:
    findings = examine(NodePaths(args.root.resolve()))
    if args.output == "json":
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        show(findings)
    return 1 if any(finding.state == MISSING for finding in findings) else 0


def examine(paths: NodePaths) -> list[Finding]:
    """All findings in the order in which a start would need them."""
    return [
        *kernel.judge(observe_kernel.kernel(paths)),
        *cgroups.judge(observe_kernel.cgroups()),
        *netfilter.judge(observe_network.netfilter(paths)),
        *network.judge(observe_network.network(paths)),
        *machine.judge(observe_machine.machine(paths)),
    ]


def show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print(f"{finding.state:<9} {finding.name:<15} {finding.found}")
        if finding.state != OK:
            print(f"{'':<9} {'':<15} needed for {finding.purpose}; {finding.mend}")
