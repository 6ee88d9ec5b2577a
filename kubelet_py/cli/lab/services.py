"""What runs in the lab's machines: the control plane in one, a joined node in each other.

Either is a supervisor with its children, as `kubelet-py up` is. The first boot of a node joins the cluster
with the real command's own steps; later ones find its settings on its disk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubelet_py.cli import join, up
from kubelet_py.cli import settings as node_settings
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.lab import warm
from kubelet_py.cli.lab.init import Service
from kubelet_py.cli.lab.layout import CONTROL
from kubelet_py.cli.lab.state import CONTROL_NUMBER, Lab
from kubelet_py.cli.settings import NodeSettings
from kubelet_py.paths import NodePaths

Programs = Mapping[str, Callable[[list[str]], int]]
PATHS = NodePaths(Path("/"))
CERTIFICATE_SECONDS = 600.0
ATTEMPTS, PAUSE = 3, 1.0


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a new machine's person would type: `kubelet-py join` with these arguments."""

    arguments: tuple[str, ...]


def control(lab: Lab) -> Service:
    """The API server, scheduler and controllers of the cluster; no node."""

    def supervise() -> int:
        settings = node_settings.load(PATHS) or control_settings(lab)
        return _supervise(CONTROL, settings, "controlplane", {})

    return Service(f"{CONTROL}: supervisor", supervise=supervise)


def control_settings(lab: Lab) -> NodeSettings:
    """PURE but for the check. Raises SettingsError."""
    from kubelet_py.cli.main import build_parser

    args = build_parser("up").parse_args(["up", *lab.control_options])
    names = NodeSettings.__dataclass_fields__
    given = {key: value for key, value in vars(args).items() if key in names and value is not None}
    given |= {"node_name": CONTROL, "node_ip": lab.address(CONTROL_NUMBER), "cni_bin_dirs": ()}
    given |= {"cluster_cidr": lab.cluster_cidr, "service_cidr": lab.service_cidr}
    settings = NodeSettings(**given)
    settings.check()
    return settings


def node(name: str, invitation: Invitation | None, programs: Programs) -> Service:
    """Join, or start what has joined before."""

    def prepare() -> None:
        assert invitation is not None
        arguments = _join_arguments(name, invitation.arguments)
        for attempt in range(ATTEMPTS):
            try:
                join.prepare(arguments, PATHS)
                return
            except CommandError as error:  # on a busy machine the server may be late, as on a bad line
                if attempt == ATTEMPTS - 1:
                    raise
                print(f"{error}; trying again", file=sys.stderr, flush=True)
                time.sleep(PAUSE)

    return Service(
        f"{name}: supervisor",
        prepare=prepare if invitation is not None else None,
        supervise=lambda: _supervise(name, _known_settings(name), "", programs),
        afterwards=_forget_token,
    )


def _known_settings(name: str) -> NodeSettings:
    known = node_settings.load(PATHS)
    if known is None:
        raise CommandError(f"{name} never joined (take the lab away: kubelet-py lab down)")
    return known


def _forget_token() -> None:
    """As `join` does at its end."""
    certificate = PATHS.kubeconfig("kubelet")
    deadline = time.monotonic() + CERTIFICATE_SECONDS
    while PATHS.kubeconfig("bootstrap-kubelet").exists() and not certificate.exists():
        if time.monotonic() > deadline:
            raise CommandError(f"no certificate came within {CERTIFICATE_SECONDS:g} s")
        time.sleep(0.05)
    join.forget_token(PATHS)


def _join_arguments(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    from kubelet_py.cli.main import build_parser

    return build_parser("join").parse_args(["join", *arguments, "--node-name", name])


def _supervise(machine: str, settings: NodeSettings, only: str, programs: Programs) -> int:
    """Run the node's processes, or the one named `only`, until SIGTERM."""
    specs = [spec for spec in up.children(PATHS, settings) if only in ("", spec.name)]
    up.prepare(PATHS, settings, specs, warm.WarmSpawner(machine, programs)).run()
    return 0
